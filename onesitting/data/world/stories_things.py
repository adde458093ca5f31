"""Stories about things: lost, given, broken, borrowed.

Each function tells one shape of story on a `Tale`: it moves the state (who has what, who is where) and says so.
"""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet

SMALL: tuple[str, ...] = tuple(
    k.name for k in lx.OBJECTS.values() if k.name not in ("ladder", "chair", "bicycle", "sled", "saw", "top")
)
EVERYWHERE: tuple[str, ...] = tuple(lx.PLACES)
OUTDOORS: tuple[str, ...] = tuple(p.name for p in lx.PLACES.values() if p.outdoors)
_SHOPS_PLACES = ("market", "town square", "harbour", "station")
FRAGILE: tuple[str, ...] = (
    "cup",
    "plate",
    "bowl",
    "teapot",
    "jar",
    "vase",
    "lamp",
    "mirror",
    "lantern",
    "flower pot",
    "clock",
)
_SPOTS_OUT = (
    "under a bush", "behind a tree", "in the tall grass", "next to a big stone", "under a bench",
    "behind a wall",
    "on top of a fence", "under some leaves", "in a dry ditch", "between two rocks", "beside the path",
    "near an old gate",
)  # fmt: skip
_SPOTS_IN = (
    "under a chair", "behind the door", "on a high shelf", "under a table", "in a dark corner",
    "behind a curtain",
    "next to a big box", "on the window sill", "between two sacks", "on the stairs",
)  # fmt: skip


def spot(t: Tale) -> str:
    """A hiding place that fits where the tale is; also sets {spot}."""
    t.d["spot"] = t.pick(_SPOTS_OUT if lx.PLACES[t.place].outdoors else _SPOTS_IN)
    return t.d["spot"]


LOST = book("""
#lose
{S} put {his} {noun} down to look at {thing2}. Then {he} forgot [all |]about it.
{S} put the {noun} [down|on the ground] for a moment to [tie {his} shoe|drink some water|watch a bird|rest].
{S} was so busy looking at {thing2} that {he} dropped {his} {noun} and did not hear it fall.
{S} laid the {noun} beside {him} and closed {his} eyes for a moment.
#gone
When {s} turned around, the {noun} was gone.
Later, {s} reached for the {noun}, but it was not there.
[Suddenly|All at once], {s} saw that {his} {noun} was [gone|missing|no longer there].
When it was time to go, {s} could not find the {noun}.
#look
{S} looked [here and there|left and right|up and down], but {he} could not see it.
{S} looked [left and right|everywhere], but there was no {noun}.
{S} searched [for a long time|until {his} legs were tired], but found only [a leaf|an old nail|a bit of string|some dust|two pebbles].
#tell
"I have lost my {obj}," {s} said. "Have you seen it?"
"My {noun} is gone!" {s} told {Om}. "I had it a moment ago."
{S} told {Om} about the {obj}.
"Please help me," said {Sn}. "I cannot find my {noun}."
#offer
"[Do not worry|Do not cry|Cheer up]," said {Sn}. "[We will find it|Let us look together|Four eyes see more than two]."
"When did you have it last?" asked {Sn}. "[Think|Think hard|Let us go back] and look [again|there] together."
{S} took {Ohis} hand. "Let us [look for it|search together]," {he} said.
{S} thought for a moment. "I know how to look for lost things," {he} said. "Slowly."
#search
They looked [under every leaf|in every corner|high and low|everywhere].
They searched [side by side|slowly, step by step|for an hour].
{S} looked on the left and {O} looked on the right.
#found_o
{S} looked {spot}. There was the {obj}!
"Look!" called {Sn}. The {obj} lay {spot}.
Then {s} saw something {col} {spot}. It was the {noun}!
At last, {s} found the {noun} {spot}.
#back
{S} picked up the {noun} and gave it to {O}.
{S} [took the {noun} and |]brought it to {O}. "Here it is," {he} said.
{S} picked it up, wiped off the dust and handed it to {O}.
#found_self
{S} picked it up and held it tight.
{S} hugged the {noun} as if it were [an old friend|a baby].
{S} wiped the dust off the {noun} and put it [away safely|under {his} arm].
""")


