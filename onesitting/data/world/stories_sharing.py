"""Stories about a snowman, a letter without a name, and fair shares."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import CHARACTERS, Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet
from onesitting.data.world.stories_things import EVERYWHERE, OUTDOORS, SMALL, spot

SNOWMAN = book("""
#snow
In the night, it had snowed. Everything was white, and {s} could not wait to go out.
It was winter, and there was snow [on every roof|up to the knees|everywhere].
#build
They rolled {n} big balls of snow and made a snowman. It had a carrot for a nose and {buttons} for eyes.
They built a snowman {at}. For its eyes, they took {buttons}, and for its nose a carrot.
#hat
{S} put {an_obj} on it. Now it looked [like the teacher|very proud|like a king].
"It needs something," said {Sn} and gave it {an_obj}.
#name
They called it {snow}.
"Its name is {snow}," said {Sn}.
#sun
Then the days got warmer. The sun shone on {snow}, and it became smaller and smaller.
{d} days later, the sun was warm, and {snow} began to melt.
#worry
"{snow} is ill," {s} said. "It loses its nose."
{S} was sad. "Can we bring it into the house?" {he} asked.
#explain
"In the house it is even warmer," said {Sn}. "Snow turns to water when it gets warm."
"It only melts," said {Sn}. "The sun turns the snow into water. That must be so."
#gone
In the end, there was only [a carrot|some water] and the {noun} on the ground.
One morning, the snowman was gone. The {noun} lay in a puddle.
#take
{S} took the {noun} home and kept it for the next winter.
{S} picked up the {noun} and dried it by the fire. "Next winter we will need it again," {he} said.
#spring
Where the snowman had stood, the first flowers came out of the ground. That made {Sn} smile.
And the water helped the grass to grow, so {snow} was still there in a way. {Sn} liked that thought and smiled.
""")


def snow(t: Tale) -> None:
    """A snowman melts, and why."""
    a, b = t.a, t.b
    begin(t, sky=("cold",), months=("January", "February", "December"))
    t.scene(("garden", "park", "meadow", "town square", "farm", "playground", "hill"))
    d = t.d
    noun = t.thing(("hat", "scarf", "bucket", "pot", "basket", "bag"), a, colour=0.9)
    d["n"], d["d"] = lx.number_word(t.number(2, 4)), lx.number_word(t.number(3, 12)).capitalize()
    d["buttons"] = t.pick(("two buttons", "two black stones", "two nuts", "two coins", "two pieces of coal"))
    d["snow"] = t.pick(
        ("Mister Cold", "Captain Frost", "King Winter", "Lady Snow", "Doctor Ice", "Uncle Freeze")
    )
    t.say(SNOWMAN["snow"])
    go_first(t, anchor=0)
    meet(t)
    t.say(SNOWMAN["build"])
    t.say(SNOWMAN["hat"], a)
    t.holder[noun] = None
    t.log.append(("eyes", d["buttons"]))
    t.say(SNOWMAN["name"], b)
    t.log.append(("snow_name", d["snow"]))
    t.para()
    t.say(SNOWMAN["sun"])
    t.say(SNOWMAN["worry"], a)
    t.say(SNOWMAN["explain"], b)
    t.say(SNOWMAN["gone"])
    t.log.append(("why_melted", "the sun was warm"))
    t.say(SNOWMAN["take"], a)
    t.holder[noun] = a
    t.say(SNOWMAN["spring"], a)


LETTER = book("""
#letter
The postman brought a letter for {Sn}. There was no name on the back.
One {time}, a letter lay [under the door|on the mat|in the box]. On it was written: "For {Sn}".
{S} found a small letter in [{his} coat|{his} bag|the box at the gate].
#text
"Come to {place} at {hour}," it said. "Look {spot}."
It said: "Something waits for you {at}. You will find it {spot}."
"Go to {place} and look {spot}. A friend," {s} read.
#wonder
Who had written that? The letters were [round and neat|large and crooked|written in green ink].
{S} read it {n} times. [It was a riddle|Who could it be]!
#look
{At}, {s} looked {spot}. There was a [box|parcel|bag], and in it {an_obj}!
{S} looked {spot}. And there it was: {an_obj}, with a ribbon around it.
#out
"Surprise!" said a voice. {O}, {his} {bond}, [came out|jumped out|stepped out] from behind [a wall|a door|a cart].
Then somebody laughed. It was {O}, {his} {bond}!
#why
"You lent me your [coat|umbrella|book] when I was cold and sad," said {Sn}. "This is my way to say thank you."
"Everybody forgot that you [helped me|were so kind] last [week|month|winter]," said {Sn}. "I did not."
"You were the only one who [wrote to me|came to see me] when I was ill," said {Sn}. "So this is for you."
#answer
{S} did not know what to say, so {he} [just |simply ]hugged {O}.
"[I will keep|I will always keep] the letter," said {Sn}, "and the {noun} too."
""")


def letter(t: Tale) -> None:
    """A letter without a name leads to a present."""
    a, b = t.a, t.b
    begin(t, named=True)
    t.scene(EVERYWHERE)
    noun = t.thing(SMALL, None)
    d = t.d
    where = spot(t)
    d["hour"] = t.pick(("three o'clock", "four o'clock", "five o'clock", "noon"))
    d["n"] = t.pick(("two", "three", "four", "five"))
    t.say(LETTER["letter"])
    t.say(LETTER["text"])
    t.maybe(0.6, LETTER["wonder"])
    t.say(COMMON["go"])
    t.log.append(("went", a.name, t.place))
    t.say(LETTER["look"])
    t.find(a, noun, where)
    t.para()
    t.say(LETTER["out"])
    t.log.append(("bond", b.name, d["bond"], a.name))
    t.say(LETTER["why"], b)
    t.log.append(("wrote", b.name))
    t.say(LETTER["answer"], a)
    t.maybe(0.5, COMMON["welcome"], b)
    finish(t)


SHARING = book("""
#have
{S} had {total} {goods} in a bag.
{S's} {kin} had given {him} {total} {goods}.
{S} had {total} {goods}. They were still warm from the sun.
#meet
{At} sat {his} three friends {O}, {f2} and {f3}.
{S} met three friends, {O}, {f2} and {f3}.
#many
"Are they all for you?" asked {Sn}.
"So many {goods}!" said {Sn}. "Can you eat them all?"
{S} looked at the bag. "I am hungry," {he} said.
#count
{S} counted. There were four children and {total} {goods}. So each of them got {each}.
"We are four," {s} said, "and there are {total}. That makes {each} for each of us."
#give
{S} gave {each} {goods_e} to {O}, {each} to {f2} and {each} to {f3}.
{S} put {each} {goods_e} in front of every child.
#fair
"That is fair," said {Sn} [and bit into the first one|with a full mouth|and nodded].
Nobody had more and nobody had less, so nobody was [cross|angry|sad].
#dog
Only the dog got nothing, so {s} gave it a bit of [bread|meat].
The last crumbs were for the birds.
""")
_GOODS = (("apple", "apples"), ("pear", "pears"), ("plum", "plums"), ("bun", "buns"), ("cookie", "cookies"), ("nut", "nuts"),
          ("cherry", "cherries"), ("pancake", "pancakes"), ("tomato", "tomatoes"), ("peach", "peaches"))  # fmt: skip


def shares(t: Tale) -> None:
    """Four children share fairly: a division that comes out even."""
    a, b = t.a, t.b
    begin(t)
    t.scene(OUTDOORS)
    names = tuple(CHARACTERS)
    d = t.d
    friends = [a.name, b.name]
    while len(friends) < 4:
        name = t.pick(names)
        if name not in friends:
            friends.append(name)
    each = t.number(1, 5)
    one, many = _GOODS[t.number(0, len(_GOODS) - 1)]
    d["f2"], d["f3"], d["goods"], d["each"] = friends[2], friends[3], many, lx.number_word(each)
    d["total"], d["goods_e"] = lx.number_word(each * 4), one if each == 1 else many
    t.noun = f"{each} {many}"
    go_first(t, anchor=0.4)
    t.say(SHARING["have"])
    t.log.append(("count", many, d["total"], a.name))
    t.say(SHARING["meet"])
    t.log.append(("friends", a.name, f"{b.name}, {friends[2]} and {friends[3]}"))
    t.say(SHARING["many"], b)
    t.para()
    t.say(SHARING["count"], a)
    t.log.append(("each", d["each"], many))
    t.say(SHARING["give"], a)
    t.say(SHARING["fair"], b)
    t.maybe(0.5, COMMON["thanks"], b)
    t.maybe(0.5, SHARING["dog"], a)
    finish(t, alone=True)
