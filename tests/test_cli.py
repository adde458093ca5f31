import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from user_command import Cli

from onesitting import cli as command_line
from onesitting.cli import COMMANDS, main
from onesitting.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def fastest_s(*arguments: str) -> float:
    """Best of five: other processes of a busy machine must not fail the test."""
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "onesitting", *arguments], cwd=ROOT, check=True, capture_output=True
        )
        times.append(time.perf_counter() - started)
    return min(times)


def test_help_answers_in_under_half_a_second():
    assert fastest_s("--help") < 0.5
    assert fastest_s("run", "demo", "--help") < 0.5


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "demo", "--help"], ["chat", "--help"], ["inspect", "--help"]]
)
def test_help_imports_no_heavy_library(arguments: list[str]):
    heavy = "('torch', 'numpy', 'tokenizers', 'transformers', 'pyarrow', 'rich')"
    program = (
        "import sys; from onesitting.cli import main; "
        f"code = main({arguments!r}); print([name for name in {heavy} if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[] 0\n")


def test_overview_lists_every_command(cli: Cli):
    shown = cli("--help").stdout
    assert [name for name in COMMANDS if f"\n  {name}" not in shown] == []
    assert cli().stdout == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    if command != "version":
        assert main([command, "--help"]) == 0
        assert COMMANDS[command].summary in capsys.readouterr().out


def test_help_of_a_recipe_shows_its_own_values_by_section(cli: Cli):
    shown = " ".join(cli("run", "tiny", "--help", "--seed", "1").stdout.split())
    assert "optim: Muon for the matrices of the blocks" in shown
    assert "--model.d_model N Width of the residual stream. [64]" in shown
    assert "--model.norm rms|layer RMSNorm, or LayerNorm (GPT-2). [rms]" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["run"], "the following arguments are required: RECIPE; see `onesitting run --help`"),
        (["run", "nothing"], "no recipe 'nothing': give one of demo"),
        (
            ["run", "demo", "--optim.learning_rate", "1"],
            "unknown setting 'optim.learning_rate'; did you mean 'optim.matrix_lr'?",
        ),
        (
            ["plan", "--modle.n_layers=3", "demo"],
            "unknown setting 'modle.n_layers'; did you mean 'model.n_layers'?",
        ),
        (["run", "demo", "--optim.matrix_lr", "fast"], "optim.matrix_lr = 'fast': a number expected"),
        (["run", "demo", "--device.dtype", "int8"], "one of auto, float32, bfloat16, float16 expected"),
        (["run", "demo", "--budget"], "argument --budget: expected one argument"),
        (["run", "demo", "extra"], "unexpected 'extra': a setting starts with --"),
        (["inspect", "model", "demo"], "cannot inspect 'model'; use one of data, tokens, batch"),
        (
            ["chat", "runs/none"],
            "'runs/none' does not exist; there is no run yet; `onesitting run demo` makes one",
        ),
        (["generate", "runs/none"], "'runs/none' does not exist"),
        (["report", "runs/none"], "'runs/none' is not the folder of a run"),
        (["chat", "runs/none", "--top-k", "x"], "argument --top-k: invalid int value: 'x'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(cli: Cli, arguments: list[str], message: str):
    done = cli(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_options_are_typed_with_dashes_or_underscores():
    from onesitting.cli_settings import parse_request, settings_parser

    for name in ("--optim.matrix_lr", "--optim.matrix-lr"):
        assert parse_request(settings_parser("run", ""), ["demo", name, "0.5"]).cfg.optim.matrix_lr == 0.5


def test_lists_take_several_values_and_repeat():
    from onesitting.cli_settings import parse_request, settings_parser

    request = parse_request(
        settings_parser("run", ""), ["demo", "--data", "a", "b", "--data", "c", "--model.bias"]
    )
    assert (request.cfg.data, request.cfg.model.bias, request.cfg.name) == (("a", "b", "c"), True, "demo")


def test_only_given_options_override_the_recipe():
    from onesitting.cli_settings import parse_request, settings_parser

    cfg = parse_request(settings_parser("run", ""), ["tiny", "--seed", "4"]).cfg
    assert (cfg.seed, cfg.model.d_model, cfg.name) == (4, 64, "tiny")


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def broken(argv: list[str]) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "version", command_line.Command("", "", broken))
    return main(["version"])


def test_an_interrupt_is_silent_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert fail_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_a_fault_of_the_program_is_short_and_its_traceback_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert fail_with(monkeypatch, RuntimeError("shapes differ\nmore")) == 1
    message, where = capsys.readouterr().err.splitlines()
    assert message == "error: RuntimeError: shapes differ"
    kept = Path(where.removeprefix("the full traceback is in "))
    assert "in broken" in kept.read_text()
    kept.unlink()


def test_a_full_disk_anywhere_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert fail_with(monkeypatch, OSError(28, "No space left on device", "runs/demo/tokens.bin")) == 2
    assert "no space left for runs/demo/tokens.bin" in capsys.readouterr().err


def test_only_the_first_process_reports_a_users_mistake(cli: Cli):
    assert cli("run", "nothing", env={"RANK": "0"}).stderr.startswith("error: no recipe")
    later = cli("run", "nothing", env={"RANK": "1"})
    assert (later.returncode, later.stdout, later.stderr) == (2, "", "")
    assert cli("--help", env={"RANK": "1"}).stdout == ""


def test_a_reader_that_leaves_causes_no_message():
    reading, writing = os.pipe()
    os.close(reading)  # nobody will read
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "onesitting", "run", "--help"],
            cwd=ROOT,
            stdout=pipe,
            stderr=subprocess.PIPE,
        )
    assert done.stderr == b""


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