def lost_and_found(t: Tale) -> None:
    """The hero loses a thing; a friend helps to find it."""
    a, b = t.a, t.b
    begin(t)
    t.scene(EVERYWHERE)
    noun = t.thing(SMALL, a)
    t.d["col"] = next((e[2] for e in t.log if e[0] == "colour"), "small")
    t.say(COMMON["own"])
    go_first(t)
    t.say(LOST["lose"])
    t.lose(a, noun)
    t.say(LOST["gone"])
    t.log.append(("feel", a.name, "sad", f"{a.he} had lost {a.his} {noun}", "lost"))
    t.maybe(0.6, COMMON["sad"])
    t.maybe(0.6, LOST["look"])
    t.para()
    meet(t, later=t.chance(0.4))
    t.say(LOST["tell"])
    t.say(LOST["offer"], b)
    t.maybe(0.7, LOST["search"])
    finder = b if t.chance(0.65) else a
    where = spot(t)
    t.say(LOST["found_o"], finder)
    t.find(finder, noun, where)
    if finder is b:
        t.say(LOST["back"], b)
        t.give(b, a, noun)
        t.say(COMMON["thanks"])
        t.maybe(0.5, COMMON["welcome"], b)
    else:
        t.say(LOST["found_self"])
        t.maybe(0.6, COMMON["thanks"])
    finish(t)
    t.maybe(0.35, COMMON["moral_care"])


GIFT = book("""
#birthday
[Tomorrow|The next day] was the birthday of {his} {bond} {O}.
{S} knew that {his} {bond} {O} [would have a birthday soon|had a birthday that week].
{S} wanted to make {his} {bond} {O} happy, for {Ohe} had been ill.
#coins
{S} had {coins} coins in {his} [pocket|purse|little bag].
{S} counted {his} money. There were {coins} coins.
For weeks, {s} had saved {his} money. Now {he} had {coins} coins.
#want
"I will buy a present for {Om}," {s} said.
"What would {O} like?" {s} asked {his} {kin}. "Something [useful|pretty|special]," was the answer.
{S} thought about it all morning. What would make {O} [happy|smile]?
#see
{At}, {s} saw {an_obj} [on a table|in a shop window|on a stall|between many other things].
{At}, an old [man|woman] was selling all kinds of things. {Sn} liked {an_obj} [best|most of all].
{At}, {s} looked at many things. Then {he} saw {an_obj}.
#ask
"How much is the {noun}?" {s} asked. "It costs {price} coins," said the [seller|shopkeeper].
The {noun} cost {price} coins.
"{Price} coins for the {noun}," said the [seller|shopkeeper].
#buy
{S} paid and bought the {noun}. Now {he} had {left} left.
{S} counted out the money and bought the {noun}. {Left} {was} left.
{S} bought the {noun} and put {left} back into {his} pocket.
#wrap
{S} wrapped the {noun} in [blue|white|brown|yellow] paper and tied it with a ribbon.
At home, {s} put the {noun} in a box and drew [a star|a heart|a flower|a bird] on it.
#visit
The next day, {s} knocked on the door of {O}.
The next morning, {s} went to see {O}.
On the birthday, {s} was the first to ring the bell of {O}.
#give
{S} gave {O} the {noun}. "This is for you," {he} said.
"I have something for you," said {Sn} and gave {O} the {obj}.
{S} handed the {noun} to {O} with a [shy |proud |]smile.
#open
{S} opened {his} eyes wide. "[It is beautiful|I love it|How pretty it is|It is just what I wanted]!" {he} said.
{S} held the {noun} up to the light. "[It is perfect|It is lovely]!" {he} cried.
"For me?" asked {Sn}. "I have [always wanted|never had] {an_art} like this!"
#after
They ate [cake|pie|buns] and talked [all afternoon|until it got dark].
They sat [together |side by side |]and told each other [jokes|stories|riddles].
""")


def coins(n: int) -> str:
    """`one coin`, `seven coins`."""
    return "one coin" if n == 1 else f"{lx.number_word(n)} coins"


def set_money(t: Tale, price: int, extra: int) -> None:
    """Sets the words for a purse, a price and what is left."""
    d = t.d
    d["price"], d["coins"] = lx.number_word(price), lx.number_word(price + extra)
    d["left"] = coins(extra)
    d["Price"], d["Left"] = d["price"].capitalize(), d["left"].capitalize()
    d["was"] = "was" if extra == 1 else "were"


