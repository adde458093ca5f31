"""Rules of the house: who may import whom, what stays light, what is written down."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "onesitting").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_imports_point_in_the_documented_directions():
    # The rules are the contracts of import-linter in pyproject.toml.
    checker = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([checker, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module",
    [
        *("config", "settings", "recipe", "runlog", "checks", "cli", "cli_settings", "terminal"),
        *("tokenizer.bpe", "data.world", "data.sources", "data.prepare", "data.tokens"),
    ],
)
def test_light_module_does_not_import_torch(module: str):
    program = f"import sys, onesitting.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("module", ["pipeline", "chat_ui", "server.run", "inference.generate"])
def test_no_command_waits_for_pytorch_s_compiler_to_load(module: str):
    program = f"import sys, onesitting.{module}; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_no_code_is_made_from_text_and_nothing_is_pickled():
    forbidden = {"eval", "exec", "__import__"}
    found: list[str] = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}")
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found += [f"{path.relative_to(ROOT)}:{node.lineno}" for name in names if name == "pickle"]
    assert found == []


def test_functions_and_files_stay_short():
    long: list[str] = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        # The synthetic world's files are mostly sentences and word lists, which read well in one place.
        if text.count("\n") > 400 and "world" not in path.parts:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert long == []


def installed_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[ \[<>=!~;]", line)[0].lower().replace("_", "-") for line in requirements}


def test_every_import_is_declared_and_every_core_dependency_is_imported():
    core = installed_names(PROJECT["dependencies"])
    extras = installed_names([one for many in PROJECT["optional-dependencies"].values() for one in many])
    owners = metadata.packages_distributions()
    imported: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                imported.add(node.module.partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"onesitting"}
    needed = {owners[name][0].lower().replace("_", "-") for name in third_party if name in owners}
    assert {name for name in third_party if name not in owners} == set()
    assert needed - core - extras == set(), "imported, but not in pyproject.toml"
    assert core - needed == set(), "in pyproject.toml, but imported nowhere"


@pytest.mark.parametrize("name", ["base", "test", "dev"])
def test_pins_are_exact_and_within_the_declared_ranges(name: str):
    from packaging.requirements import Requirement

    lines = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and line[0] not in "#-")
    assert len(pins) == len([line for line in lines if line and line[0] not in "#-"])
    declared = PROJECT["dependencies"] + [
        one for many in PROJECT["optional-dependencies"].values() for one in many
    ]
    for requirement in map(Requirement, declared):
        if requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_every_core_dependency_is_explained():
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    assert [name for name in installed_names(PROJECT["dependencies"]) if f"| {name} |" not in text] == []


def test_every_command_is_documented():
    from onesitting.cli import COMMANDS

    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"onesitting {name}" not in text] == []


def test_links_in_the_documents_lead_somewhere():
    dead: list[str] = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []
