"""The options of the commands that take a recipe: one `--section.name` for every setting of config.py."""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, get_args, get_origin

from onesitting import settings as st
from onesitting.config import RunConfig
from onesitting.errors import UserError
from onesitting.recipe import bundled_recipes, flat_values, load_recipe, recipe_name, resolve

SHORTER = {"start_from": "--from"}
"""Setting -> another spelling of its option. (`from` itself cannot name a field in Python.)"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command line asks for."""

    cfg: RunConfig
    """Resolved settings; `name` is always set."""
    recipe: str
    """Recipe as it was given."""
    options: argparse.Namespace
    """The command's own options and positional arguments."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError where argparse prints its usage and exits."""

    def __init__(self, command: str, usage: str, description: str) -> None:
        super().__init__(
            prog=f"onesitting {command}",
            usage=f"onesitting {command} {usage}",
            description=description,
            formatter_class=_help_formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, with the command that shows the options."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    width = min(110, shutil.get_terminal_size().columns)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=38, width=width)


def settings_parser(command: str, summary: str, usage: str = "RECIPE", default: str = "") -> Parser:
    """Parser of one command with a RECIPE argument; `parse_request` adds the settings.

    default: the recipe where none is given; empty: one has to be.
    """
    parser = Parser(command, f"{usage} [--SETTING VALUE ...]", f"{summary}\n\nRecipes:\n{_recipe_list()}")
    given = f"name from the list, a .toml file, or the folder of a run{f' [{default}]' if default else ''}"
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?" if default else None, default=default, help=given
    )
    return parser


def _recipe_list() -> str:
    return "\n".join(f"  {name:<6} {line}" for name, line in bundled_recipes().items())


def parse_request(
    parser: Parser, argv: list[str], choose_size: Callable[[RunConfig], str] | None = None
) -> Request:
    """Recipe and options -> resolved settings; --help prints them with the recipe's values and exits.

    choose_size: finds the size where it is `auto`; None: it stays so, with the shape of a nominal machine.
    Raises UserError for an unknown option with the nearest one, and for all that `resolve` refuses.
    """
    argv = [_with_underscores(word) for word in argv]
    wants_help = any(word in ("-h", "--help") for word in argv)
    _add_settings(parser, _values_for_help(argv) if wants_help else {}, wants_help)
    known, extra = parser.parse_known_args(argv)
    for word in extra:
        if word.startswith("--"):
            raise UserError(st.unknown_setting(word[2:].partition("=")[0]))
    if extra:
        raise UserError(f"unexpected {extra[0]!r}: a setting starts with --, as in --budget 5m")
    given = {name: value for name, value in vars(known).items() if name in st.settings()}
    recipe = load_recipe(known.recipe)
    cfg = resolve(recipe, given)
    cfg = replace(cfg, name=cfg.name or recipe_name(known.recipe))
    if cfg.size == "auto" and choose_size is not None:
        # Where `auto` stood: a recipe's own settings go before what its size decides.
        (given if given.get("size") else recipe)["size"] = choose_size(cfg)
        cfg = replace(resolve(recipe, given), name=cfg.name)
    return Request(cfg=cfg, recipe=known.recipe, options=known)


def _with_underscores(word: str) -> str:
    """`--optim.matrix-lr` means `--optim.matrix_lr`; only names of settings are touched."""
    name, equals, value = word.partition("=")
    candidate = name[2:].replace("-", "_")
    return f"--{candidate}{equals}{value}" if name.startswith("--") and candidate in st.settings() else word


def _values_for_help(argv: list[str]) -> dict[str, Any]:
    for word in argv:
        if not word.startswith("-"):
            return flat_values(resolve(load_recipe(word)))
    return {}


def _add_settings(parser: Parser, values: dict[str, Any], wants_help: bool) -> None:
    """One option a setting, grouped by section; values: what help shows instead of the defaults."""
    texts = st.help_texts() if wants_help else {}
    groups = {name: parser.add_argument_group(name or "run", texts.get(name, "")) for name in st.sections()}
    for name, setting in st.settings().items():
        value = _shown(values.get(name, setting.default))
        groups[setting.section].add_argument(
            *([SHORTER[name]] if name in SHORTER else []),
            f"--{name}",
            dest=name,
            default=argparse.SUPPRESS,  # only what is given overrides the recipe
            help=f"{' '.join(texts.get(name, '').split())} [{value}]".replace("%", "%%"),
            **_shape(setting),
        )


def _shape(setting: st.Setting) -> dict[str, Any]:
    """How an option takes its values: argparse's metavar, nargs and action."""
    kind = setting.item_kind
    if get_origin(kind) is Literal:
        metavar = "|".join(get_args(kind))
    else:
        metavar = {bool: "true|false", int: "N", float: "X", str: "TEXT"}[kind]
    if setting.is_list:
        return {"metavar": metavar, "nargs": "*", "action": "extend"}
    if kind is bool:
        return {"metavar": metavar, "nargs": "?", "const": "true"}
    return {"metavar": metavar}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value) if value != "" else "empty"
