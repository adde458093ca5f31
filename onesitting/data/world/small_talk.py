"""Greetings, small talk, questions back, things that cannot be known, goodbyes."""

from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.arithmetic import exercise
from onesitting.data.world.fact_questions import fact_question
from onesitting.data.world.lexicon import BOYS, COLOURS, FOODS, GIRLS, OBJECTS, WEEKDAYS, with_article
from onesitting.data.world.splits import Split
from onesitting.data.world.talk import Talk, capitalised

if TYPE_CHECKING:
    from onesitting.data.world import World

GREETINGS = (
    "Hello!",
    "Hi!",
    "Good morning!",
    "Hey!",
    "Hi there!",
    "Hello there.",
    "Good evening.",
    "Good day!",
    "hi",
    "hello",
)
GREETING_REPLIES = (
    "Hello! How can I help you?", "Hi! What would you like to know?", "Hello! What can I do for you?",
    "Good to see you! How can I help?",
)  # fmt: skip

# (what the user may say, what the assistant may answer)
CHAT: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("How are you?", "How are you today?", "How do you feel?"), ("I am well, thank you. How are you?",
     "I am fine, thank you!")),
    (("Who are you?", "What are you?", "What is this?"),
     ("I am a small language model. I can tell stories, answer questions and do sums.",)),
    (("What can you do?", "How can you help me?", "What are you good at?"),
     ("I can tell short stories, answer questions about a text, do sums and use tools.",)),
    (("Are you a person?", "Are you human?", "Do you live in a house?"),
     ("No, I am a small language model. I am a program that writes text.",)),
    (("Do you like stories?", "Do you enjoy stories?"),
     ("Yes! I like to tell stories. Shall I tell you one?",)),
    (("I am happy today.", "Today is a good day.", "I had a great day."), ("That is nice to hear!",
     "I am glad to hear that!")),
    (("I am sad.", "I feel sad today.", "I had a bad day."),
     ("I am sorry to hear that. Do you want to talk about it?",
      "I am sorry. I hope that you feel better soon.")),
    (("I am tired.", "I did not sleep well.", "I feel so tired."),
     ("Then a little rest will do you good.",)),
    (("I am hungry.", "I want to eat something.", "I am so hungry."),
     ("Then it is time to eat something. An apple would be nice.",)),
    (("It is raining here.", "It rains a lot today.", "The rain does not stop."),
     ("Then take an umbrella with you!",)),
    (("It is cold outside.", "It is so cold today."), ("Put on a warm coat and a scarf!",)),
    (("The sun is shining.", "It is warm and sunny."), ("What a fine day to go outside!",)),
    (("Tell me something nice.", "Say something nice."),
     ("You ask good questions, and I like to talk with you.",)),
    (("I like you.", "You are nice.", "You are great!"), ("Thank you! That is very kind.",)),
    (("I am bored.", "I don't know what to do."), ("Shall I tell you a story, or do we do some sums?",)),
    (("You are wrong.", "That is wrong.", "I think that is not right."),
     ("I am sorry. I make mistakes. Please tell me what is right.",)),
)  # fmt: skip

THANKS = ("Thank you!", "Thanks!", "Thanks a lot.", "Thank you very much.", "Great, thank you.")
THANKS_REPLIES = (
    "You are welcome!",
    "I am glad that I could help.",
    "You are welcome. Is there anything else?",
)
GOODBYES = ("Goodbye!", "Bye!", "See you later.", "I have to go now.", "Bye bye!", "Good night!")
GOODBYE_REPLIES = ("Goodbye! Have a nice day.", "Bye! See you soon.", "Goodbye! Come back soon.")

# What no text can tell it: (questions, answer).
_UNKNOWABLE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("What will the weather be tomorrow?", "Will it rain on {day}?", "Is it going to snow tomorrow?"),
     "I don't know. I cannot see what the weather will be."),
    (("What did I eat yesterday?", "Did I eat {food} for breakfast?", "What did I have for lunch?"),
     "I don't know what you ate. You have not told me."),
    (("What time is it?", "How late is it now?", "What day is it today?"),
     "I don't know. I have no clock."),
    (("Where am I?", "Which town am I in?", "Which street am I in?"),
     "I don't know where you are. You have not told me."),
    (("What am I thinking of?", "What do I have in my hand?", "Which colour am I thinking of?",
     "Is my {thing} {colour}?"), "I don't know. I cannot see you."),
    (("Who will win the race on {day}?", "Who is going to win the game?", "Who will be king next year?"),
     "I don't know. I cannot see the future."),
    (("Where did I put my {thing}?", "Where is my {thing}?", "Have you seen my {thing}?"),
     "I don't know where your {thing} is. Where did you see it last?"),
    (("What did {who} say to me on {day}?", "What did {who} tell me yesterday?"),
     "I don't know. I was not there."),
    (("What is the colour of my {thing}?", "How much did I pay for my {thing}?",
     "Who gave me my {thing}?"), "I don't know. You have not told me about your {thing}."),
)  # fmt: skip


