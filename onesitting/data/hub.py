"""Hub datasets, streamed with the `datasets` library. HF_ENDPOINT and HF_TOKEN work as everywhere."""

from collections.abc import Iterator
from typing import Any

from onesitting.errors import UserError

_INSTALL = "pip install 'onesitting[hub]'"


def hub_records(name: str, subset: str, split: str) -> Iterator[dict[str, Any]]:
    """Records of a split of a hub dataset (owner/name or owner/name@revision), as a stream.

    Raises UserError if it cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"'hub:{name}' needs the datasets library: {_INSTALL}") from None
    try:
        repository, _, revision = name.partition("@")
        yield from datasets.load_dataset(
            repository, subset or None, split=split, revision=revision or None, streaming=True
        )
    except Exception as error:  # the library raises many kinds, network errors among them
        raise _explained(name, subset, split, error) from error


def hub_revision(name: str) -> str:
    """The commit that a hub dataset's main branch is at. Raises UserError if it cannot be had."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(f"'hub:{name}' needs the datasets library: {_INSTALL}") from None
    try:
        return HfApi().dataset_info(name).sha or ""
    except Exception as error:
        raise _explained(name, "", "", error) from error


def _explained(name: str, subset: str, split: str, error: Exception) -> UserError:
    first_line = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    asked = f"hub:{name}" + (f", corpus.hub_subset={subset!r}" if subset else "")
    asked += f", corpus.hub_split={split!r}" if split else ""
    return UserError(
        f"{asked} cannot be read: {first_line}; check the name, the subset, the split and the network"
    )
