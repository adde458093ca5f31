"""Command line: command -> function, imported when it is called; nothing else.

Exit codes: 0 done, 1 a fault of the program, 2 a mistake of the user, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from onesitting import __version__
from onesitting.errors import UserError

if TYPE_CHECKING:
    from onesitting.cli_settings import Parser
    from onesitting.config import RunConfig

TRAINING_COMMANDS: dict[str, tuple[str, ...]] = {
    "run": (),
    "tokenizer": ("tokenizer",),
    "prepare": ("prepare",),
    "pretrain": ("pretrain",),
    "sft": ("sft",),
    "dpo": ("dpo",),
    "grpo": ("grpo",),
    "reward": ("reward",),
    "distill": ("distill",),
    "ppo": ("ppo",),
    "evaluate": ("evaluate",),
}
"""Command -> the phases of the pipeline it runs; () is all of them."""


def _choose_size(cfg: "RunConfig") -> str:
    return import_module("onesitting.auto_size").chosen_size(cfg)


def _plan(argv: list[str]) -> None:
    from onesitting.cli_settings import parse_request, settings_parser

    parser = settings_parser("plan", COMMANDS["plan"].summary)
    parser.add_argument("--measure", action="store_true", help="time a few real steps for the estimate")
    parser.add_argument("--cards", action="store_true", help="instead: computed times on well-known cards")
    request = parse_request(parser, argv, _choose_size)
    if request.options.cards:
        return import_module("onesitting.cards").print_cards(request.cfg)
    cfg = import_module("onesitting.auto_size").with_kept_steps(request.cfg)
    import_module("onesitting.plan").print_plan(cfg, request.recipe, request.options.measure)


def _train(command: str, argv: list[str]) -> None:
    from onesitting.cli_settings import parse_request, settings_parser

    request = parse_request(settings_parser(command, COMMANDS[command].summary), argv, _choose_size)
    from onesitting.pipeline import run_pipeline

    cfg = import_module("onesitting.auto_size").with_fitting_steps(request.cfg)
    run_pipeline(cfg, request.recipe, TRAINING_COMMANDS[command])


def _inspect(argv: list[str]) -> None:
    from onesitting.cli_settings import parse_request, settings_parser

    parser = settings_parser("inspect", COMMANDS["inspect"].summary, "data|tokens|batch RECIPE")
    parser.add_argument("--n", type=int, metavar="N", help="data, batch: documents or rows to show [5, 4]")
    parser.add_argument("--text", default="", help="tokens: text to cut into tokens; else the data's first")
    parser.add_argument("--stage", default="pretrain", help="batch: pretrain or sft [pretrain]")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="batch: optimizer step [0]")
    views, (view, *rest) = ("data", "tokens", "batch"), argv or ["--help"]
    if view not in (*views, "-h", "--help"):
        raise UserError(f"cannot inspect '{view}'; use one of {', '.join(views)}")
    request = parse_request(parser, rest if view in views else [view])
    from onesitting import inspection

    options = request.options
    if view == "data":
        inspection.inspect_data(request.cfg, options.n or 5)
    elif view == "tokens":
        inspection.inspect_tokens(request.cfg, options.text)
    else:
        cfg = import_module("onesitting.auto_size").with_kept_steps(request.cfg)
        inspection.inspect_batch(cfg, options.stage, options.step, options.n or 4)


def _sampling_options(parser: "Parser") -> None:
    """Options that chat and generate share; one that is not given takes the model's own value."""
    for name, kind, text in (
        ("--temperature", float, "0: always the likeliest token; 1: the model's own distribution"),
        ("--top-k", int, "sample among the k likeliest tokens; 0: all"),
        ("--top-p", float, "sample among the likeliest tokens that hold this probability; 1: all"),
        ("--min-p", float, "leave out tokens less likely than this fraction of the likeliest"),
        ("--repetition-penalty", float, "divides the scores of tokens already there; 1: none"),
        ("--max-tokens", int, "longest reply, in tokens"),
        ("--seed", int, "seed of the random choices; not given: a new one each time"),
        ("--context-factor", float, "read so many times the context that the model was trained for (YaRN)"),
    ):
        parser.add_argument(name, type=kind, metavar="X" if kind is float else "N", help=text)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end a reply before this text; repeatable"
    )


