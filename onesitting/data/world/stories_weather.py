"""Stories about rain, seeds and a sound in the night."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet
from onesitting.data.world.stories_finds import set_animal

WEATHER = book("""
#picnic
They [spread|laid] a blanket on the ground and [unpacked|ate] {food1} and {food2}.
They had brought {food1} and {food2}, and they sat down to eat.
#play
They [played|ran around] until their cheeks were red.
They built a little [house|tower|wall] from [stones|sticks].
They told each other jokes and [did not look|never once looked] at the sky.
#cloud
Then a [big dark|heavy black|huge grey] cloud came. "Look up," said {O}. "[It will rain soon|That means rain]."
The wind grew stronger, and the sky turned [dark|grey|almost black].
[All at once|Suddenly] it was [dark|as dark as in the evening], and [far away |]there was thunder.
#rain
[A moment later|Then], it began to rain. [Big|Heavy|Thick] drops fell on {Sn} and {O}.
Then the rain came down. It rained so hard that they could not see [the houses|the road|the next tree].
The first drops fell, and soon it was raining [hard|heavily].
#wet
{S's} [hair|coat|shirt] was wet, and {Ohis2} shoes were full of water.
In a minute, both of them were wet to the skin.
Their clothes were wet, and their shoes [too|made funny sounds].
#shelter
"Quick, over there!" called {Sn}. They ran to {shelter} and waited.
{S} saw {shelter}. They ran [there|under it] and waited until the rain stopped.
"Come, I know a dry place," said {Sn}. They hid under {shelter}.
#umbrella
{S} opened {an_obj}. They stood under it, and there they stayed dry.
But {s} had brought {an_obj}. {He} opened it over both of them.
#sun
After [half an hour|an hour|a while], the sun came out again. There was a rainbow over [the roofs|the hills|the trees].
[At last|Then] the clouds moved on, and a rainbow stood in the sky.
#dry
They hung their wet clothes [on a line|near the fire|over the fence], and the [wind|warm air] made them dry.
At home, they sat by the fire until their clothes were dry [again|and their feet were warm].
In the sun, their clothes soon dried.
#lesson
"The next time, we look at the sky first," said {Sn}.
"Rain is only water," said {Sn}. "[But it is very wet water|We are not made of sugar]."
"The flowers are glad, at least," {s} said.
""")
_PICNIC = (
    "bread",
    "cake",
    "pie",
    "bun",
    "cookie",
    "apple",
    "pear",
    "plum",
    "melon",
    "peach",
    "cherry",
    "strawberry",
    "cheese",
)
_SHELTERS = (
    "an old barn",
    "a big tree",
    "a stone bridge",
    "a little hut",
    "a roof of leaves",
    "a hay cart",
    "an empty shed",
    "a wide oak",
)


def weather(t: Tale) -> None:
    """A picnic, a cloud, rain; wet clothes dry again."""
    a, b = t.a, t.b
    begin(t, sky=("sunny", "warm", "bright"), months=("April", "May", "June", "July", "August", "September"))
    t.scene(("park", "meadow", "beach", "hill", "lake", "river", "garden", "orchard", "playground"))
    d = t.d
    foods = _PICNIC
    d["food1"], d["food2"] = lx.FOODS[t.pick(foods)].one, lx.FOODS[t.pick(foods)].one
    while d["food1"] == d["food2"]:
        d["food2"] = lx.FOODS[t.pick(foods)].one
    d["Ohis2"], d["shelter"] = a.his, t.pick(_SHELTERS)
    t.noun = d["shelter"]
    go_first(t)
    meet(t)
    t.say(WEATHER["picnic"])
    t.log.append(("ate_both", f"{a.name} and {b.name}", d["food1"], d["food2"]))
    t.maybe(0.6, WEATHER["play"])
    t.para()
    t.say(WEATHER["cloud"])
    t.say(WEATHER["rain"])
    if t.chance(0.4):
        t.thing(("umbrella",), a)
        t.say(WEATHER["umbrella"], a)
        t.log.append(("dry", f"{a.name} and {b.name}", "they had an umbrella"))
    else:
        t.say(WEATHER["shelter"], b if t.chance(0.5) else a)
        t.log.append(("hid", f"{a.name} and {b.name}", d["shelter"]))
        if t.chance(0.8):
            t.say(WEATHER["wet"], a)
            t.log.append(("wet", f"{a.name} and {b.name}", "it rained"))
            t.say(WEATHER["sun"])
            t.say(WEATHER["dry"])
    if t.log[-1][0] in ("hid", "dry"):
        t.say(WEATHER["sun"])
    t.maybe(0.5, WEATHER["lesson"], b if t.chance(0.5) else a)
    finish(t)


GARDEN = book("""
#seeds
{S} got a small bag with {n} {plant} seeds from {his} {kin}.
{S's} {kin} gave {him} {n} {plant} seeds. "They are small, but wait," {kin_he} said.
In a drawer, {s} found {n} {plant} seeds in [an old envelope|a paper bag].
#plant
{S} made little holes in the earth and put a seed into each of them.
{S} dug the ground with {his} hands and planted the seeds [in a row|in a circle].
#water
Every [day|morning|evening], {s} gave them water.
{S} watered them each [day|morning|evening] and pulled out the weeds.
#nothing
After {d1} days, there was still nothing to see. "Are they asleep?" {s} asked.
{d1u} days went by, and nothing happened. {Sn} [sat down and waited|was very impatient].
#tip
"Plants need water, light and time," said {Sn}. "You cannot pull them out of the ground."
"I waited [two|three] weeks for my beans," said {Sn}. "[Be patient|Good things take time]."
#dry
Then came a hot week, and {s} forgot the water. The leaves [hung down|turned yellow].
It did not rain for days. The earth got dry, and the leaves [hung down|turned yellow].
#save
{S} ran for water at once. The next morning, the plants stood up again.
{S} carried {d2} [cans|buckets] of water from the well. Soon the leaves were green again.
#sprout
Then, one morning, there was a tiny green [tip|leaf|point] in the earth.
At last, small green leaves came out of the ground. {Sn} counted {n2} of them.
#grow
They grew and grew, first as high as {his} [shoe|hand], then as high as {his} [knee|belt].
The sun shone, the rain fell, and the plants grew [taller every day|fast].
#harvest
In {month2}, there were more {crop} than {s} could count.
In {month2}, there were so many {crop} that they did not fit into one basket.
In {month2}, {s} picked the first {crop}. They [smelled wonderful|looked wonderful].
#share
{S} gave half of the {crop} to {O}.
{S} put some {crop} in a basket and took them to {O}.
""")
_PLANTS = (("bean", "beans"), ("pumpkin", "pumpkins"), ("sunflower", "sunflowers"), ("carrot", "carrots"), ("tomato", "tomatoes"),
           ("strawberry", "strawberries"), ("pea", "peas"), ("rose", "roses"), ("poppy", "poppies"), ("melon", "melons"),
           ("cabbage", "cabbages"), ("onion", "onions"))  # fmt: skip


def garden(t: Tale) -> None:
    """Seeds, water, patience, harvest."""
    a, b = t.a, t.b
    begin(t, months=("March", "April", "May"))
    t.scene(("garden",))
    d = t.d
    d["plant"], d["crop"] = _PLANTS[t.number(0, len(_PLANTS) - 1)]
    t.noun = d["plant"]
    n = t.number(4, 15)
    d["n"], d["n2"] = lx.number_word(n), lx.number_word(t.number(2, n))
    d["d1"], d["d2"] = lx.number_word(t.number(3, 12)), lx.number_word(t.number(2, 6))
    d["d1u"], d["month2"] = d["d1"].capitalize(), t.pick(("July", "August", "September"))
    t.say(GARDEN["seeds"])
    t.log.append(("count", f"{d['plant']} seeds", d["n"], a.name))
    go_first(t, anchor=0)
    t.say(GARDEN["plant"])
    t.say(GARDEN["water"])
    t.say(GARDEN["nothing"])
    t.para()
    meet(t, later=True)
    t.say(GARDEN["tip"], b)
    if t.chance(0.5):
        t.say(GARDEN["sprout"])
        t.say(GARDEN["dry"])
        t.say(GARDEN["save"])
        t.log.append(("why_yellow", "the plants had no water"))
    else:
        t.say(GARDEN["sprout"])
        t.say(GARDEN["grow"])
    t.say(GARDEN["harvest"])
    t.log.append(("when_harvest", a.name, d["crop"], d["month2"]))
    t.say(GARDEN["share"], a)
    t.maybe(0.6, COMMON["thanks"], b)
    finish(t)


NIGHT = book("""
#night
One night, {s} [woke up|could not sleep]. There was a [strange|soft|scratching] sound [at the window|in the attic|behind the wall|in the yard].
In the middle of the night, {s} heard a sound [at the window|in the attic|behind the wall|in the yard].
#fear
{S} pulled the blanket over {his} head. {S's} heart beat fast.
"Who is there?" {s} whispered. Nobody answered.
{S} held {his} breath. There it was again!
#wake
{S} went to the next room and woke {his} {sib} {O}. "I heard something," {he} said.
{S} ran to {his} {sib} {O}. "Wake up! There is a [ghost|thief|monster]," {he} said.
#brave
{S} [yawned|rubbed {his} eyes]. "Ghosts do not [scratch|make such sounds]," {he} said. "Let us look."
"Let us see what it is," said {Sn}. "[What we know cannot scare us|Most sounds are smaller than they seem]."
#light
{O} [lit|took] {an_obj}, and they went [on tiptoe|hand in hand|step by step].
They took {an_obj} and went [on tiptoe|very quietly|slowly].
#see
The light fell on {an_animal}. It looked at them and {sound_past}.
There sat {an_animal}! It blinked in the light and {sound_past}.
It was only {an_animal}. It was more afraid than they were.
#feed
"It is only hungry," said {Sn} and gave it some {food}. It ate.
{S} brought some {food} from the kitchen. The {animal} ate it [quickly|with joy].
#laugh
{S} had to laugh. "That is [my ghost|the monster]," {he} said. "It has [a cold nose|big ears|four small feet]."
"And I was afraid of you!" {s} said to the {animal} [and laughed|with a smile|].
#sleep
Then they went back to bed, and {Sn} slept [well|deeply|until the morning]. {He} was not afraid any more.
They told everybody at breakfast and laughed. From then on, {Sn} was not afraid of sounds in the night.
That night, {s} fell asleep with a smile, and the dark was only dark.
""")
NIGHT_ANIMALS = ("cat", "mouse", "hedgehog", "squirrel", "owl", "dog", "goat", "badger", "fox", "otter")


def night_sound(t: Tale) -> None:
    """A sound in the dark, a light, and a small animal."""
    a, b = t.a, t.b
    begin(t)
    kind = set_animal(t, NIGHT_ANIMALS)
    d = t.d
    d["legs"] = ""
    adjective = t.pick(("small", "little", "lost", "hungry", d["acol"]))
    d["an_animal"], d["sib"] = lx.with_article(f"{adjective} {kind.name}"), "sister" if b.girl else "brother"
    if kind.legs != 4:
        d["food"] = kind.foods[0]
    t.thing(("lamp", "lantern", "candle"), b)
    t.noun = kind.name
    t.place = "home"
    t.time = 3
    t.say(NIGHT["night"])
    t.say(NIGHT["fear"])
    t.log.append(("feel", a.name, "afraid", f"{a.he} heard a sound in the night", "sound"))
    t.say(NIGHT["wake"])
    t.log.append(("bond", b.name, d["sib"], a.name))
    t.para()
    t.say(NIGHT["brave"], b)
    t.say(NIGHT["light"])
    t.say(NIGHT["see"])
    t.log.append(("was_animal", kind.name))
    t.say(NIGHT["feed"])
    t.log.append(("ate", kind.name, d["food"]))
    t.maybe(0.6, NIGHT["laugh"][:1] if kind.legs == 4 else NIGHT["laugh"][1:])
    t.say(NIGHT["sleep"])