def gift(t: Tale) -> None:
    """The hero buys a present for a friend: prices and what is left."""
    a, b = t.a, t.b
    begin(t, named=True)
    t.scene(_SHOPS_PLACES)
    noun = t.thing(SMALL, None)
    price, extra = t.number(2, 12), t.number(1, 6)
    set_money(t, price, extra)
    t.say(GIFT["birthday"])
    t.log.append(("bond", b.name, t.d["bond"], a.name))
    t.maybe(0.5, GIFT["want"])
    t.say(GIFT["coins"])
    t.log.append(("had_coins", a.name, t.d["coins"]))
    go_first(t, anchor=0)
    t.say(GIFT["see"])
    t.say(GIFT["ask"])
    t.log.append(("price", noun, t.d["price"]))
    t.say(GIFT["buy"])
    t.holder[noun] = a
    t.log.append(("bought", a.name, noun))
    t.log.append(("left", a.name, t.d["left"]))
    t.para()
    t.maybe(0.6, GIFT["wrap"])
    t.say(GIFT["visit"])
    t.say(GIFT["give"])
    t.give(a, b, noun)
    t.say(GIFT["open"], b)
    t.maybe(0.6, COMMON["thanks"], b)
    t.maybe(0.5, GIFT["after"])
    finish(t)


BREAKING = book("""
#break
{S} wanted to carry the {noun} to the [table|window|kitchen], but {his} foot slipped. The {noun} fell on the floor and broke.
{S} was [running|dancing|jumping] around when {his} [arm|elbow|hand] hit the {noun}. It fell down and broke.
A ball flew through the room and hit the {noun}. It fell down and broke. {Sn} had thrown that ball.
{S} held the {noun} in wet hands. It slipped, fell on the stone floor and broke.
#belongs
In the [kitchen|front room|hall] of the house stood {an_obj}. It belonged to {his} {kin2}.
{S's} {kin2} had {an_obj} that was [very old|older than the house|a present from an old friend].
There was {an_obj} on the shelf at home. It belonged to {his} {kin2}.
#pieces
There were {n} pieces on the floor.
Now it lay there in {n} pieces.
{S} counted {n} pieces.
#hide
First, {s} wanted to hide the pieces under the [bed|carpet|stairs].
"Nobody has seen it," {s} thought. But that did not feel right.
For a moment, {s} thought about saying nothing.
#truth
But {s} [was brave|took a deep breath] and told the truth. "I broke the {noun}," {he} said. "I am sorry."
In the end, {s} went to {his} {kin2}. "I broke your {noun}," {he} said. "I am very sorry."
Then {s} told {his} {kin2} what had happened. "It was my fault," {he} said.
#forgive
"Thank you for telling me," said {his} {kin2}. "[A thing is only a thing|Things can break|We all drop things]. [A true word is worth more|The truth is worth more|Being honest is harder]."
{S's} {kin2} was quiet for a moment and then [smiled|gave {him} a hug]. "It is good that you told me."
"I was [angry|sad] for a moment," said {his} {kin2}, "but I am glad that you told me the truth."
#to_b
"My {bond} {O} is good at [repairing|mending] things," {s} said.
{S} put the pieces into a [box|bag] and took them to {his} {bond} {O}, who could mend almost anything.
{S} ran to {his} {bond} {O}, who had [a pot of strong glue|clever hands|good glue].
#mend
{S} glued the pieces together, [one after the other|slowly and with care|from the bottom to the top].
{S} put the pieces on the table and glued them together. {He} did not hurry.
Piece by piece, {s} glued it together [again|while {O} held the pieces].
#dry
They waited until the glue was dry.
"Now we must wait," {s} said. The glue needed [an hour|a long time|the whole night] to dry.
#whole
Soon the {noun} was whole again. Only a thin line [showed|could be seen].
Then the {noun} was mended. It looked [almost as good as new|a little funny, but it was whole].
""")