def _model_parser(command: str) -> "Parser":
    from onesitting.cli_settings import Parser

    parser = Parser(command, "RUN [options]", COMMANDS[command].summary)
    parser.add_argument("run", metavar="RUN", help="folder of a run, of one of its stages, or of a model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or xpu [auto]")
    parser.add_argument("--draft", default="", metavar="RUN", help="smaller model that guesses ahead")
    _sampling_options(parser)
    return parser


def _chat(argv: list[str]) -> None:
    parser = _model_parser("chat")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    parser.add_argument(
        "--tools", default="", metavar="FILE", help="Python file whose functions are the tools"
    )
    parser.add_argument("--no-tools", action="store_true", help="offer the model no tools")
    parser.add_argument(
        "--think", default="auto", metavar="on|off|auto|N", help="open thoughts, of at most N tokens [auto]"
    )
    options = parser.parse_args(argv)
    from onesitting.chat_ui import chat

    chat(options)


def _generate(argv: list[str]) -> None:
    parser = _model_parser("generate")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text that the model continues")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="number of continuations [1]")
    parser.add_argument(
        "--think", default="", metavar="on|off|auto|N",
        help="ask the prompt as a user's message, with a thought, without, as the model likes, or of at most N tokens",
    )  # fmt: skip
    options = parser.parse_args(argv)
    from onesitting.chat_ui import generate_texts

    generate_texts(options)


SERVE_OPTIONS: tuple[tuple[str, type[str] | type[int] | type[float], str | float, str, str], ...] = (
    ("--host", str, "127.0.0.1", "NAME", "address to listen on; other than loopback needs API keys"),
    ("--port", int, 8000, "N", "port; 0: any that is free"),
    ("--api-keys", str, "", "FILE", "lines of NAME SHA256; keys may also stand in ONESITTING_API_KEYS"),
    ("--new-key", str, "", "NAME", "print a new API key and its line for the key file, and end"),
    ("--device", str, "auto", "NAME", "auto, cpu, cuda, mps or xpu"),
    ("--dtype", str, "auto", "NAME", "of the computation: auto, bfloat16, float16 or float32"),
    ("--slots", int, 64, "N", "texts written at the same time, for each model"),
    ("--queue", int, 256, "N", "texts that may wait; beyond it: 429"),
    ("--max-tokens", int, 0, "N", "longest reply; 0: what the context leaves"),
    ("--context-factor", float, 0.0, "X", "read X times the trained context (YaRN); 0: the model's own"),
    ("--deadline-s", float, 600.0, "S", "seconds after which a request ends"),
    ("--max-body-mb", float, 4.0, "MB", "largest request"),
    ("--grace-s", float, 60.0, "S", "seconds that running replies get at the end"),
)
"""Option, type, default, its name in the help, the help."""


def _serve(argv: list[str]) -> None:
    from onesitting.cli_settings import Parser

    parser = Parser("serve", "RUN… [options]", COMMANDS["serve"].summary)
    runs = "folder of a run or model, or NAME=FOLDER; several are served together"
    parser.add_argument("runs", metavar="RUN", nargs="*", help=runs)
    for name, kind, default, metavar, text in SERVE_OPTIONS:
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} [{default}]")
    parser.add_argument("--no-keys", action="store_true", help="let other machines in without a key")
    parser.add_argument(
        "--int8", action="store_true", help="matrices as int8: a quarter of the memory, less exact"
    )
    for name, text in (
        ("--cors-origin", "site whose pages may use the server; repeatable"),
        ("--allowed-host", "further name that the Host header may have; repeatable"),
    ):
        parser.add_argument(name, action="append", default=[], metavar="NAME", help=text)
    options = parser.parse_args(argv)
    try:
        from onesitting.server.run import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"serve needs {error.name}; install it with: pip install 'onesitting[serve]'"
        ) from None
    serve(options)


