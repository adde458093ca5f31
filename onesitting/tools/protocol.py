"""What a tool is: a name, a JSON schema and a function. Shared by training data, chat, RL and serving.

A call never raises: what goes wrong comes back as a result that the model sees ("error: …"). The function is named
by where it is defined ("module:name" or "path/to/file.py:name"), so that another process can find it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]

ERROR = "error: "
"""Beginning of a result that tells of a failure."""

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that a model may call."""

    schema: JSON
    """OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}."""
    function: str
    """Where it is defined: "package.module:name" or "path/to/file.py:name"; arguments come by name."""
    context: JSON = field(default_factory=dict[str, Any])
    """Further arguments that the model does not see, such as which world a look-up looks into."""

    @property
    def name(self) -> str:
        """The name that the model calls it by."""
        return self.schema["function"]["name"]


def schemas(tools: Sequence[Tool]) -> list[JSON]:
    """What `render` writes into the system message."""
    return [tool.schema for tool in tools]


def make_schema(name: str, description: str, properties: JSON, required: Sequence[str] | None = None) -> JSON:
    """A tool's schema in OpenAI's form. required: names that a call must give; None: all."""
    names = list(properties) if required is None else list(required)
    parameters = {"type": "object", "properties": properties, "required": names}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def normalised_schema(schema: object) -> JSON:
    """A tool's schema in OpenAI's form, from that form or from its function alone; no parameters: it takes none.

    Raises ValueError for what is no schema.
    """
    if not isinstance(schema, dict):
        raise ValueError("a tool is no object")
    found: JSON = {str(name): value for name, value in schema.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    function = found.get("function", found)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a tool has no `name`")
    function = {
        str(name): value for name, value in function.items() if function is not found or name != "type"
    }
    function["parameters"] = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(function["parameters"], dict):
        raise ValueError(f"the `parameters` of tool '{function['name']}' are no object")
    return {"type": "function", "function": function}


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
    """What is wrong with a call of one of these tools (schemas); None if it is valid.

    call: {"name", "arguments"} or an OpenAI tool call with these under "function"; arguments a dict or JSON.
    """
    if call.get("type") == "invalid":  # what the chat template's parser could not read
        return str(call.get("error", "cannot be read"))
    function: Mapping[str, Any] = call.get("function", call)
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    name = function.get("name")
    if name not in known:
        return f"there is no tool '{name}'"
    arguments = parsed_arguments(function.get("arguments", {}))
    if isinstance(arguments, str):
        return arguments
    properties: JSON = known[name].get("properties", {})
    missing = [key for key in known[name].get("required", ()) if key not in arguments]
    if missing:
        return f"'{missing[0]}' is missing"
    for key, value in arguments.items():
        if key not in properties:
            return f"'{name}' has no argument '{key}'"
        wanted = properties[key].get("type")
        if not _has_type(value, wanted):
            return f"'{key}' is not of type {wanted}"
        if value not in properties[key].get("enum", [value]):
            return f"'{key}' can not be '{value}'"
    return None


def _has_type(value: object, wanted: str | list[str] | None) -> bool:
    """Whether a JSON value has one of the schema's types; a schema without a known type allows all."""
    types = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if not types or any(name not in _PYTHON_TYPES for name in types):
        return True
    # In JSON true is no number, though in Python bool is an int.
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, _PYTHON_TYPES[name]) for name in types)
