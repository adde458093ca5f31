"""Conversations with tools: the right one with the right arguments, its result in words, none without need.

The rule that holds throughout: a tool that fits is used; where none fits, the assistant answers itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

from onesitting.data.world.fact_questions import fact_question, facts_about
from onesitting.data.world.lexicon import BOYS, FOODS, GIRLS, WEEKDAYS, with_article
from onesitting.data.world.small_talk import GREETING_REPLIES, GREETINGS, closing, small_talk_turn
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.state import Fact, state
from onesitting.data.world.talk import Message, Talk, call_message, politely
from onesitting.data.world.tools import CALCULATOR, CALENDAR, LOOKUP, TOOLS, call_tool, lookup_in
from onesitting.data.world.word_problems import COUNTABLES, bare_problem
from onesitting.tools.protocol import JSON

if TYPE_CHECKING:
    from onesitting.data.world import World


@dataclass(frozen=True)
class Request:
    """A question that one tool answers."""

    tool: JSON
    question: str
    arguments: dict[str, Any]
    answer: Callable[[str], str]
    """Puts a result into words."""
    key: str
    also: tuple[dict[str, Any], ...] = ()
    """Other arguments that are as good."""

    @property
    def name(self) -> str:
        """Name of the tool."""
        return self.tool["function"]["name"]


_SIGNS = {
    "+": ("What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?",
     "Work out {a} + {b}, please."),
    "-": ("What is {a} - {b}?", "What is {a} minus {b}?", "Take {b} away from {a}.",
     "How much is {a} - {b}?", "Work out {a} - {b}, please."),
    "*": ("What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.",
     "How much is {a} times {b}?", "Work out {a} * {b}, please."),
    "/": ("What is {a} / {b}?", "Divide {a} by {b}.", "What is {a} divided by {b}?",
     "How much is {a} divided by {b}?"),
}  # fmt: skip
_SIGN_STORIES = {
    "+": "{who} has {a} {things} and gets {b} more. How many {things} does {who} have now?",
    "-": "{who} has {a} {things} and gives away {b}. How many {things} does {who} have left?",
    "*": "There are {b} boxes with {a} {things} in each. How many {things} are there?",
    "/": "{a} {things} are shared by {b} people. How many {things} does each get?",
}


def _calculation(world: "World", rng: Random) -> Request:
    sign = rng.choice("++--**/")
    a, b = rng.randint(11, 999), rng.randint(2, 999)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    if sign in "*/":
        b = rng.randint(2, 99)
    if sign == "/":
        a = b * rng.randint(2, 60)
    if rng.random() < 0.7:
        question = rng.choice(_SIGNS[sign]).format(a=a, b=b)
    else:
        question = _SIGN_STORIES[sign].format(
            a=a, b=b, who=rng.choice(GIRLS + BOYS), things=rng.choice(COUNTABLES)[1]
        )
    also = ({"expression": f"{b} {sign} {a}"},) if sign in "+*" else ()
    wording = rng.choice(("The answer is {}.", "That makes {}.", "It is {}."))
    return Request(
        CALCULATOR,
        question,
        {"expression": f"{a} {sign} {b}"},
        wording.format,
        f"calculator|{sign}|{a}|{b}",
        also,
    )


def _day(world: "World", rng: Random) -> Request:
    day, days = rng.choice(WEEKDAYS), rng.randint(2, 60)
    back = rng.random() < 0.3
    side = "before" if back else "after"
    wording = rng.choice(
        ("What day is it {n} days {side} {day}?", "Which day comes {n} days {side} {day}?",
         "Which weekday is {n} days {side} {day}?",
         "Tell me the day {n} days {side} {day}.", "I need to know what day is {n} days {side} {day}.")
    )  # fmt: skip
    question = wording.format(n=days, side=side, day=day)

    def answer(result: str) -> str:
        return f"{days} days {side} {day} is {with_article(result)}."

    arguments = {"day": day, "days": -days if back else days}
    return Request(CALENDAR, question, arguments, answer, f"calendar|{day}|{arguments['days']}")


# field -> (questions, answer); {s} is the subject, {v} the result.
_LOOKUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "price": (("How much does {one} cost?", "What is the price of {one}?", "Look up the price of {one}.",
     "Check the price of {one}, please.", "What does {one} cost?"), "The price is {v} coins."),
    "river": (("Which river flows through {s}?", "Look up the river of {s}.",
     "What is the river of {s} called?"), "It is the {v}."),
    "market_day": (("When is the market in {s}?", "Look up the market day of {s}.",
     "On which day is the market in {s}?"), "It is on {v}."),
    "festival": (("Which festival does {s} have?", "Look up the festival of {s}.",
     "What is the festival of {s} called?"), "It is the {v}."),
    "age": (("How old is {s}?", "Look up the age of {s}.", "What is the age of {s}?",
     "Can you find out how old {s} is?"), "{s} is {v} years old."),
    "job": (("What is the job of {s}?", "Look up the job of {s}.", "What does {s} do for work?"),
     "The job of {s} is {v}."),
    "home_town": (("Where does {s} live?", "Look up where {s} lives.", "In which town does {s} live?"),
     "{s} lives in {v}."),
    "friend": (("Who is the best friend of {s}?", "Look up the friend of {s}.",
     "Who is a friend of {s}?"), "It is {v}."),
}  # fmt: skip


@lru_cache(maxsize=4)
def _lookup_facts(seed: int) -> dict[str, list[Fact]]:
    return {kind: [fact for fact in state(seed).facts if fact.kind == kind] for kind in _LOOKUPS}


def _fact(world: "World", rng: Random) -> Request:
    kind = rng.choice(("price", "price", "price", *_LOOKUPS))
    fact = rng.choice(_lookup_facts(world.seed)[kind])
    questions, answer = _LOOKUPS[kind]
    wording = rng.choice(questions)
    one = (
        (FOODS[fact.subject].one if fact.subject in FOODS else with_article(fact.subject))
        if kind == "price"
        else ""
    )
    return Request(
        LOOKUP,
        wording.format(s=fact.subject, one=one),
        {"name": fact.subject, "field": kind},
        lambda result: answer.format(s=fact.subject, v=result).replace(" 1 coins", " 1 coin"),
        f"fact|{fact.key}|{wording}",  # the key of the same question without tools: one split for both
    )


_REQUESTS: dict[str, Callable[["World", Random], Request]] = {
    "calculator": _calculation,
    "calendar": _day,
    "lookup": _fact,
}


def _request(world: "World", rng: Random, split: Split, tools: list[JSON]) -> Request:
    """A request of this split that one of the tools answers."""
    while True:
        found = _REQUESTS[rng.choice(tools)["function"]["name"]](world, rng)
        if split_of(found.key) == split:
            return found


def _offered(rng: Random, without: JSON | None = None) -> list[JSON]:
    """One to three of the tools in any order."""
    tools = [tool for tool in TOOLS if tool is not without]
    return rng.sample(tools, min(len(tools), rng.choice((1, 2, 2, 3))))


def _guessed_call(rng: Random, tools: list[JSON]) -> Message:
    """The baseline: any of the tools with arguments of the right types."""
    name = rng.choice(tools)["function"]["name"]
    arguments = {
        "calculator": {"expression": f"{rng.randint(11, 999)} {rng.choice('+-*')} {rng.randint(2, 999)}"},
        "calendar": {"day": rng.choice(WEEKDAYS), "days": rng.randint(2, 60)},
        "lookup": {"name": rng.choice(GIRLS + BOYS), "field": rng.choice(tuple(_LOOKUPS))},
    }
    return call_message(name, arguments[name])


def _use_turn(world: "World", rng: Random, request: Request, talk: Talk, *, question: str = "") -> None:
    """Question, call, result; the call can be scored, the answer follows."""
    talk.user(question or politely(rng, request.question))
    talk.call(
        request.name, request.arguments, call_tool(request.name, request.arguments, lookup_in(world.seed))
    )


def use_talk(world: "World", rng: Random, split: Split) -> Talk:
    """One or two requests, each with a call, its result and the answer; the last call can be scored."""
    tools = _offered(rng)
    talk = Talk("tools", tools=tools)
    # The schemas are longer than the talk: several requests under one set of them are read for the price of one.
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.12:
            small_talk_turn(rng, talk)
        request = _request(world, rng, split, tools)
        _use_turn(world, rng, request, talk)
        talk.key = request.key
        reference = {"tools": tools, "name": request.name, "arguments": [request.arguments, *request.also]}
        talk.expect("tool", reference, _guessed_call(rng, tools))
        talk.assistant(request.answer(talk.messages[-1]["content"]))
    if rng.random() < 0.1:
        closing(rng, talk)
    return talk


def no_tool_talk(world: "World", rng: Random, split: Split) -> Talk:
    """Tools are offered, none of them fits: the assistant answers itself."""
    kind = rng.choice(("fact", "sum", "chat"))
    talk = Talk("tools")
    if kind == "fact":
        found = fact_question(world, rng, split, rng.choice(("animals", "nature", "jobs")))
        talk.key, talk.tools = found.key, _offered(rng)
        talk.user(found.question).assistant(found.answer)
        guess = rng.choice(facts_about(world, found.fact.kind)).value
        return _expect_no_tool(talk, list(found.accepted), guess)
    if kind == "sum":
        problem = bare_problem(rng, split)
        talk.key, talk.tools = problem.key, _offered(rng, CALCULATOR)
        talk.user(problem.question).assistant(f"{problem.steps} {problem.sentence}")
        return _expect_no_tool(talk, [problem.answer], str(rng.randint(1, 100)))
    talk.tools = _offered(rng)
    talk.user(rng.choice(GREETINGS)).assistant(rng.choice(GREETING_REPLIES))
    small_talk_turn(rng, talk)
    return talk


def _expect_no_tool(talk: Talk, accepted: list[str], guess: str) -> Talk:
    return talk.expect(
        "tool", {"tools": talk.tools, "name": None, "accepted": accepted, "rejected": []}, guess
    )


def _with(rng: Random, needed: JSON) -> list[JSON]:
    """The needed tool among others, in any order."""
    tools = [needed, *rng.sample([tool for tool in TOOLS if tool is not needed], rng.choice((0, 1, 2)))]
    return rng.sample(tools, len(tools))


def failed_call_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A call that ends in an error, which the assistant passes on in words."""
    if rng.random() < 0.5:
        a = rng.randint(2, 999)
        request = Request(
            CALCULATOR, f"What is {a} / 0?", {"expression": f"{a} / 0"}, str, f"calculator|/|{a}|0"
        )
        reply = "That has no answer: nobody can divide by zero."
    else:
        stranger = rng.choice([name for name in GIRLS + BOYS if name not in world.state.people])
        field = rng.choice(("age", "job", "home_town"))
        wording = rng.choice(_LOOKUPS[field][0])
        request = Request(
            LOOKUP,
            wording.format(s=stranger),
            {"name": stranger, "field": field},
            str,
            f"lookup|{field}:{stranger}|{wording}",
        )
        reply = f"I could not find {stranger}. I am sorry."
    talk = Talk("tools", request.key, tools=_with(rng, request.tool))
    _use_turn(world, rng, request, talk, question=request.question)
    return talk.assistant(reply)


def tool_talk(world: "World", rng: Random, split: Split) -> Talk:
    """Any conversation with tools."""
    make = rng.choices((use_talk, no_tool_talk, failed_call_talk), (0.72, 0.2, 0.08))[0]
    return make(world, rng, split)


def agent_prompt(world: "World", rng: Random, split: Split) -> dict[str, Any]:
    """A question that one of the offered tools answers: right is a last message that holds the tool's result.

    The form is that of `prompts.prompt`; `oracle` is the list of messages from the call to the answer.
    """
    tools = _offered(rng)
    request = _request(world, rng, split, tools)
    result = call_tool(request.name, request.arguments, lookup_in(world.seed))
    answer = {"role": "assistant", "content": request.answer(result)}
    return {
        "messages": [{"role": "user", "content": politely(rng, request.question)}],
        "tools": tools,
        "scorer": "answer",
        "reference": {"accepted": [result], "name": request.name, "arguments": [request.arguments]},
        "oracle": [
            call_message(request.name, request.arguments),
            {"role": "tool", "content": result},
            answer,
        ],
        "meta": {"task": "agent", "key": request.key},
    }
