"""The options of `onesitting export` and `onesitting import`. Nothing here imports torch before a command runs."""

from argparse import Namespace

from onesitting.cli_settings import Parser


def export_options(summary: str) -> Parser:
    """The parser of `onesitting export`."""
    parser = Parser("export", "RUN --to TARGET [options]", summary)
    parser.add_argument("run", metavar="RUN", help="folder of a run, of one of its stages, or of a model")
    targets = "hf, gguf, ollama, onnx, docker, cog or space"
    parser.add_argument("--to", required=True, metavar="TARGET", help=targets)
    parser.add_argument("--out", default="", metavar="PATH", help="where to write [RUN/export/TARGET]")
    dtypes = "gguf, ollama: f32, f16, bf16, q8_0 or q4_0, type of the matrices [f16]"
    parser.add_argument("--dtype", default="", help=dtypes)
    parser.add_argument(
        "--license", default="", metavar="NAME", help="hf: licence in the card, as apache-2.0"
    )
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="hf: upload it as this repository")
    parser.add_argument("--private", action="store_true", help="hf: the new repository is private")
    return parser


def run_export(options: Namespace) -> None:
    """`onesitting export` with these options."""
    from onesitting.export.command import export_run

    export_run(options)


def import_options(summary: str) -> Parser:
    """The parser of `onesitting import`."""
    parser = Parser("import", "FOLDER --name NAME [options]", summary)
    parser.add_argument("folder", metavar="FOLDER", help="config.json, safetensors and tokenizer.json")
    parser.add_argument("--name", required=True, help="name of the new run")
    parser.add_argument("--out", default="runs", metavar="FOLDER", help="folder that holds the runs [runs]")
    parser.add_argument("--link", action="store_true", help="hard links to the weights in place of copies")
    return parser


def run_import(options: Namespace) -> None:
    """`onesitting import` with these options."""
    from onesitting.export.from_folder import import_folder

    import_folder(options)
