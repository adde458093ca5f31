"""System prompts that set a role or a rule, and conversations that keep to it."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.fact_questions import fact_question, fact_sentence, facts_about
from onesitting.data.world.lexicon import BOYS, GIRLS, JOBS, TOWNS, with_article
from onesitting.data.world.small_talk import CHAT
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.talk import Talk
from onesitting.tools.protocol import JSON

if TYPE_CHECKING:
    from onesitting.data.world import World


@dataclass(frozen=True)
class Rule:
    """A rule for every reply: how it is said, kept and checked."""

    prompts: tuple[str, ...]
    apply: Callable[[str], str]
    check: JSON
    """What scoring.score_instruction asks of a reply that keeps the rule."""


def _ends(phrase: str) -> Rule:
    prompts = (
        f'End every answer with "{phrase}"',
        f'Always say "{phrase}" at the end.',
        f'Finish each reply with "{phrase}"',
    )
    return Rule(prompts, lambda text: f"{text} {phrase}", {"ends": phrase})


def _starts(phrase: str) -> Rule:
    prompts = (
        f'Begin every answer with "{phrase}"',
        f'Always start with "{phrase}"',
        f'The first words of each reply are "{phrase}"',
    )
    return Rule(prompts, lambda text: f"{phrase} {text}", {"starts": phrase})


# Each phrase ends a sentence, so that it goes before or after any answer.
_LAST_WORDS = ("Over and out.", "Have a nice day!", "Meow!", "So it is.", "Your friend.", "Hooray!")
_FIRST_WORDS = (
    "Ahoy!",
    "Listen!",
    "Of course!",
    "Captain!",
    "Your Majesty!",
    "My dear friend!",
    "Good question.",
    "Ho ho!",
)
RULES: tuple[Rule, ...] = (*map(_ends, _LAST_WORDS), *map(_starts, _FIRST_WORDS))


def rule_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A system prompt with a rule; one to three questions, each answered under it."""
    rule = rng.choice(RULES)
    prompt = rng.choice(rule.prompts)
    helper = rng.choice(("You are a helpful assistant. ", "You answer questions. ", "", ""))
    talk = Talk("system").system(helper + prompt)
    for _ in range(rng.choice((0, 0, 1, 2))):
        said, answers = rng.choice(CHAT)
        talk.user(rng.choice(said)).assistant(rule.apply(rng.choice(answers)))
    found = fact_question(world, rng, split)
    talk.key = f"{found.key}|{prompt}"
    talk.user(found.question).assistant(rule.apply(found.answer))
    guess = fact_sentence(world, rng.choice(facts_about(world, found.fact.kind)))
    return talk.expect("instruction", {**rule.check, "accepted": list(found.accepted)}, guess)


def persona_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A system prompt with a name, a job and a town; the user asks who it is."""
    while True:
        name, job, town = rng.choice(GIRLS + BOYS), rng.choice(tuple(JOBS)), rng.choice(TOWNS)
        asked, wording, answer, accepted = rng.choice(_persona_questions(name, job, town))
        value = {"name": name, "job": job, "town": town, "who": f"{name} {job}"}[asked]
        key = f"persona|{asked}|{value}|{wording}"
        if split_of(key) == split:
            break
    prompt = rng.choice(
        (f"You are {name}, {with_article(job)} from {town}.",
         f"Your name is {name}. You are {with_article(job)} in {town}.",
         f"Play the role of {name}, who works as {with_article(job)} in {town}.")
    )  # fmt: skip
    talk = Talk("system", key).system(prompt)
    if rng.random() < 0.4:
        talk.user(rng.choice(("Hello!", "Good morning!", "Hi there!"))).assistant(
            f"Hello! I am {name}. How can I help you?"
        )
    talk.user(wording).assistant(answer)
    return talk.expect("instruction", {"accepted": accepted}, "I am a small language model.")


def _persona_questions(name: str, job: str, town: str) -> tuple[tuple[str, str, str, list[str]], ...]:
    """(what is asked, wording, answer, accepted)."""
    who = f"I am {name}, {with_article(job)} from {town}."
    work = f"I am {with_article(job)}."
    home = f"I live in {town}."
    return (
        *(
            ("who", wording, who, [name])
            for wording in ("Who are you?", "Please tell me who you are.", "Can you introduce yourself?")
        ),
        *(
            ("name", wording, f"My name is {name}.", [name])
            for wording in ("What is your name?", "What are you called?", "Tell me your name.")
        ),
        *(
            ("job", wording, work, [job])
            for wording in ("What is your job?", "What do you do for work?", "What do you work as?")
        ),
        *(
            ("town", wording, home, [town])
            for wording in ("Where do you live?", "Which town are you from?", "Where is your home?")
        ),
    )


def system_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A rule or a role, both set by the system prompt."""
    return (rule_talk if rng.random() < 0.5 else persona_talk)(world, rng, split)
