"""The three tools of the world: their schemas, their check and their execution.

A tool never raises: what goes wrong comes back as a result that the model sees ("error: …").
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onesitting.data.world.calculator import ExpressionError, calculate
from onesitting.data.world.calendar import weekday_after

JSON = dict[str, Any]
Lookup = Callable[[str, str], str | None]


def _tool(name: str, description: str, properties: JSON) -> JSON:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


# Short on purpose: the schemas stand in every prompt that offers tools.
CALCULATOR = _tool("calculator", "Work out an expression.", {"expression": {"type": "string"}})
CALENDAR = _tool(
    "calendar",
    "Find the weekday some days after a day.",
    {"day": {"type": "string"}, "days": {"type": "integer"}},
)
LOOKUP_FIELDS = ("price", "river", "market_day", "festival", "age", "job", "home_town", "friend")
LOOKUP = _tool(
    "lookup",
    "Look up a fact.",
    {"name": {"type": "string"}, "field": {"type": "string", "enum": list(LOOKUP_FIELDS)}},
)
TOOLS: tuple[JSON, ...] = (CALCULATOR, CALENDAR, LOOKUP)

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def parsed_arguments(arguments: object) -> JSON | str:
    """The arguments of a call as a dict, or what is wrong with them as a string."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return "the arguments are not JSON"
    if not isinstance(arguments, dict):
        return "the arguments are not an object"
    return {str(name): value for name, value in arguments.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def validate_call(call: Mapping[str, Any], tools: Sequence[JSON]) -> str | None:
    """What is wrong with a call of one of these tools; None if it is valid.

    call: {"name",
        "arguments"} or an OpenAI tool call with these under "function"; arguments a dict or JSON.
    """
    if call.get("type") == "invalid":  # what the chat template's parser could not read
        return str(call.get("error", "cannot be read"))
    function: Mapping[str, Any] = call.get("function", call)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    name = function.get("name")
    if name not in schemas:
        return f"there is no tool '{name}'"
    arguments = parsed_arguments(function.get("arguments", {}))
    if isinstance(arguments, str):
        return arguments
    properties: JSON = schemas[name]["properties"]
    missing = [key for key in schemas[name]["required"] if key not in arguments]
    if missing:
        return f"'{missing[0]}' is missing"
    for key, value in arguments.items():
        if key not in properties:
            return f"'{name}' has no argument '{key}'"
        if not _has_type(value, properties[key]["type"]):
            return f"'{key}' is not of type {properties[key]['type']}"
        if value not in properties[key].get("enum", [value]):
            return f"'{key}' can not be '{value}'"
    return None


def _has_type(value: object, schema_type: str) -> bool:
    # In JSON true is no number, though in Python bool is an int.
    if isinstance(value, bool) and schema_type != "boolean":
        return False
    return isinstance(value, _PYTHON_TYPES[schema_type])


def call_tool(name: str, arguments: Mapping[str, Any] | str, lookup: Lookup | None = None) -> str:
    """The result of a call as text; failures are results too ("error: …").

    lookup: (name, field) -> value or None; the facts that the look-up tool can see.
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
