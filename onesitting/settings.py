"""Every setting as a flat list: dotted name, type, default, help; and values checked one at a time.

The list is read off the dataclasses of `config.py`, so that a field added there is at once a recipe
entry, a command-line option with help, and a line of the written configuration.
"""

import ast
import difflib
import inspect
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onesitting import config, rl_config, tuning_config
from onesitting.errors import UserError

# 20M is how people write token counts; the letters stand for powers of ten, as in "7B".
_MULTIPLES = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}

RENAMED = {"model.init": "start_from"}
"""Old name -> new name: the config.toml of a run that was made with an older version is still read."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a run."""

    name: str
    """Dotted name: `optim.matrix_lr`."""
    section: str
    """Part before the dot; empty for the settings of the run itself."""
    kind: Any
    """Type: bool, int, float, str, a Literal, or a tuple[X, ...]."""
    default: Any
    """Value when neither recipe nor command line give one."""

    @property
    def is_list(self) -> bool:
        """Whether the setting holds several values."""
        return get_origin(self.kind) is tuple

    @property
    def item_kind(self) -> Any:
        """Type of one value: the setting's own, or that of a list's items."""
        return get_args(self.kind)[0] if self.is_list else self.kind


@cache
def settings() -> types.MappingProxyType[str, Setting]:
    """Dotted name -> Setting, in the order of config.py."""
    found: dict[str, Setting] = {}
    hints = get_type_hints(config.RunConfig)
    defaults = config.RunConfig()
    for outer in fields(config.RunConfig):
        kind, default = hints[outer.name], getattr(defaults, outer.name)
        if not is_dataclass(kind):
            found[outer.name] = Setting(name=outer.name, section="", kind=kind, default=default)
            continue
        inner_hints = get_type_hints(kind)
        for inner in fields(kind):
            name = f"{outer.name}.{inner.name}"
            inner_default = getattr(default, inner.name)
            found[name] = Setting(
                name=name, section=outer.name, kind=inner_hints[inner.name], default=inner_default
            )
    return types.MappingProxyType(found)


def sections() -> tuple[str, ...]:
    """Names of the sections, the run's own ("") first."""
    return tuple(dict.fromkeys(["", *(setting.section for setting in settings().values())]))


@cache
def help_texts() -> types.MappingProxyType[str, str]:
    """Dotted name, or section name -> its docstring in config.py.

    A string after a field is not kept at run time, so the source is parsed (10 ms): only help asks.
    """
    classes = _class_definitions(config) | _class_definitions(tuning_config) | _class_definitions(rl_config)
    kinds = {"": config.RunConfig} | {
        name: type(value) for name, value in vars(config.RunConfig()).items() if is_dataclass(value)
    }
    texts: dict[str, str] = {}
    for section, kind in kinds.items():
        texts[section] = inspect.getdoc(kind) or ""
        for parent in kind.__mro__:  # the class itself, then what it inherits
            for field, text in _field_texts(classes[parent.__name__]) if parent.__name__ in classes else ():
                texts.setdefault(f"{section}.{field}" if section else field, text)
    return types.MappingProxyType(texts)


def _class_definitions(module: types.ModuleType) -> dict[str, ast.ClassDef]:
    body = ast.parse(inspect.getsource(module)).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _field_texts(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """(field, the string after it) of a class."""
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield field.target.id, inspect.cleandoc(str(after.value.value))


def unknown_setting(name: str) -> str:
    """Message for a name that no setting has, with the nearest one or the section's list."""
    section, _, leaf = name.rpartition(".")
    known = settings()
    if section and section not in sections():
        close = difflib.get_close_matches(section, sections(), 1)
        if close and f"{close[0]}.{leaf}" in known:
            return f"unknown setting '{name}'; did you mean '{close[0]}.{leaf}'?"
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    if same_leaf:
        return f"unknown setting '{name}'; did you mean {' or '.join(map(repr, same_leaf))}?"
    if name in sections():
        return f"'{name}' is a section, not a setting; its settings are {_names_of(name)}"
    close = _nearest(leaf, section) or difflib.get_close_matches(name, known, 1, 0.7)
    if close:
        return f"unknown setting '{name}'; did you mean {' or '.join(map(repr, close))}?"
    if section in sections() and section:
        return f"unknown setting '{name}'; settings of '{section}' are {_names_of(section)}"
    return f"unknown setting '{name}'; `onesitting run --help` lists all settings"


def _nearest(leaf: str, section: str) -> list[str]:
    """Settings of one section whose name contains, resembles, or whose help mentions the name asked for."""
    mates = {name.rpartition(".")[2]: name for name, it in settings().items() if it.section == section}
    parts = [mates[other] for other in mates if set(leaf.split("_")) <= set(other.split("_"))]
    alike = [mates[other] for other in difflib.get_close_matches(leaf, mates, 1)]
    # `optim.learning_rate` is spelt like none of the rates, but their help says "learning rate".
    words = leaf.replace("_", " ")
    in_help = [name for name in mates.values() if len(words) > 3 and words in help_texts()[name].lower()]
    return parts or alike or in_help[:1]


def _names_of(section: str) -> str:
    return ", ".join(setting.name for setting in settings().values() if setting.section == section)


def convert(setting: Setting, value: object, *, text: bool = False) -> Any:
    """The value in the setting's own type.

    value: from TOML, or from the command line (text=True), where everything is a string.
    Raises UserError with the setting, the value and what is allowed.
    """
    if not setting.is_list:
        return _convert_one(setting, value, text)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(_convert_one(setting, item, text) for item in items)


def _convert_one(setting: Setting, value: object, text: bool) -> Any:
    kind = setting.item_kind
    converted = None
    if get_origin(kind) is Literal:
        converted = value if value in get_args(kind) else None
    elif kind is bool:
        converted = _TRUTH.get(value.lower()) if text and isinstance(value, str) else value
        converted = converted if isinstance(converted, bool) else None
    elif kind is str:
        converted = value if isinstance(value, str) and _is_utf8(value) else None
    else:
        converted = _convert_number(kind, value, text)
    if converted is None:
        raise UserError(f"{setting.name} = {value!r}: {allowed(setting)} expected")
    return converted


def _is_utf8(value: str) -> bool:
    # File names from the command line may hold bytes that are no UTF-8; no TOML file could say them.
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _convert_number(kind: type, value: object, text: bool) -> int | float | None:
    try:
        number = _number_of(value) if text and isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            return None
        if kind is float:
            return float(number)
    except (ValueError, OverflowError):
        return None
    if isinstance(number, int):
        return number
    # In a recipe 1.0 for a whole number is most likely a mistake about the setting; a typed 1e6 is not.
    return int(number) if text and number.is_integer() else None


def _number_of(text: str) -> int | float:
    digits, factor = text.strip(), 1
    if digits and digits[-1].lower() in _MULTIPLES:
        digits, factor = digits[:-1], _MULTIPLES[digits[-1].lower()]
    try:
        return int(digits) * factor
    except ValueError:
        return float(digits) * factor


def allowed(setting: Setting) -> str:
    """What a value of this setting looks like: `one of auto, on, off`."""
    kind = setting.item_kind
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind is str:
        return "text"
    return {bool: "true or false", int: "a whole number", float: "a number"}[kind]
