"""Folders that a container platform builds the server from: Docker, Hugging Face Spaces, Replicate's cog.

The program is copied into the folder as it is installed here, and its libraries are pinned to the versions that are
installed here, so the container serves what was tried on this machine. Nothing is built or sent.
"""

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import onesitting
from onesitting.errors import UserError
from onesitting.export.source import Source, whole_folder
from onesitting.model.hf import weight_files
from onesitting.runlog import write_atomic

EXTRAS = ("", "serve")
"""Extras whose libraries go into the container; "" are those that onesitting always needs."""

TEMPLATES = Path(__file__).parent / "service"

FILES = {
    "docker": {"Dockerfile": "Dockerfile", "compose.yaml": "compose.yaml", "dockerignore": ".dockerignore"},
    "space": {"Dockerfile": "Dockerfile", "dockerignore": ".dockerignore"},
    "cog": {"cog.yaml": "cog.yaml", "predict.py.txt": "predict.py", "dockerignore": ".dockerignore"},
}
"""Platform -> our file -> its name in the folder."""

MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def write_container(source: Source, folder: Path, platform: str) -> Path:
    """Write what `platform` (docker, space, cog) builds from; the folder comes back."""
    if source.cfg.n_scores:
        raise UserError(f"a reward model writes no text, so there is nothing that {platform} could serve")
    with whole_folder(folder) as partial:
        for ours, theirs in FILES[platform].items():
            shutil.copyfile(TEMPLATES / ours, partial / theirs)
        write_atomic(partial / "requirements.txt", "".join(f"{line}\n" for line in sorted(pinned())))
        copy_program(partial / "onesitting")
        (partial / "model").mkdir()
        index = source.folder / "model.safetensors.index.json"
        files = [source.folder / name for name in MODEL_FILES] + [index, *weight_files(source.folder)]
        for path in files:
            if path.is_file():
                shutil.copyfile(path, partial / "model" / path.name)
        if platform == "space":
            write_atomic(partial / "README.md", space_readme(source))
            text = (partial / "Dockerfile").read_text(encoding="utf-8")
            write_atomic(
                partial / "Dockerfile", text.replace('"8000"]', '"8000", "--no-keys"]')
            )  # a public demo
    return folder


def copy_program(folder: Path) -> None:
    """The installed package, without caches."""
    package = Path(onesitting.__file__).parent
    shutil.copytree(package, folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def pinned() -> Iterator[str]:
    """`name==version` of each library that the server needs, as installed here; markers stay."""
    for requirement in declared():
        wanted, _, marker = requirement.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        name = re.split(r"[\s\[<>=!~]", wanted.strip())[0]
        if name == "onesitting" or (extra[1] if extra else "") not in EXTRAS:
            continue
        rest = re.sub(r"""(\s+and\s+)?extra\s*==\s*["'][^"']+["']""", "", marker).strip()
        try:
            version = metadata.version(name).split("+")[0]  # 2.13.0+cpu is named so in one index only
        except metadata.PackageNotFoundError:
            yield wanted.strip() + (f" ; {rest}" if rest else "")
        else:
            yield f"{name}=={version}" + (f" ; {rest}" if rest else "")


def declared() -> list[str]:
    """The requirements of onesitting: of the installed package, or of pyproject.toml beside a source tree."""
    try:
        return metadata.requires("onesitting") or []
    except metadata.PackageNotFoundError:
        file = Path(onesitting.__file__).parents[1] / "pyproject.toml"
        if not file.is_file():
            raise UserError(
                "onesitting is not installed: pip install it, so that its libraries are known"
            ) from None
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras: dict[str, list[str]] = project["optional-dependencies"]
        of_extras = [f'{line} ; extra == "{extra}"' for extra, lines in extras.items() for line in lines]
        return [*project["dependencies"], *of_extras]


def space_readme(source: Source) -> str:
    """README.md of a Space: its head is the Space's configuration."""
    head = {"title": source.name, "sdk": "docker", "app_port": 8000, "pinned": False}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    text = f"The model {source.name}, served by onesitting: a chat page at /, an OpenAI-compatible API under /v1."
    return "\n".join(["---", *lines, "---", "", f"# {source.name}", "", text]) + "\n"
