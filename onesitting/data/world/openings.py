"""How tales open, move on and end: the events that every shape of story shares."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, Who, book

TRAITS: tuple[str, ...] = (
    "cheerful",
    "quiet",
    "clever",
    "kind",
    "brave",
    "curious",
    "gentle",
    "lively",
    "careful",
    "friendly",
    "polite",
    "merry",
    "patient",
    "shy",
    "busy",
    "funny",
    "honest",
    "helpful",
    "thoughtful",
    "bright",
    "stubborn",
    "dreamy",
    "playful",
    "bold",
)
SKY: tuple[tuple[str, str], ...] = (
    ("sunny", "The sun was [shining|bright|high in the sky]."),
    ("warm", "The air [was soft and warm|smelled of flowers]."),
    ("cloudy", "[Grey|Soft grey|Low] clouds covered the sky."),
    ("windy", "The wind [blew through the trees|pushed the clouds across the sky]."),
    ("cold", "The air was [cold and clear|so cold that every breath made a little cloud]."),
    ("misty", "A thin white mist lay over the [fields|houses]."),
    ("bright", "There was not a cloud in the sky."),
)
KIN: tuple[str, ...] = ("grandmother", "grandfather", "mother", "father", "aunt", "uncle")
BONDS: tuple[str, ...] = ("friend", "friend", "best friend", "neighbour", "cousin", "classmate")

COMMON = book("""
#intro
Once there was a {trait} {girl} [named|called] {Sn}.
Once upon a time, a {trait} {girl} [named|called] {Sn} lived [near|close to] {home}.
{Sn} was a {trait} {girl} who lived [near|close to|not far from] {home}.
{Sn} was {age} years old and lived in [the town of |]{town}.
In the [small|little|old|quiet|pretty] town of {town} lived a {girl} [named|called] {Sn}.
There was once a {girl} [named|called] {Sn} who loved {hobby}.
{Sn} was a {girl} of {age} who liked {hobby} [more than anything else|very much|best of all].
{Sn} lived with {his} {kin} in a [small|little|tall|narrow|white|red|yellow] house [near|close to] {home}.
A {trait} {girl} [named|called] {Sn} lived in {town}.
[Long ago|Not long ago|Some time ago], there was a {trait} {girl} in {town}. {He} was called {Sn}.
{Sn} had {hair} hair and [a happy laugh|bright eyes|a small round nose|a soft voice]. Everybody in {town} knew {him}.
#who_loves
{S} loved {hobby}.
{S} loved {hobby} and {game}.
#who
{S} was {trait2} and {trait3}.
Everybody liked {Sn} because {he} was so {trait2}.
{S} was {trait2}, but {fault}.
#who_age
{S} was {age} years old.
#who_kin
{S} lived with {his} {kin}.
#day
It was a {sky} {time} in {month}.
It was {weekday}, and the {time} was {sky}.
It was a {sky} {weekday}.
One {weekday} in {month}, it was {sky}.
#go_first
One {sky} {time}, {s} [went|walked|ran] to {place}.
On {weekday} {time}, {s} [went|walked] to {place}.
One {time} in {month}, {s} [set off for|walked to|went to] {place}.
One {sky} {time}, {s} put on {his} [coat|hat|shoes|boots|jacket] and went to {place}.
After {meal}, {s} [went|walked|ran] to {place}.
It was a {sky} {time}, so {s} [went|walked] to {place}.
One {weekday}, {s} had nothing to do. {He} [walked|went] to {place}.
#go_plain
{Sn} [went|walked|ran] to {place}.
{Sn} [finished|ate] {his} {meal} and [went|walked] to {place}.
{Sn} put on {his} [coat|hat|shoes|boots|jacket] and [went|walked] to {place}.
{Sn} [opened the front door|said goodbye to {his} {kin}] and walked to {place}.
#go
[Then|Soon|After that|A little later], {s} [went|walked|ran|hurried] to {place}.
{S} [walked|hurried|went] [along a narrow road |down the street |]to {place}.
{S} [went|walked] to {place}.
#go_both
[Then they|They|Together they|Soon they] [walked|ran|went|hurried] to {place}.
[They|The two of them] [walked|went] to {place} together.
{Sn} and {O} [went|walked|ran] to {place}.
#anchor
{At}, {s} saw {thing} and {thing3}.
{At}, it was [very |]quiet. {Sn} looked at {thing}.
{S} liked to be {at}. {He} looked at {thing} [for a while|and smiled].
{At}, {s} looked around and saw {thing}.
{At}, there was much to see. {S} saw {thing} and {thing3}.
#meet
{S's} {bond} {O} was [already |]there.
There {s} met {his} {bond} {O}.
{S} saw {his} {bond} {O} and waved.
Soon {his} {bond} {O} came along.
{O}, {his} {bond}, was standing [near a wall|under a tree|in the shade] and waved.
"Hello, {Sn}!" called [a voice|somebody]. It was {his} {bond} {O}.
#meet_later
Just then, {his} {bond} {O} came by.
[After a while|A moment later], {s} met {his} {bond} {O}.
{S} told {his} {bond} {O} [all about it|what had happened].
{S's} {bond} {O} heard {him} and came over.
{S} went to {his} {bond} {O} and asked for help.
#own
{S} had {an_obj} that {he} [loved|liked very much|took everywhere].
{S's} favourite thing [in the world |]was {an_obj}.
{S} owned {an_obj}. It was a present from {his} {kin2}.
{S} had got {an_obj} [for {his} birthday|from {his} {kin2}|for helping {his} {kin2}].
{S} was very proud of {his} {obj}.
Of all {his} things, {s} liked {his} {obj} best.
#thanks
"Thank you, {O}!" said {Sn}.
"Thank you [so much|very much]," said {Sn} [with a smile|happily|softly].
"Oh, thank you!" {s} cried. "You are [a true friend|so kind|very kind]."
{S} thanked {Om} [again and again|with all {his} heart|and shook {Ohis} hand].
#welcome
"You are welcome," said {Sn}.
"I am glad that I could help," {s} said.
{S} [just |only |]smiled. "That is what friends are for."
"Any time," said {Sn} [and laughed|with a smile|].
#sad
{S} [felt sad|was very sad|felt like crying|was close to tears].
A tear ran down {s's} [cheek|face|nose].
"Oh no!" {s} [said|cried|whispered].
"What can I do now?" {s} [said|cried|asked].
{S} did not know what to do.
#glad
{S} was [so happy that {he} danced|very happy|full of joy|so glad].
{S} smiled from ear to ear.
{S} [laughed|jumped for joy|clapped {his} hands].
"[Hooray|Wonderful|How lovely]!" {s} [cried|shouted|said].
#end
That {evening}, {s} went to bed with a [big |happy |]smile.
{Sn} and {O} [walked|went|ran] home together, [happy and tired|and they laughed all the way].
From that day on, {Sn} and {O} were [the best of friends|even better friends].
{S} told {his} {kin} the whole story at [dinner|supper]. It had been a good day.
At home, {s} drew a picture of it all, and {his} {kin} hung it on the wall.
{S} wrote it all down in {his} diary, so that {he} would always remember it.
"[What a day|What an adventure]!" said {Sn} on the way home.
The sun was going down when {Sn} and {O} walked home, [happy|full of new plans|side by side|tired and proud].
{Sn} and {O} promised each other to [meet again soon|come back one day|stay friends], and then they went home.
After that, {Sn} and {O} met every {weekday}, and they always had much to talk about.
"[What will you two do tomorrow|Is there any more of it]?" asked {his} {kin} and smiled when {Sn} told the story.
It was a day that {Sn} [never forgot|would always remember].
When {Sn} lay in bed that {evening}, {he} thought of {O} and smiled.
[In the end, they|At last they] went home, and both of them were happy.
It had been [a wonderful|a good|a lucky|a fine] day.
It had been the best day of the [whole |][week|month|year].
They laughed and went home, [hungry and happy|hand in hand|for it was getting late].
#end_alone
That {evening}, {s} went to bed with a [big |happy |]smile.
{S} told {his} {kin} the whole story at [dinner|supper]. It had been a good day.
It was a day that {Sn} [never forgot|would always remember].
{S} [walked|ran|skipped] home and sang [a little song|all the way].
At home, {s} drew a picture of it all, and {his} {kin} hung it on the wall.
{S} wrote it all down in {his} diary, so that {he} would always remember it.
{S's} {kin} heard the story at [dinner|supper] and smiled.
"[What a day|What an adventure]!" said {Sn} on the way home.
{S} slept well that night and dreamed of [the sea|tall trees|a warm wind|all that had happened].
The sun was going down when {s} walked home, [happy|full of new plans|tired and proud].
{S} came home late, but {he} was [happy|proud|too happy to be tired].
It had been [a wonderful|a good|a lucky|a fine] day.
It had been the best day of the [whole |][week|month|year].
#end_sad
{S} still felt a little sad, but {he} knew that [tomorrow|the next day] would be better, and {he} went home.
In the end, {s} dried {his} tears and went home. {O} held {his} hand all the way.
It had been a hard day, but {Sn} was not alone, and that was the best thing.
#end_funny
They laughed so hard that {Sn} fell [over|off the bench]. Then they went home, still laughing.
Even {Sn} had to laugh, and {he} giggled all the way home.
{Sn} told everybody about it, and the whole town laughed for days. {He} laughed the most.
#moral_care
From then on, {s} [always |]took better care of {his} things.
{S} had learned to be more careful[ with {his} things|].
From that day on, {s} always knew where {his} {noun} was.
#moral_kind
{S} had learned that [a kind word costs nothing|being kind is never a waste of time|help comes back to you].
"It feels good to help," {s} said on the way home.
""")
SKY_SENTENCES = book("\n".join(f"#{word}\n{line}" for word, line in SKY))
_HOMES = tuple(
    f"the {p}"
    for p in (
        "river",
        "mill",
        "park",
        "forest",
        "station",
        "market",
        "school",
        "harbour",
        "meadow",
        "lake",
        "bridge",
        "town square",
    )
)
_HOBBIES = tuple(h for h, _ in lx.HOBBIES)
# Group of sentences -> the word that shows that the first sentence has said it already.
_TOLD_BY = {"who": "was a", "who_loves": "hobby", "who_age": "age", "who_kin": "lived with"}
_HAIR = ("red", "brown", "black", "curly", "long", "short", "straight", "dark", "golden")


_FAULTS = (
    "often late", "a little noisy", "sometimes lazy", "not always tidy", "often too loud", "a bit slow in the morning",
    "not very strong", "sometimes too proud", "easily bored", "never on time", "not good at waiting",
)  # fmt: skip
_SKY_OF = {
    "winter": ("cold", "cold", "cloudy", "windy", "misty", "bright"),
    "summer": ("sunny", "warm", "warm", "bright", "windy", "cloudy"),
    "spring": ("sunny", "warm", "windy", "cloudy", "bright", "misty"),
    "autumn": ("sunny", "misty", "windy", "cloudy", "cold", "bright"),
}
_SEASON_OF = {month: season for season, months in lx.SEASONS.items() for month in months}
_WOMEN = ("grandmother", "mother", "aunt")


def begin(
    t: Tale, *, sky: tuple[str, ...] = (), months: tuple[str, ...] = lx.MONTHS, named: bool = False
) -> None:
    """The opening: who the tale is about. Sets the words that later sentences use.

    sky, months: what the plot allows; named: the hero must be named here, not in the next sentence.
    """
    d = t.d
    d["trait"] = t.pick(TRAITS)
    d["trait2"] = t.pick(TRAITS)
    while d["trait2"] == d["trait"]:
        d["trait2"] = t.pick(TRAITS)
    d["trait3"] = t.pick(TRAITS)
    while d["trait3"] in (d["trait"], d["trait2"]):
        d["trait3"] = t.pick(TRAITS)
    d["fault"] = t.pick(_FAULTS)
    if d["trait"] == "honest":  # the one adjective that wants `an`
        d["trait"] = "fair"
    d["home"] = t.pick(_HOMES)
    d["town"] = t.pick(lx.TOWNS)
    d["hobby"] = t.pick(_HOBBIES)
    d["game"] = t.pick(lx.GAMES)
    d["hair"] = t.pick(_HAIR)
    d["kin"], d["kin2"] = t.pick(KIN), t.pick(KIN)
    while d["kin2"] == d["kin"]:
        d["kin2"] = t.pick(KIN)
    d["kin_he"] = "she" if d["kin"] in _WOMEN else "he"
    d["bond"] = t.pick(BONDS)
    d["age"] = lx.NUMBERS[t.number(5, 12)]
    d["month"] = t.pick(months)
    d["weekday"] = t.pick(lx.WEEKDAYS)
    d["sky"] = t.pick(sky or _SKY_OF[_SEASON_OF[d["month"]]])
    d["meal"] = "breakfast" if t.time == 0 else "lunch"
    d["day_told"] = ""
    d["evening"] = "evening" if t.r() < 0.5 else "night"
    if named or t.r() < 0.86:
        t.say(COMMON["intro"])
        if t.r() < 0.3:
            told = t.parts[-1]
            kinds = [k for k, word in _TOLD_BY.items() if d.get(word, word) not in told]
            t.say(COMMON[kinds[int(t.r() * len(kinds))]])
    else:
        # The tale opens on the day itself; its next sentence names the hero.
        t.say(COMMON["day"])
        d["day_told"] = "yes"


def go_first(t: Tale, *, anchor: float = 0.6) -> None:
    """The hero sets out to the place that `t.scene` chose."""
    t.say(COMMON["go_plain" if t.d["day_told"] else "go_first"])
    t.log.append(("went", t.a.name, t.place))
    if t.r() < 0.18 and t.d["sky"] in SKY_SENTENCES:
        t.say(SKY_SENTENCES[t.d["sky"]])
    t.maybe(anchor, COMMON["anchor"])


def go(t: Tale, who: Who | None = None) -> None:
    """The hero goes on to the next place."""
    t.say(COMMON["go"], who)
    t.log.append(("went", (who or t.a).name, t.place))


def go_both(t: Tale) -> None:
    """Both go on to the next place."""
    t.say(COMMON["go_both"])
    t.log.append(("went", f"{t.a.name} and {t.b.name}", t.place))


def meet(t: Tale, *, later: bool = False) -> None:
    """The second person comes in, with the bond to the hero."""
    t.say(COMMON["meet_later" if later else "meet"])
    t.log.append(("bond", t.b.name, t.d["bond"], t.a.name))


def finish(t: Tale, *, alone: bool = False) -> None:
    """The last sentences, in the mood that was asked for."""
    mood = t.wish.mood
    if mood == "sad" and not alone:
        t.say(COMMON["end_sad"])
    elif mood == "funny" and not alone:
        t.say(COMMON["end_funny"])
    else:
        t.say(COMMON["end_alone" if alone else "end"])
