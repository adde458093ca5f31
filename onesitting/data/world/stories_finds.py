"""Stories about things that are found, stolen by an animal, or bought with a list."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet
from onesitting.data.world.stories_things import EVERYWHERE, OUTDOORS, SMALL, coins, set_money, spot

FINDING = book("""
#see
{At}, {s} saw something {spot}. It was {an_obj}!
There, {spot}, lay {an_obj}.
Something lay {spot}. {S} bent down. It was {an_obj}.
#take
{S} picked up the {noun} and looked around, but nobody was there.
{S} took the {noun} in {his} hand. "Whose is it?" {he} [asked|wondered].
"Somebody must miss this," said {Sn} and picked up the {noun}.
#keep
"I could keep it," {s} thought. But then {he} thought of the person who had lost it.
It was so [nice|pretty|fine] that {s} wanted to keep it. "No," {he} said to {him}self, "it is not mine."
#wait
{S} waited [for an hour|for a long time], but nobody came.
{S} asked [everybody|an old man|a woman with a pram|two children], but nobody knew [whose it was|the {noun}].
#meet
[Then|At last], {s} saw a {Ogirl} who was [crying|looking at the ground|walking slowly with a sad face].
A {Ogirl} came running. {He2} looked [everywhere|sad|very worried].
#who
"I am {Sn}," said the {girl2}. "I have lost [something|my {noun}]. I was here [this morning|an hour ago|yesterday]."
"My name is {Sn}," said the {girl2}. "I am looking for [something|my {noun}]. It was a present from my {kin2}."
#test
"What does it look like?" asked {Sn}. "It is {an_obj}," said {O}.
"What have you lost?" {s} asked. "{An_obj}," said {O}.
#give
{S} gave the {noun} to {O}. "[Here it is|I found it {spot}|It was here {spot}]," {he} said.
{S} smiled and handed {O} the {noun}.
#reward
{S} gave {O} [an apple|a sweet bun|a shiny button|a warm cookie|a small silver bell] to say thank you.
"You are an honest {girl}," said {Sn}. "May I be your friend?"
{S} wanted to give {O} [a coin|two coins|three coins], but {Ohe} shook {Ohis} head. "I was glad to do it," {Ohe} said.
""")


def finder(t: Tale) -> None:
    """The hero finds a thing and finds its owner."""
    a, b = t.a, t.b
    begin(t)
    t.scene(EVERYWHERE)
    noun = t.thing(SMALL, None, colour=0.9)
    t.d["He2"], t.d["girl2"] = b.He, b.kid
    t.d["An_obj"] = t.d["an_obj"].capitalize()
    go_first(t, anchor=0.3)
    where = spot(t)
    t.say(FINDING["see"])
    t.say(FINDING["take"])
    t.find(a, noun, where)
    t.maybe(0.5, FINDING["keep"])
    t.maybe(0.6, FINDING["wait"])
    t.para()
    t.say(FINDING["meet"])
    t.say(FINDING["who"], b)
    t.log.append(("owner", noun, b.name))
    t.say(FINDING["test"], a)
    t.say(FINDING["give"], a)
    t.give(a, b, noun)
    t.say(COMMON["thanks"], b)
    t.maybe(0.6, FINDING["reward"], b)
    finish(t)
    t.maybe(0.3, COMMON["moral_kind"][:1])


STEALING = book("""
#steal
[Suddenly|Just then], {an_acol} {animal} ran up, took the {noun} and ran away with it.
[Suddenly|All at once], {an_acol} {animal} came [out of nowhere|from behind a wall], grabbed the {noun} and was gone.
But {s} did not see the {acol} {animal} behind {him}. It took the {noun} and ran.
#shout
"Stop!" {s} shouted. "That is my {noun}!"
"Come back!" cried {Sn}. "You cannot eat {an_art}!"
{S} ran after the {animal}, but it was too fast.
#up
The {animal} stopped {spot} and [looked back|would not come out|did not move].
The {animal} sat down {spot} and kept the {noun} between its feet.
#idea
"Wait," said {Sn}. "I know what {animals} like to eat. They like {food}."
"We must not chase it," said {Sn}. "{Animals} love {food}. Let us get some."
{S} had an idea. "Let us give it some {food}," {he} said.
#bait
{S} put some {food} on the ground and waited.
{S} held out some {food} and [stood very still|spoke softly].
{S} laid a little heap of {food} on a stone and stepped back.
#eat
The {animal} [smelled the food|came closer and closer], dropped the {noun} and ate the {food}.
Step by step, the {animal} came back. It let go of the {noun} and ate the {food}.
The {animal} looked at the {food}, then at the {noun}. It dropped the {noun} and ate [all of |]the {food}.
#get
{S} quickly picked up the {noun}. It was [wet|dirty|a little wet], but whole.
Now {s} could take the {noun} back. There was [only a small scratch|one tooth mark|nothing wrong with it].
#bye
The {animal} {sound_past} and [went its way|walked off|looked very pleased].
"You little thief," {s} said to the {animal} and [laughed|had to smile].
""")
THIEVES = ("dog", "goat", "fox", "donkey", "pig", "goose", "squirrel", "cat", "bear", "horse")
SOUND_PAST = {
    "barks": "barked", "meows": "meowed", "squeaks": "squeaked", "talks": "talked", "neighs": "neighed",
     "moos": "mooed",
    "bleats": "bleated", "grunts": "grunted", "clucks": "clucked", "quacks": "quacked", "honks": "honked",
    "brays": "brayed", "growls": "growled", "howls": "howled", "chatters": "chattered",
     "snuffles": "snuffled",
    "hoots": "hooted", "croaks": "croaked", "sings": "sang", "calls softly": "called softly",
     "buzzes": "buzzed",
    "caws": "cawed", "hisses": "hissed", "whistles": "whistled", "cries": "cried",
}  # fmt: skip


def set_animal(t: Tale, kinds: tuple[str, ...]) -> lx.AnimalKind:
    """Chooses an animal: sets {animal}, {animals}, {acol}, {food}, {sound_past}."""
    name = t.wish.animal if t.wish.animal in kinds else t.pick(kinds)
    kind = lx.ANIMALS[name]
    d = t.d
    d["animal"], d["animals"], d["Animals"] = name, kind.plural, kind.plural.capitalize()
    d["acol"], d["food"] = t.pick(kind.colours), t.pick(kind.foods)
    d["an_acol"] = lx.with_article(d["acol"])
    d["sound_past"] = SOUND_PAST.get(kind.sound, "looked around")
    return kind


def animal_thief(t: Tale) -> None:
    """An animal runs off with a thing and gives it back for its favourite food."""
    a, b = t.a, t.b
    begin(t)
    t.scene(OUTDOORS)
    noun = t.thing(SMALL, a)
    set_animal(t, THIEVES)
    d = t.d
    while d["acol"] == d["obj"].split()[0]:
        d["acol"], d["an_acol"] = "big", "a big"
    t.say(COMMON["own"])
    go_first(t)
    meet(t)
    t.say(STEALING["steal"])
    t.lose(a, noun)
    t.log.append(("stole", d["animal"], noun))
    t.say(STEALING["shout"])
    where = spot(t)
    t.say(STEALING["up"])
    t.para()
    t.say(STEALING["idea"], b)
    t.say(STEALING["bait"], b)
    t.say(STEALING["eat"])
    t.log.append(("ate", d["animal"], d["food"]))
    t.say(STEALING["get"])
    t.find(a, noun, where)
    t.maybe(0.6, STEALING["bye"])
    t.maybe(0.5, COMMON["thanks"])
    finish(t)


MARKET = book("""
#list
{S's} {kin} gave {him} {coins} coins. "Please buy {item} and {item2}," {kin_he} said.
{S's} {kin} needed {item} and {item2}. "Here are {coins} coins," {kin_he} said.
{S} was to buy {item} and {item2} for {his} {kin}. {He} had {coins} coins.
#first
{At}, {s} found {item} for {p1}.
{At}, a friendly [woman|man] sold {him} {item} for {p1}.
{At}, {s} bought {item}. It cost {p1}.
#second
Then {s} asked for {item2}. That cost {p2}.
Next, {s} bought {item2} for {p2}.
For {item2}, {s} paid {p2}.
#sum
{S} counted. Together that was {total}, so {left} {was} left.
"That makes {total}," {s} said. So {he} still had {left}.
{S} looked into {his} hand. {Left} {was} left.
#meet
On the way home, {s} met {his} {bond} {O}, who looked [hungry|cold and hungry|tired].
Near the last stall, {s} saw {his} {bond} {O}. {Ohe2} had forgotten {Ohis} lunch.
#share
With the money that was left, {s} bought a [bun|cookie|roll] and gave half of it to {O}.
{S} thought for a moment. Then {he} bought a [bun|cookie|roll] for one coin and shared it with {O}.
#home
At home, {his} {kin} [looked into the basket|counted everything] and nodded. "Well done, {Sn}."
{S} brought everything home. "You forgot nothing," said {his} {kin}. "[Well done|I am proud of you]."
""")
_GOODS = tuple(f for f in lx.FOODS.values() if f.maker not in ("inn",))


def market_day(t: Tale) -> None:
    """Shopping with a list: two prices, a sum, and a coin to share."""
    begin(t)
    t.scene(("market",))
    d = t.d
    i = t.number(0, len(_GOODS) - 1)
    one, two = _GOODS[i], _GOODS[(i + t.number(1, len(_GOODS) - 1)) % len(_GOODS)]
    p1, p2, extra = t.number(1, 7), t.number(1, 7), t.number(1, 5)
    set_money(t, p1 + p2, extra)
    d["item"], d["item2"], d["p1"], d["p2"], d["total"] = (
        one.one,
        two.one,
        coins(p1),
        coins(p2),
        coins(p1 + p2),
    )
    d["Ohe2"] = t.b.He
    t.noun = one.name
    t.say(MARKET["list"])
    t.log.append(("had_coins", t.a.name, d["coins"]))
    go_first(t, anchor=0)
    t.say(MARKET["first"])
    t.say(MARKET["second"])
    t.log += [("cost", one.one, d["p1"]), ("cost", two.one, d["p2"]), ("left_both", t.a.name, d["left"])]
    t.log.append(("total", d["total"]))
    t.say(MARKET["sum"])
    t.para()
    t.say(MARKET["meet"])
    t.log.append(("bond", t.b.name, d["bond"], t.a.name))
    t.say(MARKET["share"])
    t.log.append(("shared", t.a.name, t.b.name))
    t.maybe(0.6, COMMON["thanks"], t.b)
    t.say(MARKET["home"])
    finish(t, alone=True)
