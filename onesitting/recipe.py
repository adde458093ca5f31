"""Recipes: a TOML file and the command line become one frozen `RunConfig`.

Precedence: the defaults of config.py, then the recipe, then the command line. Whatever is unknown
or of the wrong type is refused with its name, its place and the nearest name that exists.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from onesitting import settings as st
from onesitting.budgets import parse_budget, world_mb
from onesitting.config import RunConfig
from onesitting.dial import parse_size
from onesitting.errors import UserError
from onesitting.runlog import CONFIG_FILE, write_atomic

Flat = dict[str, Any]


def bundled_recipes() -> dict[str, str]:
    """Name -> first comment line of each recipe in the package: the demo, then the small models first."""
    folder = resources.files("onesitting") / "recipes"
    found: dict[str, str] = {}
    for file in sorted(
        folder.iterdir(),
        key=lambda file: (file.name != "demo.toml", file.name[0].isdigit(), len(file.name), file.name),
    ):
        if file.name.endswith(".toml"):
            first = file.read_text(encoding="utf-8").split("\n", 1)[0]
            found[file.name.removesuffix(".toml")] = first.lstrip("# ")
    return found


def load_recipe(name_or_path: str | Path) -> Flat:
    """Dotted name -> value, of a recipe in the package, a .toml file, or a run folder's config.toml.

    A run folder that was moved is taken where it is now: its `out` and `name` follow the folder.
    Raises UserError if nothing is there, with file and line if the content is wrong.
    """
    where = str(name_or_path)
    path = Path(where).expanduser()
    if where in bundled_recipes():
        file = resources.files("onesitting") / "recipes" / f"{where}.toml"
        return _parse(file.read_text(encoding="utf-8"), f"recipe {where}")
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"{where} has no {CONFIG_FILE}: it is not the folder of a run")
        flat = _parse_file(path / CONFIG_FILE)
        place = path.resolve()  # of `.`, `runs/demo/..` or a link, the name of the folder itself
        out = path.parent if path.name == place.name and not path.is_symlink() else place.parent
        return flat | {"out": str(out), "name": place.name}
    if not path.is_file():
        known = ", ".join(bundled_recipes())
        raise UserError(f"no recipe '{where}': give one of {known}, a .toml file, or the folder of a run")
    return _parse_file(path)


def recipe_name(name_or_path: str | Path) -> str:
    """Name of the run that a recipe makes when no `name` is set: the file's or folder's own."""
    return Path(name_or_path).expanduser().resolve().name.removesuffix(".toml")


def _parse_file(path: Path) -> Flat:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: a TOML file in UTF-8 expected, found byte {error.object[error.start]:#04x}"
        ) from None


def _parse(text: str, where: str) -> Flat:
    """Checked settings of one TOML text; where: its name in messages."""
    try:
        nested = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None
    flat: Flat = {}
    for name, value in flatten(nested).items():
        try:
            flat[st.RENAMED.get(name, name)] = _checked(st.RENAMED.get(name, name), value, text=False)
        except UserError as error:
            line = _line_of(text, name)
            raise UserError(f"{where}{f', line {line}' if line else ''}: {error}") from None
    return flat


def _checked(name: str, value: object, *, text: bool) -> Any:
    setting = st.settings().get(name)
    if setting is None:
        raise UserError(st.unknown_setting(name))
    return st.convert(setting, value, text=text)


def _line_of(text: str, name: str) -> int | None:
    """Line of a setting in TOML text, 1 the first; None for spellings that need a whole parser to find."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]\[]+?)\s*\]", line):
            section = header[1] + "."
            if header[1] == name:
                return number
        elif (key := re.match(r"\s*([\w.-]+)\s*=", line)) and section + key[1] == name:
            return number
    return None


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Flat:
    """{"optim": {"matrix_lr": 1}} -> {"optim.matrix_lr": 1}; flat names pass as they are."""
    flat: Flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def resolve(recipe: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a run: defaults, then the recipe, then the overrides.

    What `size` decides comes right before the settings that are given with it: the recipe's, or the overrides'.
    recipe, overrides: dotted or nested names; the overrides' values may be command-line text.
    Raises UserError for a name, type or value that is not allowed.
    """
    flat = {name: setting.default for name, setting in st.settings().items()}
    for part, is_text in ((flatten(recipe), False), (flatten(overrides or {}), True)):
        given = {name: _checked(name, value, text=is_text) for name, value in part.items()}
        if given.get("size"):
            flat |= parse_size(given["size"]).settings()
        flat |= given
    if flat["corpus.world_mb"] == 0:
        flat["corpus.world_mb"] = world_mb(parse_budget(flat["budget"]))
    top = {name: value for name, value in flat.items() if "." not in name}
    for section in filter(None, st.sections()):
        values = {
            name.partition(".")[2]: value for name, value in flat.items() if name.startswith(section + ".")
        }
        top[section] = type(getattr(RunConfig(), section))(**values)
    return RunConfig(**top)


def flat_values(cfg: RunConfig) -> Flat:
    """Dotted name -> value of every setting of a configuration."""
    return dict(_walk(cfg, ""))


def _walk(values: object, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in vars(values).items():
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def write_config(cfg: RunConfig, path: Path) -> None:
    """Write every setting with its help as a comment; `load_recipe` reads back the same values."""
    lines = [
        "# The resolved configuration of a run: every setting, defaults included. It is a recipe itself."
    ]
    values = flat_values(cfg)
    for section in st.sections():
        if section:
            lines += ["", f"[{section}]"]
        for name, setting in st.settings().items():
            if setting.section == section:
                entry = f"{name.rpartition('.')[2]} = {_toml(values[name])}"
                lines.append(f"{entry}  # {' '.join(st.help_texts()[name].split())}")
    write_atomic(path, "\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's, but TOML wants DEL escaped as well.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
