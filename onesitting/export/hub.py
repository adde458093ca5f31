"""The `hf` target: a model folder with a card, and its upload to the Hugging Face hub."""

import shutil
from pathlib import Path
from typing import Any

from onesitting.errors import UserError
from onesitting.evaluation.report import CURVES_FILE
from onesitting.export.card import model_card
from onesitting.export.source import Source, need, whole_folder
from onesitting.model.hf import hf_format, weight_files
from onesitting.runlog import write_atomic

FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
INDEX = "model.safetensors.index.json"


def write_hf(source: Source, folder: Path, license_id: str = "", repository: str = "") -> Path:
    """Write the folder that transformers, vLLM and the hub read; it comes back.

    license_id: the hub's name of a licence, such as apache-2.0. repository: owner/name, shown in the card's code.
    Raises UserError for a shape without a standard format, or a folder that is there already.
    """
    hf_format(source.cfg)
    with whole_folder(folder) as partial:
        for name in (*FILES, INDEX):
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, partial / name)
        for path in weight_files(source.folder):
            shutil.copyfile(path, partial / path.name)
        curves = source.run.path / CURVES_FILE if source.run else None
        if curves and curves.is_file():
            shutil.copyfile(curves, partial / CURVES_FILE)
        write_atomic(partial / "README.md", model_card(source, license_id, repository or str(folder)))
    return folder


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder as one commit of a model repository, made if it is not there; its address comes back.

    The token is the library's own affair: HF_TOKEN, or `hf auth login`. Raises UserError when the hub refuses.
    """
    check_repository(repository)
    hub, errors = need("huggingface_hub"), need("huggingface_hub.errors")
    api: Any = hub.HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Model, tokenizer and card from onesitting"
        )
    except errors.LocalTokenNotFoundError:
        raise UserError(f"--push {repository}: not logged in; run `hf auth login` or set HF_TOKEN") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: "the token is missing or wrong; run `hf auth login` or set HF_TOKEN",
            403: "the token may not write there; make one with write access, or push to your own name",
        }.get(status, _first_line(error))
        raise UserError(f"--push {repository}: the hub answered {status}: {advice}") from None
    except Exception as error:
        # What carries the requests differs between versions of the library: requests, httpx, httpx2.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise UserError(
            f"--push {repository}: the hub cannot be reached ({_first_line(error)}); try again"
        ) from None
    return str(url)


def check_repository(repository: str) -> None:
    """Raise UserError for a name that is not owner/name, or that the hub does not allow."""
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"--push {repository!r}: write the repository as owner/name")
    try:
        need("huggingface_hub.utils").validate_repo_id(repository)
    except need("huggingface_hub.errors").HFValidationError as error:
        raise UserError(f"--push {repository}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
