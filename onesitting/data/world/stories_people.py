"""Stories about people: helping, quarrels, contests, surprises, learning, visits, journeys, letters."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import CHARACTERS, Tale, book
from onesitting.data.world.openings import O, begin, finish, go_first, meet
from onesitting.data.world.stories_things import EVERYWHERE, OUTDOORS, SMALL

H = book("""
#old
{At}, {s} saw {O}, who lived next door and was very old. {Ohe2} was pulling a [heavy|full|big] cart of {load}.
There {s} saw old {O}, who was carrying two heavy [bags|baskets|buckets] of {load}.
{At}, {s} saw {O}, an old neighbour. {Ohe2} was trying to carry a [heavy |big ]sack of {load}.
#trouble
{S} had to stop after every [step|few steps] and was breathing hard.
"My back hurts," {s} said. "[I am not young any more|This is too much for me|It is still a long way]."
"I must rest," said {Sn} and sat down on a [stone|wall]. "The {load} are so heavy."
#offer
"[Wait|Please wait], I will help you," said {Sn}.
"May I [help you|carry that|take one side]?" asked {Sn}.
{S} did not think long. {He} ran over to help.
#work
{S} took [the heavy end|one side], and they [went on|walked] step by step. {O} told {Sn} about the old days.
{S} [took the heavy end|pushed from behind], and they [went on|walked] step by step.
{S} carried it all the way to the house of {O}. It took {n} [rests|stops] to get there.
#rest
They sat down [on a bench|on the steps|in the shade] and shared {food_one}.
{S} was tired, but {he} did not [stop|complain].
#pay
"You must have something for that," said {Sn} and gave {O} {food_one}.
{S} went into the house and came back with {food_one} for {O}.
"Nobody has helped me [for weeks|all day]," said {Sn} and gave {O} {food_one}.
""")
_LOADS = (
    "apples",
    "potatoes",
    "pears",
    "onions",
    "carrots",
    "nuts",
    "oranges",
    "cabbages",
    "plums",
    "lemons",
)
_TREATS = (
    *tuple(f.one for f in lx.FOODS.values() if f.maker in ("bakery", "fruit stall")),
    "a cup of warm milk",
    "a jar of honey",
)


def helping(t: Tale) -> None:
    """The hero helps an old neighbour and gets a treat."""
    a, b = t.a, t.b
    begin(t)
    t.scene(OUTDOORS)
    d = t.d
    d["Ohe2"], d["load"], d["food_one"] = b.He, t.pick(_LOADS), t.pick(_TREATS)
    d["n"] = lx.number_word(t.number(2, 6))
    go_first(t, anchor=0)
    t.say(H["old"])
    t.log.append(("bond", b.name, "old neighbour", a.name))
    t.say(H["trouble"], b)
    t.say(H["offer"], a)
    t.say(O["thanks"], b)
    t.para()
    t.say(H["work"], a)
    t.log.append(("helped", a.name, b.name))
    t.maybe(0.4, H["rest"][1:], a)
    t.say(H["pay"], b)
    t.log.append(("gave_food", b.name, a.name, d["food_one"]))
    t.say(O["thanks"] if t.chance(0.6) else O["glad"], a)
    t.maybe(0.6, O["moral_kind"], a)
    finish(t)


Q = book("""
#play
{S} and {O} were playing with {an_obj}.
There was {an_obj}, but there were two [children|friends], {Sn} and {O}. That was one {noun} too few.
{S} had brought {an_obj}, and {O} wanted to use it too.
#mine
"I want it first," said {Sn}. "No, me!" said {O}.
"It is my turn now," said {Sn}. "You had it [all day|all the time|yesterday]!"
"Give it to me!" cried {Sn}. "No, I had it first!" cried {O}.
#pull
They pulled and pulled until both of them fell [over|into the grass|to the ground].
Each of them pulled at one side of the {noun}. Nobody would let go.
They shouted so loudly that [a bird flew away|two cats ran off|people turned around].
#apart
{S} turned around and sat down far away from {O}.
"I will never play with you again!" {s} said and walked off.
{S} folded {his} arms and did not say a word.
#alone
But alone it was [no fun|not much fun|very quiet].
{S} looked at the {noun}. It was no fun without {O}.
[After some time|After ten minutes], {s} felt [sorry|bad|lonely]. What was {an_art} without a friend?
#sorry
{S} went over to {O}. "I am sorry," {he} said. "I was [unfair|wrong|too loud]."
"Let us not fight," {s} said [softly|in a small voice]. "I am sorry."
{S} was the first to speak. "I am sorry that I shouted," {he} said.
#too
"I am sorry too," said {Sn}. "You can have it first."
"[Me too|So am I]," {s} answered. "Let us [take turns|share it|both use it]."
{S} nodded. "[Friends are better than things|You are more important than {an_art}]," {he} said.
#turns
So they took turns. First {Sn} had the {noun}, and then {O} had it.
They agreed on a rule: each of them had the {noun} until the other had counted to {n}.
From then on, they shared. {Sn} had the {noun} in the morning and {O} in the afternoon.
""")


def quarrel(t: Tale) -> None:
    """Two friends fight over a thing, are sorry, and share it."""
    a, b = t.a, t.b
    begin(t)
    t.scene(OUTDOORS)
    noun = t.thing(SMALL, None)
    t.d["n"] = t.pick(("twenty", "fifty", "thirty", "a hundred"))
    go_first(t)
    meet(t)
    t.say(Q["play"])
    t.log.append(("played", f"{a.name} and {b.name}", noun))
    t.say(Q["mine"], b if t.chance(0.5) else a)
    t.say(Q["pull"])
    t.say(Q["apart"], b)
    t.log.append(("feel", b.name, "angry", f"both of them wanted the {noun}"))
    t.para()
    first = a if t.chance(0.6) else b
    t.say(Q["alone"], first)
    t.say(Q["sorry"], first)
    t.log.append(("sorry", first.name))
    t.say(Q["too"], b if first is a else a)
    t.say(Q["turns"])
    finish(t)


C = book("""
#news
There was a [big |great ]{contest} that day. The first prize was {an_obj}.
[Everybody|The whole town] had come to the {contest}. One could win {an_obj}.
{At}, people were getting ready for the {contest}. "The winner gets {an_obj}!" called a man with a tall hat.
#want
"I want to try," said {Sn}. "I have practised for {n} weeks."
{S} wanted to take part, but {he} was afraid [of losing|that people would laugh].
{S} wrote {his} name on the list. {He} was number {n}.
#friend
"You can do it," said {Sn}. "Just [look ahead|do your best|take a deep breath]."
"I will stand right there and [clap|wave|watch you]," said {Sn}.
"Do not be afraid," said {Sn}. "[It is only a game|Even if you lose, you are my friend]."
#start
[A whistle blew|A bell rang|A drum sounded], and the {contest} began.
Then it was time. {Sn} closed {his} eyes for a second and began.
#hard
At first, {s} was [the last of all|very slow|much too nervous]. But {he} did not give up.
In the middle, {s} made a mistake, but {he} went on.
{S's} hands were shaking. Still, {he} did {his} best.
#win
In the end, {s} came first. {He} got the {obj}.
When it was over, {s} had won! {He} was given the {obj}.
"The winner is {Sn}!" called the man. He gave {Sn} the {obj}.
#second
In the end, {s} came {place_n}. The {obj} went to somebody else, but {he} was proud.
{S} did not win. {He} came {place_n}, and that was better than ever before.
{S} came {place_n}. There was no prize for that, but everybody clapped.
#cheer
{S} cheered so loudly that [everybody laughed|a dog began to bark|people looked at {him}].
{S} ran over and hugged {O}. "[You were great|You did so well|I knew it]!" {he} said.
{S} threw {his} hat into the air. "[Bravo|Well done|Hooray], {O}!"
""")
_CONTESTS = (
    "singing contest", "running race", "boat race", "jumping contest", "baking contest", "drawing contest",
    "spelling contest", "swimming race", "dancing contest", "skating race", "kite contest",
    "snowman contest",
)  # fmt: skip


def contest(t: Tale) -> None:
    """A contest with a prize: first place or a proud later one."""
    a, b = t.a, t.b
    begin(t)
    t.scene(
        ("park", "town square", "school", "lake", "meadow", "beach", "hill", "playground", "farm", "market")
    )
    noun = t.thing(SMALL, None)
    d = t.d
    d["contest"], d["n"] = t.pick(_CONTESTS), lx.number_word(t.number(3, 12))
    d["place_n"] = t.pick(("second", "third", "fourth", "fifth"))
    go_first(t, anchor=0)
    t.say(C["news"])
    t.log.append(("prize", d["contest"], f"a {noun}" if lx.article(noun) == "a" else f"an {noun}"))
    t.say(C["want"])
    meet(t)
    t.say(C["friend"], b)
    t.para()
    t.say(C["start"])
    t.say(C["hard"])
    won = t.chance(0.55)
    t.say(C["win" if won else "second"])
    t.log.append(("came", a.name, "first" if won else d["place_n"], d["contest"]))
    if won:
        t.holder[noun] = a
    t.say(C["cheer"], b)
    t.maybe(0.5, O["glad"] if won else O["thanks"], a)
    finish(t)


S = book("""
#whisper
{S} saw {O} and {friend} whisper in a corner. When {he} came closer, they stopped.
{O} and {friend} had a secret. Each time {s} came near, they [smiled|looked away|talked about the weather].
"Psst!" {O} said to {friend}. "{Sn} must not hear it." But {Sn} had heard {his} name.
#ask
"What are you talking about?" asked {Sn}. "Nothing," said {O}.
"Do you have a secret?" {s} asked. "[No, no|Not at all|A secret? No]," said {O}, but {Ohis} ears turned red.
"Why do you whisper?" asked {Sn}. "We [have a cold|do not whisper|are only breathing]," said {O}.
#sad
{S} went home and felt left out. "They do not like me any more," {he} thought.
{S} sat down on the [stairs|steps|grass]. Why would nobody tell {him} anything?
All day, {s} thought about it and could not [eat|read|sit still].
#call
In the [evening|late afternoon], there was a knock at the door. "Come quickly!" {O} said to {Sn}.
Then {O} took {Sn} by the hand. "Close your eyes and come with me," {Ohe} said.
Later, a note lay [on the table|under the door]. It said: "Come to {place}! {On}."
#party
{At} were all {his} friends, with {cake} and {n} candles. "[Happy birthday|Surprise], {Sn}!" they shouted.
{S} [could not believe {his} eyes|looked around]. There were lights, {cake}, and {n} friends. "[Happy birthday|Surprise]!" they called.
Everywhere hung paper stars. On a table stood {cake}. {n2} friends sang a birthday song for {Sn}.
#present
{O} gave {Om2} {an_obj}. "That was our secret," {Ohe} said.
"This is from {friend} and me," said {O} and gave {Sn} {an_obj}.
#laugh
{S} laughed until {he} had to hold {his} sides. "And I thought that you were angry with me!" {he} said.
"That is the nicest secret of all," said {Sn}.
{S} hugged them both. "I will never be angry about a secret again," {he} said.
""")
_CAKES = (
    "an apple cake",
    "a big cake",
    "a honey cake",
    "a plum pie",
    "a cake with cherries",
    "a lemon cake",
    "a strawberry cake",
)


def secret(t: Tale) -> None:
    """Friends whisper; the hero feels left out; it was a surprise party."""
    a, b = t.a, t.b
    begin(t)
    t.scene(EVERYWHERE)
    noun = t.thing(SMALL, b)
    d = t.d
    other = CHARACTERS[t.pick(tuple(CHARACTERS))]
    while other is a or other is b:
        other = CHARACTERS[t.pick(tuple(CHARACTERS))]
    n = lx.number_word(t.number(5, 12))
    d["friend"], d["cake"], d["n"], d["n2"] = other.name, t.pick(_CAKES), n, n.capitalize()
    d["On"], d["Om2"] = b.name, a.name
    t.parts.append(f"{a.name} had two good friends, {b.name} and {other.name}.")
    t.say(S["whisper"])
    t.say(S["ask"])
    t.say(S["sad"])
    t.log.append(("feel", a.name, "sad", f"{a.his} friends had a secret"))
    t.para()
    call = S["call"]
    t.say(call)
    if "note" not in t.parts[-1]:
        t.say(O["go_both"])
        t.log.append(("went", f"{a.name} and {b.name}", t.place))
    else:
        t.say(O["go"])
        t.log.append(("went", a.name, t.place))
    t.say(S["party"])
    t.log.append(("count_party", d["n"]))
    t.say(S["present"])
    t.give(b, a, noun)
    t.say(S["laugh"], a)
    finish(t)


K = book("""
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
    t.say(K["wish"])
    t.log.append(("wish", a.name, d["skill"]))
    go_first(t, anchor=0.2)
    t.say(K["try"])
    t.maybe(0.7, K["give_up"])
    t.para()
    meet(t)
    t.say(K["teach"], b)
    t.log.append(("taught", b.name, a.name, d["skill"]))
    t.say(K["again"])
    if t.chance(0.7):
        t.say(K["days"])
        t.log.append(("days", a.name, d["n"]))
    t.say(K["can"])
    t.say(K["proud"])
    t.maybe(0.5, O["thanks"])
    finish(t)


V = book("""
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
    t.say(V["ill"])
    t.log.append(("ill", b.name))
    t.log.append(("bond", b.name, d["bond"], a.name))
    t.say(V["take"])
    t.parts.append(
        f"Then {a.he} went to the house of {b.name}."
        if t.chance(0.5)
        else f"{a.name} walked to the house of {b.name}."
    )
    t.para()
    t.say(V["room"])
    t.say(V["give"])
    t.give(a, b, noun)
    t.log.append(("gave_food", a.name, b.name, d["item"]))
    t.maybe(0.6, O["thanks"], b)
    t.say(V["tell"], a)
    t.say(V["well"], a)
    finish(t)


J = book("""
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
    t.say(J["plan"])
    t.log.append(("trip", a.name, d["town2"], d["kin2"]))
    t.say(J["with"])
    t.log.append(("with", t.b.name, a.name))
    t.say(J["pack"])
    t.say(J["start"])
    t.para()
    t.say(J[problem])
    planner = a if t.chance(0.5) else t.b
    t.say(J["idea"], planner)
    t.log.append(("idea", planner.name, d["plan"]))
    t.say(J["works"])
    t.say(J["arrive"])
    t.para()
    t.say(J["welcome"], a)
    if t.chance(0.6):
        t.say(J["gift"], a)
        t.log.append(("gave", a.name, f"{a.his} {d['kin2']}", noun))
        t.holder[noun] = None
    t.say(J["bed"], a)
