"""Tools run in processes of their own: contract 20."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesitting.data.world.tools import TOOLS, call_tool, lookup_in, world_tools
from onesitting.errors import UserError
from onesitting.tools import worker
from onesitting.tools.from_file import read_tools
from onesitting.tools.process import ToolProcess
from onesitting.tools.protocol import validate_call
from onesitting.tools.sandbox import Limits, run_python

TOOLS_FILE = '''
"""Some tools."""
import sys, time
from typing import Literal


def area(width: float, height: float, unit: Literal["m", "cm"] = "m") -> str:
    """Area of a rectangle."""
    print("a tool may print")
    return f"{width * height:g} {unit}2"


def numbers(n: int) -> list:
    """Count."""
    return list(range(n))


def sleep(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "awake"


def leave(code: int) -> str:
    """End the program."""
    sys.exit(code)


def eat(mb: int) -> str:
    """Take memory."""
    return str(len(bytearray(mb * 1024 * 1024)))


def _helper() -> None:
    """Not a tool."""


def undescribed(x):
    return x
'''


LEAVES_A_CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass'])"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "mine.py"
    path.write_text(TOOLS_FILE)
    return path


@pytest.fixture(scope="module")
def process(path: Path) -> Iterator[ToolProcess]:
    limits = Limits(seconds=15.0, memory_mb=300, output_chars=200)
    with ToolProcess(read_tools(path), limits) as process:
        yield process


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_functions_with_docstrings_and_hints_become_schemas(path: Path):
    tools = {tool.name: tool.schema["function"] for tool in read_tools(path)}
    assert list(tools) == ["area", "numbers", "sleep", "leave", "eat"]
    assert tools["area"]["description"] == "Area of a rectangle."
    parameters = tools["area"]["parameters"]
    assert parameters["required"] == ["width", "height"]
    assert parameters["properties"]["unit"] == {"type": "string", "enum": ["m", "cm"]}


def test_a_parameter_without_a_hint_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "bad.py"
    path.write_text('def f(x):\n    """Do."""\n')
    with pytest.raises(UserError, match=r"bad\.py, line 1: parameter 'x' of f needs a type hint"):
        read_tools(path)


def test_results_come_back_as_text_or_json(process: ToolProcess):
    assert process.call(call("area", width=2, height=3.5)) == "7 m2"
    assert process.call(call("numbers", n=3)) == "[0, 1, 2]"


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        (call("area", width=2), "error: 'height' is missing"),
        (call("area", width=2, height="3"), "error: 'height' is not of type number"),
        (call("area", width=2, height=3, unit="km"), "error: 'unit' can not be 'km'"),
        (call("open", file="x"), "error: there is no tool 'open'"),
        ({"type": "invalid", "text": "{", "error": "not JSON: …"}, "error: not JSON: …"),
        (call("leave", code=3), "error: 3"),
        (call("eat", mb=2000), "error: out of memory"),
    ],
)
def test_a_failure_is_a_result_that_the_model_sees(process: ToolProcess, asked: dict, result: str):
    assert process.call(asked) == result
    assert process.call(call("area", width=1, height=1)) == "1 m2", "the next call works again"


def test_a_long_result_is_cut_and_says_so(process: ToolProcess):
    result = process.call(call("numbers", n=1000))
    assert result.endswith("… (cut, 4890 characters)")
    assert len(result) < 240


def test_a_slow_tool_is_ended_by_the_clock_of_the_parent_and_the_next_call_works(path: Path):
    with ToolProcess(read_tools(path), Limits(seconds=0.5)) as process:
        began = time.perf_counter()
        assert process.call(call("sleep", seconds=60)) == "error: it took longer than 0.5 s"
        assert time.perf_counter() - began < 25
        process.limits = Limits(seconds=20)
        assert process.call(call("sleep", seconds=0.01)) == "awake"


def test_a_worker_that_is_killed_is_a_result_too(path: Path):
    with ToolProcess(read_tools(path)) as process:
        process.call(call("area", width=1, height=1))
        assert process._process is not None
        process._process.kill()
        assert process.call(call("area", width=1, height=1)).startswith("error: the tool's process ended")
        assert process.call(call("area", width=1, height=1)) == "1 m2"


def test_the_worlds_tools_give_the_same_results_in_the_process_as_in_training_data():
    asked = [
        ("calculator", {"expression": "12 * (3 + 4)"}),
        ("calculator", {"expression": "1 / 0"}),
        ("calculator", {"expression": "__import__('os')"}),
        ("calendar", {"day": "Monday", "days": 12}),
        ("calendar", {"day": "Noday", "days": 1}),
        ("lookup", {"name": "kite", "field": "price"}),
        ("lookup", {"name": "nobody", "field": "age"}),
    ]
    with ToolProcess(world_tools(0)) as process:
        assert process.schemas == list(TOOLS)
        for name, arguments in asked:
            there = process.call({"name": name, "arguments": arguments})
            assert there == call_tool(name, arguments, lookup_in(0)), name


def test_a_program_gets_what_it_asks_for_within_its_limits():
    done = run_python("print(input() * 2)", stdin="ab\n", limits=Limits(seconds=30))
    assert (done.status, done.output) == ("ok", "abab\n")


@pytest.mark.parametrize(
    ("program", "limits", "status"),
    [
        ("while True: pass", Limits(seconds=1.5), "timeout"),
        ("while True: print('x' * 1000)", Limits(seconds=30, output_chars=100), "output"),
        ("x = bytearray(2_000_000_000)", Limits(seconds=30, memory_mb=200), "failed"),
        ("assert 1 == 2", Limits(seconds=30), "failed"),
        (LEAVES_A_CHILD, Limits(seconds=30), "ok"),
    ],
)
def test_a_program_that_goes_over_a_limit_is_ended(program: str, limits: Limits, status: str):
    began = time.perf_counter()
    assert run_python(program, limits=limits).status == status
    assert time.perf_counter() - began < 30


def test_a_program_sees_no_environment_and_no_installed_packages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "1")
    done = run_python("import os; print('SECRET' in os.environ); import numpy", limits=Limits(seconds=30))
    assert done.output == "False\n"
    assert "No module named 'numpy'" in done.errors


def test_a_schema_without_types_allows_every_value():
    schema = {
        "function": {"name": "f", "parameters": {"properties": {"x": {}, "y": {"type": ["string", "null"]}}}}
    }
    assert validate_call({"name": "f", "arguments": {"x": [1], "y": None}}, [schema]) is None
    assert (
        validate_call({"name": "f", "arguments": {"y": 1}}, [schema])
        == "'y' is not of type ['string', 'null']"
    )


def test_a_system_that_refuses_memory_limits_still_runs_tools(monkeypatch: pytest.MonkeyPatch):
    """macOS does."""
    resource = pytest.importorskip("resource")

    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    worker._limit_memory(512)


def test_a_file_of_tools_may_define_dataclasses_and_choose_among_negative_numbers(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Literal\n"
        "@dataclass\nclass Point:\n    x: int\n"
        'def step(way: Literal[-1, 1]) -> str:\n    """One step."""\n    return str(Point(way).x)\n'
    )
    (tool,) = read_tools(path)
    assert tool.schema["function"]["parameters"]["properties"] == {
        "way": {"type": "integer", "enum": [-1, 1]}
    }
    with ToolProcess([tool]) as tools:
        assert tools.call({"name": "step", "arguments": {"way": -1}}) == "-1"


def test_a_file_of_tools_that_fails_to_load_says_so_at_each_call(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text('raise ValueError("no key")\ndef f() -> str:\n    """F."""\n    return ""\n')
    with ToolProcess(read_tools(path)) as tools:
        assert [tools.call({"name": "f", "arguments": {}}) for _ in range(2)] == ["error: no key"] * 2


def test_a_parameter_that_has_no_name_for_callers_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "bad.py"
    path.write_text('def f(\n    a: int, /, b: int\n) -> str:\n    """S."""\n    return "x"\n')
    with pytest.raises(UserError, match=r"bad\.py, line 2: parameter 'a' of f .* take the / out"):
        read_tools(path)


def test_a_result_that_is_no_json_is_said_and_the_process_goes_on(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        'def pairs(a: str) -> dict:\n    """P."""\n    return {(1, 2): 3}\n'
        'def circle(a: str) -> list:\n    """C."""\n    x = []\n    x.append(x)\n    return x\n'
        'def half(a: str) -> str:\n    """H."""\n    return "a\\ud800"\n'
    )
    with ToolProcess(read_tools(path), Limits(seconds=30)) as tools:
        assert tools.call(call("pairs", a="")).startswith(
            "error: the tool's result cannot be written as JSON (keys"
        )
        worker = tools._process
        assert "JSON (Circular" in tools.call(call("circle", a=""))
        assert tools.call(call("half", a="")) == "a?"
        assert tools._process is worker, "none of them ended it"