def broken(t: Tale) -> None:
    """The hero breaks something, tells the truth, and it is mended."""
    a, b = t.a, t.b
    begin(t, named=True)
    noun = t.thing(FRAGILE, None)
    t.d["n"] = lx.number_word(t.number(3, 9))
    t.say(BREAKING["belongs"])
    t.log.append(("belongs", noun, f"{a.name}'s {t.d['kin2']}", t.d["kin2"]))
    t.para()
    t.parts.append(f"One {t.d['weekday']}, something happened.")
    t.say(BREAKING["break"])
    t.broken.add(noun)
    t.log.append(("broke", a.name, noun))
    t.maybe(0.6, BREAKING["pieces"])
    if "pieces" in t.parts[-1]:
        t.log.append(("count_pieces", noun, t.d["n"]))
    t.maybe(0.5, COMMON["sad"])
    t.maybe(0.6, BREAKING["hide"])
    t.say(BREAKING["truth"])
    t.say(BREAKING["forgive"])
    t.para()
    t.say(BREAKING["to_b"])
    t.log.append(("bond", b.name, t.d["bond"], a.name))
    t.say(BREAKING["mend"], b)
    t.log.append(("mended", b.name, noun))
    t.maybe(0.5, BREAKING["dry"], b)
    t.say(BREAKING["whole"])
    t.broken.discard(noun)
    t.maybe(0.6, COMMON["thanks"])
    finish(t)


BORROWING = book("""
#ask
"May I borrow your {noun}?" asked {Sn}. "I will bring it back {when}."
"Could you lend me the {noun}?" {s} asked. "I need it until {when2}."
{S} looked at the {noun}. "May I take it home until {when2}?" {he} asked.
#lend
{S} [thought for a moment|nodded] and lent the {noun} to {O}.
"[Of course|Yes, but take care of it]," said {Sn} and gave the {noun} to {O}.
"Here you are," said {Sn} and handed {O} the {noun}.
#wait
But {when} came, and {O} did not bring it back.
{S} waited and waited, but {O} did not come.
{When} came and went. There was no {noun} and no {O}.
#cross
{S} was [a little |very |]angry. "{O} has forgotten me," {he} thought.
"That was the last time that I lend anything," {s} said to {him}self.
{S} walked up and down the room. "A promise is a promise," {he} [thought|said].
#why
{S} came [at last|the day after]. "I am so sorry," {he} said. "I was in bed with a [cold|fever|bad foot]."
Then {s} stood at the door, all out of breath. "Please forgive me," {he} said. "My {pet} ran away and I had to look for it."
The day after, {s} knocked on the door. "I wanted to clean the {noun} first," {he} said. "It fell into the mud."
#extra
{S} gave the {noun} back to {O}, and with it [a bag of nuts|a jar of jam|a small cake|a bunch of flowers].
{S} handed the {noun} back. It was [clean and shiny|brighter than before|as clean as new].
{S} put the {noun} into {O's} hands and [said sorry once more|looked at the floor].
#fine
"[It does not matter|All is well|I was angry, but now I understand]," said {Sn}. "You came, and that is what counts."
{S} [laughed|smiled]. "Next time, [just send me a note|tell me sooner]," {he} said.
{S} was not angry any more. "Come in and have [some tea|a biscuit|some soup]," {he} said.
""")


def borrowed(t: Tale) -> None:
    """A thing is lent, comes back late, and there was a reason."""
    a, b = t.a, t.b
    begin(t)
    t.scene(EVERYWHERE)
    noun = t.thing(SMALL, a)
    day = t.pick(lx.WEEKDAYS)
    while day == t.d["weekday"]:
        day = t.pick(lx.WEEKDAYS)
    t.d["when"], t.d["When"], t.d["when2"] = f"on {day}", day, day
    t.d["pet"] = t.pick(("dog", "cat", "rabbit", "hen", "goat", "donkey"))
    t.say(COMMON["own"])
    go_first(t)
    meet(t)
    t.say(BORROWING["ask"], b)
    t.say(BORROWING["lend"], a)
    t.give(a, b, noun)
    t.log.append(("promise", b.name, noun, f"on {day}"))
    t.para()
    t.d["when"] = day
    t.say(BORROWING["wait"])
    t.maybe(0.8, BORROWING["cross"])
    t.d["O's"] = a.name + "'s"
    t.say(BORROWING["why"], b)
    t.say(BORROWING["extra"], b)
    t.give(b, a, noun)
    t.say(BORROWING["fine"], a)
    t.log.append(("feel", a.name, "angry", f"{b.name} did not bring the {noun} back in time", "bring"))
    finish(t)