def _from(module: str, name: str = "main") -> Callable[[list[str]], None]:
    """A function of a module of ours, imported when it is called."""
    return lambda argv: getattr(import_module(f"onesitting.{module}"), name)(argv)


def _report(argv: list[str]) -> None:
    from onesitting.cli_settings import Parser

    parser = Parser("report", "RUN", COMMANDS["report"].summary)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    run = parser.parse_args(argv).run
    from onesitting.runlog import require_run

    folder = require_run(run)
    from onesitting.evaluation.report import print_report, write_report

    write_report(folder)
    print_report(folder)


def _merge(argv: list[str]) -> None:
    from pathlib import Path

    from onesitting.cli_settings import Parser

    parser = Parser("merge", "RUN RUN … --out FOLDER [options]", COMMANDS["merge"].summary)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, of a stage, or of a model")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the run that is made")
    parser.add_argument(
        "--method", choices=("average", "slerp", "ties"), default="average", help="how [average]"
    )
    parser.add_argument("--weights", type=float, nargs="+", default=(), metavar="X", help="one a run [equal]")
    parser.add_argument("--base", metavar="RUN", help="ties: the model that all of them were trained from")
    parser.add_argument(
        "--density", type=float, default=0.2, metavar="X", help="ties: fraction of changes that is kept [0.2]"
    )
    options = parser.parse_args(argv)
    from onesitting.merge_runs import merge_runs
    from onesitting.runlog import require_folder

    runs, base = [require_folder(run) for run in options.runs], options.base and require_folder(options.base)
    merge_runs(runs, Path(options.out), options.method, options.weights, base=base, density=options.density)
    print(f"merged {len(runs)} models. Talk to it: onesitting chat {options.out}")


def _export(argv: list[str]) -> None:
    from onesitting.export.options import export_options, run_export

    run_export(export_options(COMMANDS["export"].summary).parse_args(argv))


def _import(argv: list[str]) -> None:
    from onesitting.export.options import import_options, run_import

    run_import(import_options(COMMANDS["import"].summary).parse_args(argv))


def _version(argv: list[str]) -> None:
    from importlib import metadata

    print(f"onesitting {__version__}, Python {sys.version.split()[0]}, torch {metadata.version('torch')}")


@dataclass(frozen=True)
class Command:
    """A command: its line in the overview, and what runs it."""

    arguments: str
    summary: str
    run: Callable[[list[str]], None]


