"""Stories about learning a skill, visiting a sick friend, and a journey on foot."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet
from onesitting.data.world.stories_things import SMALL

SKILL = book("""
#wish
{S} wanted to learn to {skill}.
All the other children could {skill}, but {s} could not.
"I wish I could {skill}," {s} [said|thought|often said].
#try
{S} tried it alone, but {fail}.
The first time, {fail}. The second time, it was [no better|even worse|the same].
{S} tried {n} times. Each time, {fail}.
#give_up
"I will never learn it," {s} [said|cried]. "It is [much |]too hard."
{S} wanted to [give up|stop and go home].
{S} kicked a stone. "[It is no use|Forget it]," {he} said.
#teach
"I can show you," said {Sn}. "The trick is this: {tip}."
"I fell and failed a hundred times before I could do it," said {Sn}. "You must only remember this: {tip}."
{S} had watched everything. "You are nearly there," {he} said. "Just {tip}."
#again
{S} tried again, and this time it was a little better.
{S} did what {O} had said. Slowly, slowly, it [worked|got better].
"{Tip}," {s} said to {him}self and tried once more.
#days
For {n} days, they met [there |]and practised.
They practised [every day|each afternoon|after school] for {n} days.
{n2} days went by, and {Sn} practised on each of them.
#can
Then, [one morning|at last|all at once], {s} could {skill}!
And on the last day, {s} could {skill}, all by {him}self.
"Look at me!" cried {Sn}. {He} could {skill}!
#proud
{S} was [proud|so proud that {he} glowed|prouder than a king].
"You see?" said {O}. "Nobody is born with it."
{S} ran to {his} {kin} to show what {he} had learned.
""")
# skill, what goes wrong (narrated with no pronoun), the tip, places
_SKILLS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("swim", "the water came into nose and ears", "kick with your legs and breathe slowly", ("lake",
     "river", "beach")),
    ("ride a bicycle", "the bicycle fell to one side", "look ahead and not at your feet", ("park",
     "playground", "town square")),
    ("whistle", "only air came out", "make your mouth small and blow softly", ("meadow", "park", "garden",
     "farm")),
    ("skip a stone over the water", "the stone sank at once", "take a flat stone and throw it low",
     ("lake", "river")),
    ("climb a tree", "the branch was too high", "hold on with three limbs and move the fourth", ("forest",
     "orchard", "park")),
    ("play the flute", "the flute only squeaked", "blow as if you cool your soup", ("school", "meadow",
     "park")),
    ("tie a good knot", "the knot came apart", "go over, under and through", ("harbour", "beach",
     "workshop")),
    ("stand on one's hands", "both feet came down again", "keep your arms straight", ("playground",
     "meadow", "park")),
    ("skate", "the ice was too smooth", "bend your knees a little", ("lake",)),
    ("fly a kite", "the kite came down on its nose", "run against the wind and let out the string slowly",
     ("hill", "beach", "meadow")),
    ("draw a horse", "the horse looked like a table", "begin with two circles", ("farm", "school",
     "meadow")),
    ("row a boat", "the boat turned in a circle", "pull both oars at the same time", ("lake", "harbour")),
    ("juggle", "the balls fell down", "begin with two balls and look at the top", ("town square", "park",
     "playground")),
    ("bake bread", "the bread came out as hard as a stone", "give the dough time to rest", ("bakery",
     "mill")),
    ("catch a ball", "the ball flew past", "watch the ball until it is in your hands", ("playground",
     "park")),
    ("hit a nail", "the nail bent", "hold the hammer at the end", ("workshop", "barn")),
)  # fmt: skip


_NOT_WINTER = lx.SEASONS["spring"] + lx.SEASONS["summer"] + lx.SEASONS["autumn"]


def skill(t: Tale) -> None:
    """The hero fails, gets a tip, practises, and can do it."""
    a, b = t.a, t.b
    usable = tuple(s for s in _SKILLS if not t.wish.place or t.wish.place in s[3]) or _SKILLS
    name, fail, tip, places = usable[int(t.r() * len(usable))]
    winter = name == "skate"
    begin(t, sky=("cold",) if winter else (), months=lx.SEASONS["winter"] if winter else _NOT_WINTER)
    t.scene(places)
    d = t.d
    n = lx.number_word(t.number(3, 9))
    d["skill"], d["fail"], d["tip"], d["Tip"], d["n"], d["n2"] = (
        name.replace("one's", a.his),
        fail,
        tip,
        tip.capitalize(),
        n,
        n.capitalize(),
    )
    t.noun = name
    t.say(SKILL["wish"])
    t.log.append(("wish", a.name, d["skill"]))
    go_first(t, anchor=0.2)
    t.say(SKILL["try"])
    t.maybe(0.7, SKILL["give_up"])
    t.para()
    meet(t)
    t.say(SKILL["teach"], b)
    t.log.append(("taught", b.name, a.name, d["skill"]))
    t.say(SKILL["again"])
    if t.chance(0.7):
        t.say(SKILL["days"])
        t.log.append(("days", a.name, d["n"]))
    t.say(SKILL["can"])
    t.say(SKILL["proud"])
    t.maybe(0.5, COMMON["thanks"])
    finish(t)


VISIT = book("""
#ill
{O}, the {bond} of {Sn}, was [ill|sick] and had to stay in bed.
{S} heard that {his} {bond} {O} was ill and could not [come to school|leave the bed|play].
"Where is my {bond} {O}?" asked {Sn}. "In bed with a [fever|cold|sore throat]," said the [teacher|baker|postman].
#take
{S} put {item} and {an_obj} into a basket.
{S} made a little parcel with {item} and {an_obj}.
{S} went to the kitchen and packed {item}. Then {he} took {an_obj} from the shelf.
#room
{O} lay under [two blankets|a thick blanket] and looked pale. "How are you?" {Sn} asked. "[Bored|So, so|A little better]," said {O}.
{O} was very pleased. "You came!" {Ohe} said [in a weak voice|and sat up].
#give
{S} gave {O} the {noun} and {item2}. "[Eat|Take this], and you will [soon |]be well again," {he} said.
{S} unpacked the basket and gave {O} {item2} and the {noun}. "These are for you," {he} said.
#tell
Then {s} told {O} [funny stories from school|all the news of the town|a story about a clever mouse].
They played [cards|a guessing game|chess] until {O} yawned.
{S} read from a book about [pirates|a lost bear|a brave snail] until {O} fell asleep.
#well
{n} days later, {O} was well again. "Your visit was the best medicine," {Ohe} said.
[The next week|A few days later], {O} stood at the door of {Sn}, [quite |]healthy again. "Now I will visit you," {Ohe} said.
""")


def visit(t: Tale) -> None:
    """A sick friend gets food, a thing and a story."""
    a, b = t.a, t.b
    begin(t)
    noun = t.thing(SMALL, a)
    d = t.d
    food = t.pick(("soup", "tea", "honey", "jam", "cake", "pie", "pear", "orange", "strawberry", "bread"))
    d["item"] = lx.FOODS[food].one
    d["item2"] = "the " + d["item"].split(" ", 1)[1]
    d["n"] = lx.number_word(t.number(3, 8)).capitalize()
    t.say(VISIT["ill"])
    t.log.append(("ill", b.name))
    t.log.append(("bond", b.name, d["bond"], a.name))
    t.say(VISIT["take"])
    t.parts.append(
        f"Then {a.he} went to the house of {b.name}."
        if t.chance(0.5)
        else f"{a.name} walked to the house of {b.name}."
    )
    t.para()
    t.say(VISIT["room"])
    t.say(VISIT["give"])
    t.give(a, b, noun)
    t.log.append(("gave_food", a.name, b.name, d["item"]))
    t.maybe(0.6, COMMON["thanks"], b)
    t.say(VISIT["tell"], a)
    t.say(VISIT["well"], a)
    finish(t)


JOURNEY = book("""
#plan
{S} wanted to visit {his} {kin2} in {town2}.
{S's} {kin2} lived in {town2}, and {s} wanted to go there [for the weekend|for a feast|to help with the harvest].
A letter came from {town2}. "Please come and see us," wrote {his} {kin2}.
#with
{S's} {bond} {O} came along.
{S} asked {his} {bond} {O} to come too, and {Ohe} said yes.
#pack
{S} packed [some bread and cheese|two apples and a bottle of water|a warm coat and a bag of nuts] and {an_obj}.
In {his} bag were [bread and cheese|some apples|six boiled eggs], and also {an_obj}.
#start
They [took|followed] the road [over the hills|along the river|through the forest].
[Early in the morning|When the sun came up|After breakfast], they left {town} and took the road to {town2}.
#bridge
After {n} miles, they came to a [wide stream|small river]. The bridge was [gone|broken].
They walked {n} miles and came to a [stream|river], but there was no bridge [any more|over it].
#fog
Then [a thick fog|a heavy mist] came up, and they could not see the road any more.
After {n} miles, [a thick fog|a heavy mist] hid everything, even the road.
#fork
After {n} miles, they came to a place where the road went [left and right|three ways]. There was no sign.
At noon, the road came to a fork. The sign had fallen down [in the storm|long ago].
#idea
"Let us {plan}," said {Sn}.
{S} had an idea. "We could {plan}," {he} said.
"What now?" asked {O}. "[That is easy|I know]. We {plan}," said {Sn}.
#works
It took a long time, but it worked.
They did that, and [soon|half an hour later] they were on the right way.
It was not easy, but they [helped each other|held on to each other].
#arrive
In the [late afternoon|evening], they [saw the lights|came to the first houses|heard the bells] of {town2}.
At last, they [reached|came to] {town2}, [tired but happy|with dust on their shoes].
#welcome
{S's} {kin2} was [already |]standing at the door and hugged them both. There was [hot soup|fresh bread|a big pie] on the table.
"I was worried about you," said {his} {kin2} and gave them [hot soup|warm milk|pancakes].
#gift
{S} gave {his} {kin2} the {noun}. "I [carried|brought] it all the way," {he} said.
#bed
That night, {s} lay in a strange bed and smiled. The road had been long, but it had been worth it.
They stayed for {days} days, and when they went home, they knew the way.
They told the whole story of their journey, and everybody laughed until late at night.
That night, both of them slept well, and {Sn} dreamed of the road.
""")
_PLANS: dict[str, tuple[str, ...]] = {
    "bridge": (
        "cross where the water is low", "walk along the bank until we find a fallen tree", "ask the man with the boat",
        "jump from stone to stone", "build a raft from those logs",
    ),
    "fog": (
        "follow the sound of the church bell", "wait under that tree until it is clear", "hold hands and walk slowly",
        "light our lantern and look for the next milestone", "sing so that somebody can hear us",
    ),
    "fork": (
        "ask the farmer over there", "follow the tracks of the carts", "look where the sun stands",
        "put the sign up again and see where it points", "climb that tree and look for the church tower",
    ),
}  # fmt: skip


def journey(t: Tale) -> None:
    """Two friends walk to another town and find a way round an obstacle."""
    a = t.a
    begin(t, named=True)
    noun = t.thing(SMALL, a)
    d = t.d
    d["town2"] = t.pick(lx.TOWNS)
    while d["town2"] == d["town"]:
        d["town2"] = t.pick(lx.TOWNS)
    problem = t.pick(tuple(_PLANS))
    d["days"] = lx.number_word(t.number(2, 6))
    d["n"], d["plan"] = lx.number_word(t.number(2, 9)), t.pick(_PLANS[problem])
    t.say(JOURNEY["plan"])
    t.log.append(("trip", a.name, d["town2"], d["kin2"]))
    t.say(JOURNEY["with"])
    t.log.append(("with", t.b.name, a.name))
    t.say(JOURNEY["pack"])
    t.say(JOURNEY["start"])
    t.para()
    t.say(JOURNEY[problem])
    planner = a if t.chance(0.5) else t.b
    t.say(JOURNEY["idea"], planner)
    t.log.append(("idea", planner.name, d["plan"]))
    t.say(JOURNEY["works"])
    t.say(JOURNEY["arrive"])
    t.para()
    t.say(JOURNEY["welcome"], a)
    if t.chance(0.6):
        t.say(JOURNEY["gift"], a)
        t.log.append(("gave", a.name, f"{a.his} {d['kin2']}", noun))
        t.holder[noun] = None
    t.say(JOURNEY["bed"], a)
