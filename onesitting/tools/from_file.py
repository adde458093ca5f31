"""Tools from a Python file: its public top-level functions with a docstring.

The file is read, not run, until a tool is called: names, type hints and docstrings make the schema.
"""

import ast
from pathlib import Path
from typing import Any

from onesitting.errors import UserError
from onesitting.tools.protocol import JSON, Tool, make_schema

_SCHEMA_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}


def read_tools(path: Path) -> list[Tool]:
    """The tools of a Python file, in its order.

    A tool is a function without leading underscore, with a docstring (its first line is the description) and a type
    hint for every parameter: str, int, float, bool, list, dict or Literal[…]. A parameter with a default is optional.
    Raises UserError with file and line for a function that has a docstring but no such hints, or a parameter that
    cannot be given by name.
    """
    path = Path(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no Python file that can be read ({error})") from None
    tools: list[Tool] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            described = ast.get_docstring(node)
            if described:
                tools.append(_tool(path, node, described.splitlines()[0]))
    if not tools:
        raise UserError(
            f"{path}: no function with a docstring in it; give each tool a docstring and type hints"
        )
    return tools


def _tool(path: Path, node: ast.FunctionDef, description: str) -> Tool:
    if node.args.posonlyargs:
        first = node.args.posonlyargs[0]
        raise UserError(
            f"{path}, line {first.lineno}: parameter '{first.arg}' of {node.name} has no name for callers, and a model "
            "gives arguments by name; take the / out of its parameters"
        )
    arguments = [*node.args.args, *node.args.kwonlyargs]
    positional = len(node.args.args)
    n_required = positional - len(node.args.defaults)
    optional = {argument.arg for argument in arguments[n_required:positional]}
    defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    optional |= {argument.arg for argument, default in defaults if default is not None}
    properties: JSON = {}
    for argument in arguments:
        schema = _schema_of(argument.annotation)
        if schema is None:
            raise UserError(
                f"{path}, line {argument.lineno}: parameter '{argument.arg}' of {node.name} needs a type hint: "
                f"{', '.join(_SCHEMA_TYPES)} or Literal"
            )
        properties[argument.arg] = schema
    required = [name for name in properties if name not in optional]
    return Tool(
        schema=make_schema(node.name, description, properties, required),
        function=f"{path.resolve()}:{node.name}",
    )


def _schema_of(hint: ast.expr | None) -> JSON | None:
    """JSON schema of a type hint; None for one that is not understood."""
    if isinstance(hint, ast.Name) and hint.id in _SCHEMA_TYPES:
        return {"type": _SCHEMA_TYPES[hint.id]}
    if isinstance(hint, ast.Subscript) and isinstance(hint.value, ast.Name):
        if hint.value.id in ("list", "dict"):
            return {"type": _SCHEMA_TYPES[hint.value.id]}
        if hint.value.id == "Literal":
            items = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
            try:
                values: list[Any] = [ast.literal_eval(item) for item in items]
            except ValueError:
                return None
            kind = _SCHEMA_TYPES.get(type(values[0]).__name__) if values else None
            return {"type": kind, "enum": values} if kind else None
    return None
