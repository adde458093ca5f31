"""Stories about people: helping, quarrels, contests, surprises."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import CHARACTERS, Tale, book
from onesitting.data.world.openings import COMMON, begin, finish, go_first, meet
from onesitting.data.world.stories_things import EVERYWHERE, OUTDOORS, SMALL

HELPING = book("""
#old
{At}, {s} saw {his} old neighbour {O}. {Ohe2} was pulling a [heavy|full|big] cart of {load}.
There {s} saw {his} old neighbour {O}, who was carrying two heavy [bags|baskets|buckets] of {load}.
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
    t.say(HELPING["old"])
    t.log.append(("bond", b.name, "old neighbour", a.name))
    t.say(HELPING["trouble"], b)
    t.say(HELPING["offer"], a)
    t.say(COMMON["thanks"], b)
    t.para()
    t.say(HELPING["work"], a)
    t.log.append(("helped", a.name, b.name))
    t.maybe(0.4, HELPING["rest"][1:], a)
    t.say(HELPING["pay"], b)
    t.log.append(("gave_food", b.name, a.name, d["food_one"]))
    t.say(COMMON["thanks"] if t.chance(0.6) else COMMON["glad"], a)
    t.maybe(0.6, COMMON["moral_kind"], a)
    finish(t)


QUARREL = book("""
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
    t.say(QUARREL["play"])
    t.log.append(("played", f"{a.name} and {b.name}", noun))
    t.say(QUARREL["mine"], b if t.chance(0.5) else a)
    t.say(QUARREL["pull"])
    t.say(QUARREL["apart"], b)
    t.log.append(("feel", b.name, "angry", f"both of them wanted the {noun}", "wanted the"))
    t.para()
    first = a if t.chance(0.6) else b
    t.say(QUARREL["alone"], first)
    t.say(QUARREL["sorry"], first)
    t.log.append(("sorry", first.name))
    t.say(QUARREL["too"], b if first is a else a)
    t.say(QUARREL["turns"])
    finish(t)


CONTEST = book("""
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
    t.say(CONTEST["news"])
    t.log.append(("prize", d["contest"], f"a {noun}" if lx.article(noun) == "a" else f"an {noun}"))
    t.say(CONTEST["want"])
    meet(t)
    t.say(CONTEST["friend"], b)
    t.para()
    t.say(CONTEST["start"])
    t.say(CONTEST["hard"])
    won = t.chance(0.55)
    t.say(CONTEST["win" if won else "second"])
    t.log.append(("came", a.name, "first" if won else d["place_n"], d["contest"]))
    if won:
        t.holder[noun] = a
    t.say(CONTEST["cheer"], b)
    t.maybe(0.5, COMMON["glad"] if won else COMMON["thanks"], a)
    finish(t)


SECRET = book("""
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
    t.say(SECRET["whisper"])
    t.say(SECRET["ask"])
    t.say(SECRET["sad"])
    t.log.append(("feel", a.name, "sad", f"{a.his} friends had a secret", "secret"))
    t.para()
    t.say(SECRET["call"])
    if "note" not in t.parts[-1]:
        t.say(COMMON["go_both"])
        t.log.append(("went", f"{a.name} and {b.name}", t.place))
    else:
        t.say(COMMON["go"])
        t.log.append(("went", a.name, t.place))
    t.say(SECRET["party"])
    t.log.append(("count_party", d["n"]))
    t.say(SECRET["present"])
    t.give(b, a, noun)
    t.say(SECRET["laugh"], a)
    finish(t)
