"""Stories about animals, weather, plants, cooking and building: causes and their effects."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import O, begin, finish, go, go_first, meet
from onesitting.data.world.stories_things import OUTDOORS, set_animal, spot

R = book("""
#hear
{At}, {s} heard a [small|strange|sad|weak] sound. It was {an_animal}. {stuck_s}
Suddenly {s} stopped. {stuck_v} was {an_animal}. It could not get [out|free|away].
{S} saw something move. It was {an_animal}. {stuck_s}
#scared
The {animal} was afraid and [trembled|looked at {Sn} with big eyes|did not make a sound].
"Do not be afraid, little {animal}," {s} whispered. "I will help you."
{S} came closer, and the {animal} [trembled|closed its eyes|kept very still].
#fail
{S} tried to [reach it|help it], but [{his} arms were too short|it was too far away].
{S} could not [do it|help it] alone.
{S} wanted to [help|reach] the {animal}, but {he} needed {tool}.
#fetch
{O} ran home and came back with {tool}.
"We need {tool}," said {O} and ran to get [it|one].
"Wait here," said {O}. "I will get {tool}." {Ohe2} ran as fast as {Ohe} could.
#free
With {tool2}, they got the {animal} out.
{S} used {tool2} while {O} [held the {animal}|spoke softly to it]. Soon the {animal} was free.
Slowly and with care, they [freed|saved] the {animal} with {tool2}.
#feed
The {animal} was hungry. {Sn} gave it some {food}, and it ate [everything|all of it].
{S} put down some {food}. The {animal} smelled it and ate.
"It must be hungry," said {Sn}. {He} brought some {food}, and the {animal} ate it [quickly|up].
#hurt
One of its legs was hurt, so {s} put a soft bandage around it.
The {animal} was cold, so {s} wrapped it in {his} scarf.
It was not hurt, only [very |]tired.
#leave
Then the {animal} {sound_past} and went back to its {home}.
The {animal} rested a little. Then it [went|ran] off to its {home}.
At last, the {animal} turned around once more and {sound_past}. Then it was gone.
#again
The next day, the {animal} [came back|was there again] and {sound_past}.
From then on, the {animal} was not afraid of {Sn} any more.
""")
# how the animal is stuck (sentence), the same before "was a fox", the tool, the tool again
_STUCK: tuple[tuple[str, str, str, str], ...] = (
    ("It had fallen into a deep hole.", "In a deep hole", "a rope", "the rope"),
    ("It was caught in an old net.", "In an old net", "a knife", "the knife"),
    ("It was stuck between two rocks.", "Between two rocks", "a strong stick", "the stick"),
    ("It was caught in a thorn bush.", "In a thorn bush", "some thick gloves", "the gloves"),
    ("It sat on a rock in deep water.", "On a rock in deep water", "a long board", "the board"),
    ("It was stuck under a fence.", "Under a fence", "a spade", "the spade"),
    ("It had fallen into a dry well.", "In a dry well", "a basket on a rope", "the basket"),
    ("It lay under a heavy branch.", "Under a heavy branch", "a saw", "the saw"),
)
_RESCUED = ("fox", "rabbit", "lamb", "kitten", "hedgehog", "squirrel", "owl", "duckling", "kid", "badger", "deer", "goose",
            "otter", "puppy", "swan", "crow", "dog", "cat", "goat", "donkey", "hen", "turtle", "pig", "sheep")  # fmt: skip
RESCUED = tuple(n for n in _RESCUED if n in lx.ANIMALS)


def rescue(t: Tale) -> None:
    """An animal is stuck; two friends free it and feed it."""
    begin(t)
    t.scene(OUTDOORS)
    kind = set_animal(t, RESCUED)
    d = t.d
    i = t.number(0, len(_STUCK) - 1)
    d["stuck_s"], d["stuck_v"], d["tool"], d["tool2"] = _STUCK[i]
    d["an_animal"] = lx.with_article(
        t.pick(
            (
                f"{d['acol']} {kind.name}",
                f"small {kind.name}",
                f"young {kind.name}",
                f"frightened {kind.name}",
            )
        )
    )
    d["home"], d["Ohe2"] = kind.home, t.b.He
    t.noun = kind.name
    go_first(t, anchor=0.3)
    t.say(R["hear"])
    t.log.append(("stuck", kind.name, d["stuck_s"]))
    t.say(R["scared"])
    t.say(R["fail"])
    t.para()
    meet(t, later=True)
    t.say(R["fetch"])
    t.log.append(("fetched", t.b.name, d["tool"]))
    t.say(R["free"])
    t.maybe(0.4, R["hurt"])
    t.say(R["feed"])
    t.log.append(("ate", kind.name, d["food"]))
    t.maybe(0.7, R["leave"])
    t.maybe(0.2, R["again"])
    finish(t)


P = book("""
#has
{S} had {an_acol} {animal} [named|called] {pet}.
{S's} best friend was {pet}, {an_acol} {animal}.
{S} owned a [small|young|clever] {acol} {animal}. Its name was {pet}.
#gone
One {weekday} {time}, {pet} was not in its {home}. The door [stood|was] open.
One {weekday}, {s} came home and [called|looked for] {pet}, but no {pet} came.
One {sky} {time}, {s} wanted to feed {pet}, but the {home} was empty.
#gone_day
{S} [called|looked for] {pet}, but no {pet} came.
{S} wanted to feed {pet}, but the {home} was empty.
#call
"{pet}! {pet}!" {s} called. Nothing moved.
{S} called and called. There was no answer.
{S} looked [in the yard|behind the house|in every room], but {pet} was not there.
#ask
"Have you seen {pet}?" {s} asked. "It is {acol} and [very small|rather big|not very clever]."
"My {animal} is gone," said {Sn}. "Please help me to look for it."
"My {animal} is gone," said {Sn}. "Can you help me to look for it?"
#clue
"I saw {an_acol} {animal} {at}," said {Sn}.
"[Look|See]," said {Sn}, "there are tracks on the ground. They go to {place}."
"Where does {pet} like to go?" asked {Sn}. "To {place}," said {O}.
#hear
{At}, they heard [something|a soft sound]. There was {pet}, {spot}!
{At}, they looked around. {Sn} found {pet} {spot}.
They looked around. There, {spot}, sat {pet}!
#lure
{S} held out some {food}. {Pet} came and ate it.
{Pet} was hungry. {Sn} gave it some {food}, and it ate.
"Come, {pet}, here is some {food}," said {Sn}. {Pet} came at once and ate it.
#home
{S} took {pet} in {his} arms and carried it home.
{S} carried {pet} home, and {pet} {sound_past} all the way.
{S} brought {pet} home and closed the door [well|with care|twice].
""")
_PETS = ("dog", "cat", "rabbit", "hamster", "parrot", "turtle", "goat", "hen", "duck")


def lost_pet(t: Tale) -> None:
    """A pet runs away and is found with the help of a friend."""
    a, b = t.a, t.b
    begin(t)
    kind = set_animal(t, _PETS)
    d = t.d
    d["pet"] = d["Pet"] = t.pick(lx.PET_NAMES)
    d["home"] = kind.home
    t.noun = kind.name
    t.scene(OUTDOORS)
    t.say(P["has"])
    t.log += [("pet", a.name, kind.name, d["pet"]), ("colour", kind.name, d["acol"])]
    t.say(P["gone_day" if d["day_told"] else "gone"])
    t.log.append(("feel", a.name, "worried", f"{d['pet']} was gone"))
    t.say(P["call"])
    t.maybe(0.5, O["sad"])
    t.para()
    meet(t, later=True)
    t.say(P["ask"], a)
    t.say(P["clue"], b)
    t.say(O["go_both"])
    t.log.append(("went", f"{a.name} and {b.name}", t.place))
    spot(t)
    t.say(P["hear"])
    t.log.append(("pet_found", d["pet"], d["spot"]))
    t.say(P["lure"], a)
    t.log.append(("ate", d["pet"], d["food"]))
    t.maybe(0.6, O["glad"], a)
    t.say(P["home"], a)
    t.maybe(0.5, O["thanks"], a)
    finish(t, alone=t.chance(0.5))


W = book("""
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
    t.say(W["picnic"])
    t.log.append(("ate_both", f"{a.name} and {b.name}", d["food1"], d["food2"]))
    t.maybe(0.6, W["play"])
    t.para()
    t.say(W["cloud"])
    t.say(W["rain"])
    if t.chance(0.4):
        t.thing(("umbrella",), a)
        t.say(W["umbrella"], a)
        t.log.append(("dry", f"{a.name} and {b.name}", "they had an umbrella"))
    else:
        t.say(W["shelter"], b if t.chance(0.5) else a)
        t.log.append(("hid", f"{a.name} and {b.name}", d["shelter"]))
        if t.chance(0.8):
            t.say(W["wet"], a)
            t.log.append(("wet", f"{a.name} and {b.name}", "it rained"))
            t.say(W["sun"])
            t.say(W["dry"])
    if t.log[-1][0] in ("hid", "dry"):
        t.say(W["sun"])
    t.maybe(0.5, W["lesson"], b if t.chance(0.5) else a)
    finish(t)


A = book("""
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
    t.say(A["seeds"])
    t.log.append(("count", f"{d['plant']} seeds", d["n"], a.name))
    go_first(t, anchor=0)
    t.say(A["plant"])
    t.say(A["water"])
    t.say(A["nothing"])
    t.para()
    meet(t, later=True)
    t.say(A["tip"], b)
    if t.chance(0.5):
        t.say(A["sprout"])
        t.say(A["dry"])
        t.say(A["save"])
        t.log.append(("why_yellow", "the plants had no water"))
    else:
        t.say(A["sprout"])
        t.say(A["grow"])
    t.say(A["harvest"])
    t.log.append(("when_harvest", a.name, d["crop"], d["month2"]))
    t.say(A["share"], a)
    t.maybe(0.6, O["thanks"], b)
    finish(t)


N = book("""
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
_NIGHT = ("cat", "mouse", "hedgehog", "squirrel", "owl", "dog", "goat", "badger", "fox", "otter")


def night_sound(t: Tale) -> None:
    """A sound in the dark, a light, and a small animal."""
    a, b = t.a, t.b
    begin(t)
    kind = set_animal(t, _NIGHT)
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
    t.say(N["night"])
    t.say(N["fear"])
    t.log.append(("feel", a.name, "afraid", f"{a.he} heard a sound in the night"))
    t.say(N["wake"])
    t.log.append(("bond", b.name, d["sib"], a.name))
    t.para()
    t.say(N["brave"], b)
    t.say(N["light"])
    t.say(N["see"])
    t.log.append(("was_animal", kind.name))
    t.say(N["feed"])
    t.log.append(("ate", kind.name, d["food"]))
    t.maybe(0.6, N["laugh"][:1] if kind.legs == 4 else N["laugh"][1:])
    t.say(N["sleep"])
