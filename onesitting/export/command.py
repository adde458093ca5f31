"""`onesitting export`: one function a target, and what to do with what it wrote."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from onesitting.errors import UserError
from onesitting.export.browser_demo import write_onnx_folder
from onesitting.export.container import write_container
from onesitting.export.gguf import write_gguf
from onesitting.export.hub import check_repository, push, write_hf
from onesitting.export.ollama import write_ollama
from onesitting.export.source import Source, open_source

Target = Callable[[Source, Path, Namespace], list[str]]


def export_run(options: Namespace) -> None:
    """Write one target and say what to do with it.

    options: run, to, out (a path; empty: export/TARGET in the run, or in this folder for a model from elsewhere),
    and what single targets read: dtype, push, private, license.
    Raises UserError for a target that does not exist, and what the target raises.
    """
    if options.to not in TARGETS:
        raise UserError(f"--to {options.to!r} is unknown; use one of {', '.join(TARGETS)}")
    _refuse_unread(options)
    source = open_source(options.run)
    home = source.run.path if source.run else Path()
    out = Path(options.out).expanduser() if options.out else home / "export" / options.to
    console = Console(highlight=False)
    for line in TARGETS[options.to](source, out, options):
        console.print(line, soft_wrap=True, markup=False)


def _refuse_unread(options: Namespace) -> None:
    """Raise UserError for an option that the target does not read: nobody would notice that it did nothing."""
    for name in ("dtype", "license", "push", "private"):
        if getattr(options, name) and name not in READS.get(options.to, ()):
            targets = " and ".join(target for target, read in READS.items() if name in read)
            raise UserError(f"--{name} is for {targets}, not for {options.to}; leave it out")


def _hf(source: Source, out: Path, options: Namespace) -> list[str]:
    if options.push:
        check_repository(options.push)
    write_hf(source, out, options.license, options.push)
    kind = "AutoModelForSequenceClassification" if source.cfg.n_scores else "AutoModelForCausalLM"
    lines = [f"{out}", f"Load it: transformers.{kind}.from_pretrained, or `vllm serve`"]
    if not options.push:
        return lines
    try:
        return [*lines, f"published: {push(out, options.push, private=options.private)}"]
    except UserError as error:
        raise UserError(f"{error}; `hf upload {options.push} {out}` sends what is written") from None


def _gguf(source: Source, out: Path, options: Namespace) -> list[str]:
    dtype = options.dtype or "f16"
    path = out if out.suffix == ".gguf" else out / f"{source.name}-{dtype}.gguf"
    write_gguf(source, path, dtype)
    return [f"{path}  {path.stat().st_size / 1e6:.1f} MB", f"Run it: llama-server -m {path} --jinja"]


def _ollama(source: Source, out: Path, options: Namespace) -> list[str]:
    write_ollama(source, out, options.dtype or "f16")
    return [
        f"{out}",
        f"Run it: cd {out} && ollama create {source.name} -f Modelfile && ollama run {source.name}",
    ]


def _onnx(source: Source, out: Path, options: Namespace) -> list[str]:
    write_onnx_folder(source, out)
    return [f"{out}", f"In a browser: cd {out} && npm install && python -m http.server"]


def _docker(source: Source, out: Path, options: Namespace) -> list[str]:
    write_container(source, out, "docker")
    return [f"{out}", f"Run it: cd {out} && docker compose up --build"]


def _cog(source: Source, out: Path, options: Namespace) -> list[str]:
    write_container(source, out, "cog")
    return [f"{out}", f'Try it: cd {out} && cog predict -i prompt="Hello"']


def _space(source: Source, out: Path, options: Namespace) -> list[str]:
    write_container(source, out, "space")
    return [f"{out}", f"Publish it: hf upload --repo-type space OWNER/{source.name} {out}"]


READS = {"hf": ("license", "push", "private"), "gguf": ("dtype",), "ollama": ("dtype",)}
"""--to -> the options that it reads."""

TARGETS: dict[str, Target] = {
    "hf": _hf,
    "gguf": _gguf,
    "ollama": _ollama,
    "onnx": _onnx,
    "docker": _docker,
    "cog": _cog,
    "space": _space,
}
"""--to -> what writes it; it returns lines for the screen."""
