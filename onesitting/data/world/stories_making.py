"""Stories about making and finding out: cooking, building, things that float."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet

COOKING = book("""
#want
{S} wanted to make {dish} for {his} {kin}.
"Today I will make {dish}," {s} said [to {his} {kin}|proudly|and rolled up {his} sleeves].
It was the birthday of {his} {kin2}, and {s} wanted to make {dish}.
#need
For that, {he} needed {i1}, {i2} and {i3}.
The recipe said: {i1}, {i2} and {i3}.
{S} looked into the cook book. "{I1}, {i2} and {i3}," {he} read.
#missing
There was {i1} and there was {i2}. But there was no {i3}!
{S} put the {i1} and the {i2} on the table. But the {i3} was gone. Who had used it up?
{S} looked in every cupboard, but {he} could not find any {i3}.
#go
{S} went next door to {his} {bond} {O}. "Do you have some {i3}?" {he} asked.
{S} knocked at the door of {his} {bond} {O}. "May I have some {i3}?" {he} asked.
#yes
"Of course," said {Sn} and gave {O} {pack} of {i3}.
"I think so," said {Sn}. {He} looked on a shelf and gave {O} {pack} of {i3}.
{S} gave {O} {pack} of {i3}. "But only if I may [taste it|help you|lick the spoon]," {he} said.
#mix
Back in the kitchen, {s} mixed everything in a [big|blue|deep] bowl.
At home, {s} stirred [and stirred until {his} arm was tired|everything with a wooden spoon].
{S} put everything in a bowl and stirred it {n} times.
#accident
Some flour flew up, and {s's} nose turned white.
{S} dropped a spoon, and there were spots [on the floor|on the wall|everywhere].
{S} tasted it. It needed a little more {i3}.
#bake
Then it went into the oven for {m} minutes.
{S} put it into the hot oven and waited {m} minutes. Nobody may open the oven too soon.
It stayed in the oven for {m} minutes, and the whole house smelled [good|wonderful|sweet].
#burn
{S} forgot the time, and one side got [a little |]black. "That is only the outside," {he} said and cut it off.
It got very dark on one side, because the oven was too hot. {Sn} cut that part off.
#eat
{S's} {kin} took a bite and closed both eyes. "[Delicious|Very, very good|Better than mine]," {kin_he} said.
They all sat around the table and ate {the_dish}. {O} got the [biggest|first|second] piece.
{O} came over too, and they ate {the_dish} until [nothing was left|only crumbs were left].
""")
_DISHES: tuple[tuple[str, str, str, str], ...] = (
    ("an apple pie", "flour", "butter", "sugar"), ("a plum cake", "flour", "milk", "sugar"),
    ("a cheese pie", "flour", "milk", "salt"), ("some honey cookies", "flour", "butter", "honey"),
    ("a carrot cake", "flour", "oil", "honey"), ("some lemon buns", "flour", "milk", "sugar"),
    ("a loaf of bread", "flour", "water", "salt"), ("a cherry pie", "flour", "butter", "cream"),
    ("a potato pie", "flour", "oil", "salt"), ("a nut cake", "flour", "butter", "honey"),
)  # fmt: skip


def cooking(t: Tale) -> None:
    """A dish, something missing, a neighbour, a meal."""
    a, b = t.a, t.b
    begin(t, named=True)
    d = t.d
    dish = _DISHES[t.number(0, len(_DISHES) - 1)]
    d["dish"] = dish[0]
    words = list(dish[1:])
    shift = t.number(0, 2)
    d["i1"], d["i2"], d["i3"] = words[shift], words[(shift + 1) % 3], words[(shift + 2) % 3]
    d["I1"] = d["i1"].capitalize()
    d["the_dish"] = "the " + dish[0].split(" ", 1)[1]
    d["pack"] = t.pick(("a cup", "a bag", "a small jar", "a bowl"))
    d["n"], d["m"] = (
        t.pick(("fifty", "thirty", "twenty", "a hundred")),
        t.pick(("twenty", "thirty", "forty", "fifty")),
    )
    t.noun = dish[0]
    if t.wish.place:
        t.scene((t.wish.place,))
        go_first(t)
        t.parts.append(f"Then {a.name} went home.")
    t.say(COOKING["want"])
    t.log.append(("made", a.name, dish[0]))
    t.say(COOKING["need"])
    t.say(COOKING["missing"])
    t.log.append(("missing", a.name, d["i3"], dish[0]))
    t.say(COOKING["go"])
    t.log.append(("bond", b.name, d["bond"], a.name))
    t.say(COOKING["yes"], b)
    t.log.append(("gave_food", b.name, a.name, f"{d['pack']} of {d['i3']}"))
    t.maybe(0.6, COMMON["thanks"], a)
    t.para()
    t.say(COOKING["mix"], a)
    t.maybe(0.5, COOKING["accident"], a)
    t.say(COOKING["bake"], a)
    t.log.append(("minutes", the(dish[0]), d["m"]))
    t.maybe(0.35, COOKING["burn"], a)
    t.say(COOKING["eat"], a)
    finish(t)


def the(phrase: str) -> str:
    """The same thing with `the`: `an apple pie` -> `the apple pie`."""
    return "the " + phrase.split(" ", 1)[1]


BUILDING = book("""
#want
{S} wanted to build {work}.
"Let us build {work}," said {Sn}.
{S} had a plan: {he} wanted to build {work}.
#friend
{S's} {bond} {O} wanted to help.
{S} asked {his} {bond} {O} to help, and {Ohe} said yes at once.
#gather
They collected {stuff} and {stuff2}.
{S} found {stuff}, and {O} brought {stuff2}.
They needed {stuff} and {stuff2}. It took [an hour|the whole {time}] to find everything.
#draw
{S} drew it on paper first. It looked [very easy|like a hat|great] on paper.
{S} [measured everything twice|made a plan with a pencil].
#work
{S} held the parts together while {O} [looked at the plan|told {him} what to do|put everything in its place].
They worked [hard|without a break] until {noon}.
They pushed and pulled and lifted. {Sn} hurt {his} thumb, but only a little.
#fail
But when it was finished, {bad}.
It was ready. But then {bad}!
"Finished!" said {Sn}. At that moment, {bad}.
#think
"Why did that happen?" asked {Sn}. "Because {why}," {O} said.
{S} thought about it. "I know why," {he} said. "It is because {why}."
#better
So they [tried again|started again] and {fix}.
They took a deep breath, went back to work and {fix}.
{S} did not give up. Together they {fix}.
#done
This time it was [perfect|right|strong]. {good}
Now it held. {good}
And it worked! {good}
#name
They gave it a name and called it {title}.
"It needs a name," said {Sn}. They called it {title}.
""")
# what, two materials, what goes wrong, why, how it is put right, what it does in the end
_WORKS: tuple[tuple[str, ...], ...] = (
    ("a raft", "long logs", "a rope", "the raft came apart in the water", "the knots are too loose", "tied every knot twice", "It floated like a duck."),
    ("a bird house", "thin boards", "some nails", "the roof fell off", "the nails are too short", "took longer nails", "Two days later, a robin lived in it."),
    ("a tree house", "strong boards", "a long rope", "the floor moved under their feet", "it stands on one branch only", "tied it to a second branch", "From up there, they could see the whole town."),
    ("a tower of stones", "flat stones", "wet clay", "the tower fell down", "the big stones are on top", "put the big stones at the bottom", "It was as tall as a man."),
    ("a sand castle", "buckets of wet sand", "small shells", "a wave took it away", "it is too near the water", "built it higher on the beach", "No wave came near it."),
    ("a little bridge", "two long boards", "heavy stones", "the boards slipped into the water", "nothing holds the ends", "put heavy stones on both ends", "Even the baker could walk over it."),
    ("a cart", "four wheels", "an old box", "a wheel rolled away", "the wheel has no pin", "put a pin into every wheel", "It rolled down the hill like the wind."),
    ("a snow house", "blocks of snow", "cold water", "the roof fell in", "the roof is too flat", "made the roof round", "Inside it was quiet and blue."),
    ("a kite", "thin sticks", "strong paper", "it turned in circles and fell down", "the kite has no tail", "tied a long tail to it", "It climbed higher than the church."),
    ("a swing", "a smooth board", "two ropes", "the swing hung to one side", "one rope is longer", "made the ropes equal", "They could swing up to the leaves."),
    ("a dam", "many stones", "mud and grass", "the water ran through it", "there are holes between the stones", "filled the holes with mud", "Behind it, the water became a little lake."),
)  # fmt: skip
_TITLES = (
    "the Sea Queen",
    "Old Tom",
    "the Lion",
    "the Castle",
    "the Happy Snail",
    "Number One",
    "the Flying Potato",
    "Big Ben",
)


_SEASONAL = {"a snow house": ("winter", ("cold",)), "a sand castle": ("summer", ("warm", "sunny"))}


def building(t: Tale) -> None:
    """Two friends build something; it fails for a reason; they put it right."""
    work = _WORKS[t.number(0, len(_WORKS) - 1)]
    if work[0] in _SEASONAL:
        season, sky = _SEASONAL[work[0]]
        begin(t, sky=sky, months=lx.SEASONS[season])
    else:
        begin(t)
    places = {"a raft": ("river", "lake"), "a tower of stones": ("river", "beach"), "a sand castle": ("beach",),
              "a little bridge": ("river", "meadow"), "a dam": ("river",), "a cart": ("hill", "farm")}  # fmt: skip
    t.scene(places.get(work[0], ("garden", "meadow", "farm", "orchard")))
    d = t.d
    d["work"], d["stuff"], d["stuff2"], d["bad"], d["why"], d["fix"], d["good"] = work
    d["title"], d["noon"] = t.pick(_TITLES), t.pick(("noon", "lunch")) if t.time == 0 else "the evening"
    t.noun = work[0]
    t.say(BUILDING["want"])
    t.log.append(("built", t.a.name, work[0]))
    t.say(BUILDING["friend"])
    t.log.append(("bond", t.b.name, d["bond"], t.a.name))
    t.say(COMMON["go_both"])
    t.log.append(("went", f"{t.a.name} and {t.b.name}", t.place))
    t.say(BUILDING["gather"])
    t.maybe(0.5, BUILDING["draw"])
    t.say(BUILDING["work"])
    t.para()
    t.say(BUILDING["fail"])
    t.say(BUILDING["think"])
    t.log.append(("why_failed", d["why"]))
    t.say(BUILDING["better"])
    t.log.append(("fixed", d["fix"]))
    t.say(BUILDING["done"])
    t.maybe(0.4, BUILDING["name"])
    finish(t)


FLOATING = book("""
#ask
{S} threw a little stick into the water. It stayed on top. "Why does it not go down?" {he} asked.
"Does everything float?" {s} asked.
{S} wanted to know which things float and which things sink.
#idea
"Let us [try it|find out]," said {Sn}. They collected {n} things and put them in a row.
"You can only know if you try," said {Sn}. So they collected {n} things.
#guess
First they guessed. {Sn} said that {af} would sink.
"I think that {as} will float," said {Sn}.
#float
First they put {af} into the water. It floated[ like a small boat|], because it was [made of {m1}|light].
{S} laid {af} on the water. It floated.
#sink
Then came {as}. It sank [at once|to the bottom|like a stone], because it was [made of {m2}|heavy].
Then {s} put {as} into the water. It sank [at once|to the bottom].
#wet
{S} leaned [forward|over the water] too far, and splash! Now {he} was wet too. "{Sn} floats!" laughed {O}.
{S} got {his} sleeves wet up to the elbow.
#rule
"So light things float and heavy things sink," {s} said.
{S} wrote it down: wood floats, and iron sinks.
"It is not the size that counts," said {Sn}. "A big log floats, but a small nail sinks."
#back
{S} fished the {s1} out again with a [stick|net|long branch].
They got everything out again with a net and dried it in the sun.
""")
_FLOATERS = tuple(
    (k.name, k.materials[0])
    for k in lx.OBJECTS.values()
    if k.floats
    and k.name not in ("ladder", "chair", "sled", "guitar", "drum")
    and k.materials[0] in ("wood", "straw", "paper", "wax")
)
_SINKERS = tuple(
    (k.name, k.materials[0])
    for k in lx.OBJECTS.values()
    if not k.floats and k.materials[0] in ("iron", "brass", "clay", "glass", "silver") and not k.fragile
)


def floating(t: Tale) -> None:
    """Two children find out what floats and what sinks."""
    a, b = t.a, t.b
    begin(t)
    t.scene(("river", "lake", "beach", "harbour"))
    d = t.d
    (d["f1"], m1), (d["s1"], m2) = (
        _FLOATERS[t.number(0, len(_FLOATERS) - 1)],
        _SINKERS[t.number(0, len(_SINKERS) - 1)],
    )
    d["m1"], d["m2"], d["n"] = m1, m2, lx.number_word(t.number(4, 12))
    d["af"], d["as"] = lx.with_article(d["f1"]), lx.with_article(d["s1"])
    t.noun = f"{d['f1']} {d['s1']}"
    go_first(t)
    meet(t)
    t.say(FLOATING["ask"], a)
    t.say(FLOATING["idea"], b)
    t.log.append(("count_things", d["n"]))
    t.maybe(0.5, FLOATING["guess"], a)
    t.para()
    t.say(FLOATING["float"], a)
    t.log.append(("floated", d["f1"]))
    t.say(FLOATING["sink"], b)
    t.log.append(("sank", d["s1"]))
    t.maybe(0.5, FLOATING["wet"], a if a.girl != b.girl else b)
    t.say(FLOATING["rule"], b)
    t.say(FLOATING["back"], a)
    finish(t)