def small_talk_turn(rng: Random, talk: Talk) -> None:
    """Add one exchange that has nothing to do with the rest."""
    said, answers = rng.choice(CHAT)
    talk.user(rng.choice(said)).assistant(rng.choice(answers))


def closing(rng: Random, talk: Talk) -> None:
    """Add thanks, a goodbye, or both."""
    if rng.random() < 0.6:
        talk.user(rng.choice(THANKS)).assistant(rng.choice(THANKS_REPLIES))
    else:
        talk.user(rng.choice(GOODBYES)).assistant(rng.choice(GOODBYE_REPLIES))


def greeting_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A greeting, some small talk, often a goodbye."""
    talk = Talk("small_talk")
    if rng.random() < 0.7:
        talk.user(rng.choice(GREETINGS)).assistant(rng.choice(GREETING_REPLIES))
    for _ in range(rng.randint(1, 3)):
        small_talk_turn(rng, talk)
    if rng.random() < 0.6:
        closing(rng, talk)
    return talk


def unknowable_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A question that the assistant cannot answer, and says so."""
    talk = Talk("refusal")
    if rng.random() < 0.3:
        small_talk_turn(rng, talk)
    if rng.random() < 0.25:
        return _unknown_person(world, rng, talk)
    fields = {
        "day": rng.choice(WEEKDAYS),
        "food": rng.choice(("bread", "soup", "eggs", "cake", "honey", "pancakes")),
        "thing": rng.choice(tuple(OBJECTS)),
        "colour": rng.choice(COLOURS),
        "who": rng.choice(GIRLS + BOYS),
    }
    questions, answer = rng.choice(_UNKNOWABLE)
    talk.user(rng.choice(questions).format(**fields)).assistant(answer.format(**fields))
    if rng.random() < 0.3:
        closing(rng, talk)
    return talk


def _unknown_person(world: "World", rng: Random, talk: Talk) -> Talk:
    """A question about somebody whom nobody in the world knows."""
    strangers = [name for name in GIRLS + BOYS if name not in world.state.people]
    who = rng.choice(strangers)
    wordings = (
        "How old is {}?",
        "Where does {} live?",
        "What is the job of {}?",
        "Who is the best friend of {}?",
        "Which town does {} live in?",
    )
    return talk.user(rng.choice(wordings).format(who)).assistant(f"I don't know anybody called {who}.")


def clarification_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A request that misses something: the assistant asks back, then answers."""
    talk = rng.choice((_which_thing, _which_numbers, _which_animal, _which_person))(world, rng, split)
    if rng.random() < 0.2:
        closing(rng, talk)
    return talk


def _which_thing(world: "World", rng: Random, split: Split) -> Talk:
    item, coins = rng.choice(tuple(world.state.prices.items()))
    one = FOODS[item].one if item in FOODS else with_article(item)
    talk = Talk("clarification")
    talk.user(
        rng.choice(("How much does it cost?", "What does it cost?", "How much is it?", "What is the price?"))
    )
    talk.assistant("What do you mean? Please tell me the name of the thing.")
    talk.user(capitalised(rng.choice(("{}.", "I mean {}.", "Oh, {}.", "{}, please.")).format(one)))
    return talk.assistant(f"{capitalised(one)} costs {coins} coin{'s' if coins != 1 else ''}.")


def _which_numbers(world: "World", rng: Random, split: Split) -> Talk:
    found = exercise(rng, split, "sum")
    a, b = found.numbers
    talk = Talk("clarification")
    talk.user(
        rng.choice(
            (
                "Add the two numbers.",
                "What is the sum?",
                "Please add the numbers for me.",
                "Can you add two numbers?",
            )
        )
    )
    talk.assistant("Which numbers do you mean?")
    talk.user(rng.choice((f"{a} and {b}.", f"I mean {a} and {b}.", f"The numbers are {a} and {b}.")))
    return talk.assistant(f"{found.steps} The answer is {found.answer}.")


def _which_animal(world: "World", rng: Random, split: Split) -> Talk:
    found = fact_question(world, rng, split, "animals")
    talk = Talk("clarification")
    talk.user(
        rng.choice(("I have a question about an animal.", "What does it eat?", "Tell me about the animal."))
    )
    talk.assistant("Which animal do you mean?")
    return talk.user(f"I mean {with_article(found.fact.subject)}. {found.question}").assistant(found.answer)


def _which_person(world: "World", rng: Random, split: Split) -> Talk:
    person = rng.choice(tuple(world.state.people.values()))
    question, answer = rng.choice(
        (
            (f"How old is {person.he}?", f"{person.name} is {person.age} years old."),
            (f"Where does {person.he} live?", f"{person.name} lives in {person.town}."),
            (
                f"What is {person.his} favourite food?",
                f"The favourite food of {person.name} is {person.food}.",
            ),
        )
    )
    talk = Talk("clarification").user(question).assistant("Whom do you mean? Please tell me the name.")
    return talk.user(
        rng.choice((f"I mean {person.name}.", f"{person.name}.", f"Oh, {person.name}."))
    ).assistant(answer)
