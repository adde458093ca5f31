"""The three tools of the world: their schemas, their check and their execution.

A tool never raises: what goes wrong comes back as a result that the model sees ("error: …").
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from onesitting.data.world.calculator import ExpressionError, calculate
from onesitting.data.world.calendar import weekday_after
from onesitting.data.world.state import state
from onesitting.tools.protocol import JSON, Tool, make_schema, parsed_arguments, validate_call

Lookup = Callable[[str, str], str | None]


# Short on purpose: the schemas stand in every prompt that offers tools.
CALCULATOR = make_schema("calculator", "Work out an expression.", {"expression": {"type": "string"}})
CALENDAR = make_schema(
    "calendar",
    "Find the weekday some days after a day.",
    {"day": {"type": "string"}, "days": {"type": "integer"}},
)
LOOKUP_FIELDS = ("price", "river", "market_day", "festival", "age", "job", "home_town", "friend")
LOOKUP = make_schema(
    "lookup",
    "Look up a fact.",
    {"name": {"type": "string"}, "field": {"type": "string", "enum": list(LOOKUP_FIELDS)}},
)
TOOLS: tuple[JSON, ...] = (CALCULATOR, CALENDAR, LOOKUP)


@lru_cache(maxsize=4)
def _table(seed: int) -> dict[tuple[str, str], str]:
    return {(fact.subject.lower(), fact.kind): fact.value for fact in state(seed).facts}


def lookup_in(seed: int) -> Lookup:
    """The look-up of a world: (name, field) -> value, or None."""
    table = _table(seed)
    return lambda name, field: table.get((name.strip().lower(), field.strip().lower()))


def lookup(name: str, field: str, seed: int) -> str:
    """The value of a fact of world `seed`. Raises LookupError if there is none."""
    found = lookup_in(seed)(name, field)
    if found is None:
        raise LookupError("not found")
    return found


def world_tools(seed: int) -> tuple[Tool, ...]:
    """The tools of a world for `onesitting.tools`: what chat, RL and serving run."""
    return (
        Tool(schema=CALCULATOR, function="onesitting.data.world.calculator:calculate"),
        Tool(schema=CALENDAR, function="onesitting.data.world.calendar:weekday_after"),
        Tool(schema=LOOKUP, function="onesitting.data.world.tools:lookup", context={"seed": seed}),
    )


def call_tool(name: str, arguments: Mapping[str, Any] | str, lookup: Lookup | None = None) -> str:
    """The result of a call as text, as `world_tools` would give it, worked out here: for writing training data.

    Failures are results too ("error: …"). lookup: (name, field) -> value or None; the facts that can be seen.
    """
    problem = validate_call({"name": name, "arguments": arguments}, TOOLS)
    if problem:
        return f"error: {problem}"
    values = parsed_arguments(arguments)
    assert isinstance(values, dict)
    if name == "calculator":
        try:
            return calculate(values["expression"])
        except ExpressionError as error:
            return f"error: {error}"
    if name == "calendar":
        try:
            return weekday_after(values["day"], values["days"])
        except ValueError as error:
            return f"error: {error}"
    found = lookup(values["name"], values["field"]) if lookup else None
    return "error: not found" if found is None else found
