"""The options of `onesitting bench …`; torch is imported by what they call."""

from pathlib import Path

from onesitting.cli_settings import Parser, Request, parse_request, settings_parser
from onesitting.errors import UserError

SUMMARIES = {
    "limit": "What this machine reaches at a model's shapes: matrix products, attention, memory.",
    "train": "Speed of the real training loop, and where its time goes.",
    "race": "Time to a quality: this trainer and others, one after the other, on the same tokens.",
    "generate": "Tokens a second of decoding, beside transformers.generate on the same model.",
    "prepare": "Speed and memory of preparing text, as it grows tenfold.",
}
DEFAULT_RECIPE = "26m"


def run_bench(argv: list[str]) -> None:
    """`bench WHAT …`; raises UserError for a WHAT that does not exist."""
    what, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if what in ("-h", "--help"):
        print("usage: onesitting bench WHAT …\n\nMeasure this machine, training, decoding and preparing.\n")
        print("\n".join(f"  {name:<10}{summary}" for name, summary in SUMMARIES.items()))
        print("\n`onesitting bench WHAT --help` shows the options of one.")
        return
    commands = {"limit": _limit, "train": _train, "race": _race, "generate": _generate, "prepare": _prepare}
    if what not in commands:
        raise UserError(f"cannot bench '{what}'; use one of {', '.join(SUMMARIES)}")
    commands[what](rest)


def _recipe_request(parser: Parser, argv: list[str]) -> Request:
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the numbers there, as JSON")
    return parse_request(parser, argv)


def _limit(argv: list[str]) -> None:
    parser = settings_parser("bench limit", SUMMARIES["limit"], "[RECIPE]", default=DEFAULT_RECIPE)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured here before")
    request = _recipe_request(parser, argv)
    from onesitting.bench.limit import bench_limit

    bench_limit(request.cfg, fresh=request.options.fresh, save=request.options.save)


def _train(argv: list[str]) -> None:
    parser = settings_parser("bench train", SUMMARIES["train"])
    parser.add_argument(
        "--steps", type=int, default=0, metavar="N", help="steps that count [10 seconds of them]"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a Chrome trace of two more steps")
    request = _recipe_request(parser, argv)
    from onesitting.bench.train import bench_train

    options = request.options
    bench_train(request.cfg, steps=options.steps, profile_to=options.profile, save=options.save)


def _race(argv: list[str]) -> None:
    parser = Parser("bench race", "SPEC.toml [options]", SUMMARIES["race"])
    parser.add_argument("spec", type=Path, metavar="SPEC", help="file that describes the race")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the race [races/NAME of SPEC]")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runners that take part [all]")
    parser.add_argument("--seconds", type=float, metavar="X", help="time of each runner without its own")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of those of SPEC")
    options = parser.parse_args(argv)
    from dataclasses import replace

    from onesitting.bench.race import run_race
    from onesitting.bench.race_spec import load_race

    race = load_race(options.spec, tuple(options.only))
    race = replace(race, seconds=options.seconds or race.seconds, seeds=tuple(options.seeds or race.seeds))
    run_race(race, options.out or Path("races") / race.name)


def _generate(argv: list[str]) -> None:
    parser = Parser("bench generate", "RUN [options]", SUMMARIES["generate"])
    parser.add_argument("run", metavar="RUN", help="folder of a run, of one of its stages, or of a model")
    parser.add_argument("--streams", default="1,32", metavar="N,N", help="texts written at once [1,32]")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="new tokens of each text [128]")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="the fastest of N counts [3]")
    parser.add_argument("--dtype", default="float32", help="of the weights, on both sides [float32]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or xpu [auto]")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads [all]")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the numbers there, as JSON")
    options = parser.parse_args(argv)
    streams = [int(n) for n in _numbers("--streams", options.streams)]
    from onesitting.bench.generate import bench_generate

    bench_generate(
        options.run, streams=streams, tokens=options.tokens, repeats=options.repeats, dtype=options.dtype,
        device=options.device, threads=options.threads, save=options.save,
    )  # fmt: skip


def _prepare(argv: list[str]) -> None:
    parser = Parser("bench prepare", "[options]", SUMMARIES["prepare"])
    parser.add_argument("--data", nargs="+", default=["world"], metavar="TEXT", help="as in a recipe [world]")
    parser.add_argument("--sizes", default="10,100", metavar="MB,MB", help="megabytes of text [10,100]")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="of the tokenizer [4096]")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes [one a processor]")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the numbers there, as JSON")
    options = parser.parse_args(argv)
    from onesitting.bench.prepare import bench_prepare

    bench_prepare(
        options.data, sizes_mb=_numbers("--sizes", options.sizes), vocab_size=options.vocab_size,
        workers=options.workers, save=options.save,
    )  # fmt: skip


def _numbers(option: str, text: str) -> list[float]:
    """`1,32` as numbers above 0."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise UserError(f"{option} {text}: numbers above 0 with commas between them are expected, as in 1,32")
    return found
