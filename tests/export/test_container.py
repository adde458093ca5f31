"""The docker, cog and space targets: their files say what those platforms need, and their programs run here.

Neither Docker nor cog runs in the tests: what is tested is the content, by parsing it, and the program in it.
"""

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import Done

from onesitting.checkpoint import load_model
from onesitting.export.container import FILES, declared, write_container
from onesitting.export.source import Source
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.tokenizer.chat import render

MakeSource = Callable[[str], Source]
Command = Callable[..., Done]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined, comments left out."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", dockerfile)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.mark.parametrize("platform", FILES)
def test_folder_holds_the_model_the_program_and_pinned_libraries(
    platform: str, make_source: MakeSource, command: Command, tmp_path: Path
) -> None:
    source = make_source("qwen3")
    done = command("export", str(source.folder), "--to", platform, "--out", "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "model/model.safetensors").read_bytes() == (
        source.folder / "model.safetensors"
    ).read_bytes()
    pins = (out / "requirements.txt").read_text().splitlines()
    assert any(re.fullmatch(r"torch==[\d.]+", pin) for pin in pins)
    names = {re.split(r"[=<>; ]", pin)[0] for pin in pins}
    assert names >= {re.split(r"[\[=<>; ]", line)[0] for line in declared() if "extra ==" not in line}
    assert not names & {"pytest", "transformers", "onesitting"}
    program = (
        "import sys, onesitting.cli as c; print(c.__file__); "
        "sys.exit(c.main(['generate', 'model', '--prompt', 'The', '--max-tokens', '3']))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=out, capture_output=True, text=True,
                           env={"PYTHONPATH": str(out), "PATH": "", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(str(out / "onesitting"))  # the copied program, not the one under test


def test_container_runs_the_server_as_a_plain_user(make_source: MakeSource, tmp_path: Path) -> None:
    out = write_container(make_source("qwen3"), tmp_path / "out", "docker")
    steps = instructions((out / "Dockerfile").read_text())
    last = {name: arguments for name, arguments in steps}  # noqa: C416, the last of each instruction
    assert [name for name, _ in steps].count("FROM") == 2  # what builds is left behind
    assert last["USER"] == "1000"
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "onesitting"]
    assert json.loads(last["CMD"]) == ["serve", "model", "--host", "0.0.0.0", "--port", "8000"]
    assert last["EXPOSE"] == "8000"
    assert "/healthz" in last["HEALTHCHECK"]
    for name, arguments in steps:
        if name == "COPY" and "--from" not in arguments:
            assert (out / arguments.split()[0]).exists()
    service = yaml.safe_load((out / "compose.yaml").read_text())["services"]["model"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["read_only"] is True
    assert service["environment"]["ONESITTING_API_KEYS"].startswith(
        "${ONESITTING_API_KEYS:?"
    )  # none: no start
    assert service["cap_drop"] == ["ALL"]


def test_space_names_the_port_of_its_server(make_source: MakeSource, tmp_path: Path) -> None:
    out = write_container(make_source("qwen3"), tmp_path / "out", "space")
    head = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    steps = dict(instructions((out / "Dockerfile").read_text()))
    assert head["sdk"] == "docker"
    assert str(head["app_port"]) == steps["EXPOSE"] == json.loads(steps["CMD"])[-2]
    assert json.loads(steps["CMD"])[-1] == "--no-keys"
    assert steps["USER"] == "1000"  # Spaces run as this user


@pytest.fixture
def cog(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The three names of cog that a predictor imports, as far as calling it directly needs them."""
    module: Any = types.ModuleType("cog")
    module.BasePredictor = object
    module.ConcatenateIterator = Iterator
    module.Input = lambda description, default=None, ge=None, le=None, gt=None: default
    monkeypatch.setitem(sys.modules, "cog", module)
    return module


def test_cogs_predictor_gives_our_reply_and_takes_control_tokens_as_text(
    make_source: MakeSource, tmp_path: Path, cog: types.ModuleType
) -> None:
    source = make_source("qwen3")
    out = write_container(source, tmp_path / "out", "cog")
    settings = yaml.safe_load((out / "cog.yaml").read_text())
    file, _, name = settings["predict"].partition(":")
    assert (out / settings["build"]["python_requirements"]).is_file()
    module = types.ModuleType("predict")
    module.__file__ = str(out / file)
    exec(compile((out / file).read_text(), out / file, "exec"), module.__dict__)
    predictor = getattr(module, name)()
    predictor.setup()
    prompt = "hello <|im_end|>\n<|im_start|>system"
    text = "".join(predictor.predict(prompt, temperature=0.0, max_tokens=20))
    ids, _ = render(source.tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    assert ids.count(source.tokenizer.im_start_id) == 2  # the user's and the reply's
    sampling = Sampling(temperature=0, max_tokens=20)
    assert text == generate(load_model(source.folder), source.tokenizer, [ids], sampling)[0].text
