"""Stories about animals that are stuck or lost, and their food."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet
from onesitting.data.world.stories_finds import set_animal
from onesitting.data.world.stories_things import OUTDOORS, spot

RESCUE = book("""
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
    t.say(RESCUE["hear"])
    t.log.append(("stuck", kind.name, d["stuck_s"]))
    t.say(RESCUE["scared"])
    t.say(RESCUE["fail"])
    t.para()
    meet(t, later=True)
    t.say(RESCUE["fetch"])
    t.log.append(("fetched", t.b.name, d["tool"]))
    t.say(RESCUE["free"])
    t.maybe(0.4, RESCUE["hurt"])
    t.say(RESCUE["feed"])
    t.log.append(("ate", kind.name, d["food"]))
    t.maybe(0.7, RESCUE["leave"])
    t.maybe(0.2, RESCUE["again"])
    finish(t)


PET = book("""
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
PETS = ("dog", "cat", "rabbit", "hamster", "parrot", "turtle", "goat", "hen", "duck")


def lost_pet(t: Tale) -> None:
    """A pet runs away and is found with the help of a friend."""
    a, b = t.a, t.b
    begin(t)
    kind = set_animal(t, PETS)
    d = t.d
    d["pet"] = d["Pet"] = t.pick(lx.PET_NAMES)
    d["home"] = kind.home
    t.noun = kind.name
    t.scene(OUTDOORS)
    t.say(PET["has"])
    t.log += [("pet", a.name, kind.name, d["pet"]), ("colour", kind.name, d["acol"])]
    t.say(PET["gone_day" if d["day_told"] else "gone"])
    t.log.append(("feel", a.name, "worried", f"{d['pet']} was gone", "gone"))
    t.say(PET["call"])
    t.maybe(0.5, COMMON["sad"])
    t.para()
    meet(t, later=True)
    t.say(PET["ask"], a)
    t.say(PET["clue"], b)
    t.say(COMMON["go_both"])
    t.log.append(("went", f"{a.name} and {b.name}", t.place))
    spot(t)
    t.say(PET["hear"])
    t.log.append(("pet_found", d["pet"], d["spot"]))
    t.say(PET["lure"], a)
    t.log.append(("ate", d["pet"], d["food"]))
    t.maybe(0.6, COMMON["glad"], a)
    t.say(PET["home"], a)
    t.maybe(0.5, COMMON["thanks"], a)
    finish(t, alone=t.chance(0.5))