COMMANDS: dict[str, Command] = {
    "plan": Command(
        "RECIPE", "Show what a run would do here: device, parameters, tokens, memory, end.", _plan
    ),
    "run": Command(
        "RECIPE", "Train from text to report; goes on where it stopped.", lambda argv: _train("run", argv)
    ),
    "chat": Command("RUN", "Talk to a trained model.", _chat),
    "generate": Command("RUN", "Let a trained model continue a text.", _generate),
    "serve": Command("RUN…", "Answer OpenAI's and Anthropic's clients, and a chat page.", _serve),
    "inspect": Command(
        "data|tokens|batch RECIPE", "Look at documents, tokens, packing and the loss mask.", _inspect
    ),
    "merge": Command("RUN RUN … --out FOLDER", "Make one model of several runs of one shape.", _merge),
    "report": Command("RUN", "Write and print a run's report card.", _report),
    "tokenizer": Command("RECIPE", "Train the tokenizer alone.", lambda argv: _train("tokenizer", argv)),
    "prepare": Command("RECIPE", "Turn text into token files alone.", lambda argv: _train("prepare", argv)),
    "pretrain": Command("RECIPE", "Pretrain alone.", lambda argv: _train("pretrain", argv)),
    "sft": Command("RECIPE", "Fine-tune on conversations alone.", lambda argv: _train("sft", argv)),
    "dpo": Command(
        "RECIPE", "Train on preferences alone: DPO, IPO, SimPO, KTO.", lambda argv: _train("dpo", argv)
    ),
    "grpo": Command("RUN", "Reinforce what is rewarded: group-relative.", lambda argv: _train("grpo", argv)),
    "reward": Command("RECIPE", "Train a reward model on preferences.", lambda argv: _train("reward", argv)),
    "distill": Command(
        "RECIPE", "Train a student on a teacher's distributions.", lambda argv: _train("distill", argv)
    ),
    "distill-data": Command(
        "--teacher … --out FILE", "Let a teacher write conversations to train on.", _from("distill_data")
    ),
    "pairs": Command("RUN --out FILE", "Make preferences from a model's own attempts.", _from("own_pairs")),
    "ppo": Command("RUN", "Reinforce with a value head.", lambda argv: _train("ppo", argv)),
    "evaluate": Command("RECIPE", "Measure a run's models again.", lambda argv: _train("evaluate", argv)),
    "bench": Command(
        "WHAT …",
        "Measure this machine, training, decoding and preparing.",
        _from("bench.commands", "run_bench"),
    ),
    "export": Command(
        "RUN --to TARGET", "Write a model for other software: hf, gguf, onnx, docker, …", _export
    ),
    "import": Command(
        "FOLDER --name NAME", "Make a run of a Hugging Face folder (Llama, Qwen3, GPT-2).", _import
    ),
    "version": Command("", "Print the versions.", _version),
}


def _overview() -> str:
    rows = [f"  {name:<10}{command.arguments:<26}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "onesitting: a GPT, from raw text to a model you can chat with, in one sitting.",
            "",
            "usage: onesitting COMMAND …",
            "",
            *rows,
            "",
            "RECIPE is a name (demo, 26m, …), a .toml file or the folder of a run; RUN is the folder.",
            "Every setting of a recipe is an option: onesitting run demo --budget 10m --optim.matrix_lr 0.01",
            "`onesitting COMMAND --help` lists them. Start with: onesitting run demo",
        ]
    )


def _dispatch(argv: list[str]) -> None:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name in ("-V", "--version"):
        _version([])
    elif name in COMMANDS:
        COMMANDS[name].run(argv[1:])
    else:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean '{close[0]}'?" if close else "`onesitting --help` lists the commands"
        raise UserError(f"unknown command '{name}'; {hint}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code comes back. Only the first process of a torchrun prints."""
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, open to the end of the process
    try:
        _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return 0
    except SystemExit as leave:  # argparse after --help
        return leave.code if isinstance(leave.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe left, as `head` does; what is still buffered would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _explain(error, first)


def _explain(error: Exception, first: bool) -> int:
    """Print an error as one line on stderr; the exit code comes back."""
    from onesitting.runlog import storage_error

    known = storage_error(error) if isinstance(error, OSError) else error
    if isinstance(known, UserError):
        if first:
            print(f"error: {known}", file=sys.stderr)
        return 2
    advice = ""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = (
            "; out of memory: lower pretrain.micro_batch_rows, sft.micro_batch_rows or model.context_length"
        )
    first_line = (str(error).strip() or "no message").splitlines()[0]
    print(f"error: {type(error).__name__}: {first_line}{advice}", file=sys.stderr)
    print(f"the full traceback is in {_save_traceback(error)}", file=sys.stderr)
    return 1


def _save_traceback(error: Exception) -> str:
    """Write traceback and versions into a file; its path comes back, or the text itself if that fails."""
    import platform
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    text += f"\nonesitting {__version__}, Python {sys.version}, {platform.platform()}\ncommand: {sys.argv}\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="onesitting-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        return file.name
    except OSError:
        return f"no file, for none could be written:\n{text}"
