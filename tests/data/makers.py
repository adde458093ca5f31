"""Prepared folders written by hand, as the module docstring of data/tokens.py describes them."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from onesitting.data.tokens import ChatFolder, TokenFolder

EOS = 0
SUBJECTS = (
    "the fox",
    "a child",
    "my aunt",
    "the river",
    "an old clock",
    "Über-Otto",
    "the 7 ducks",
    "日本の猫",
)
VERBS = ("sees", "takes", "loses", "paints", "carries", "forgets", "counts", "hears")
OBJECTS = ("a lamp", "the bridge", "two apples", "some snow", "a letter", "the moon", "naïve maps", "12 keys")


def story(seed: int, sentences: int = 6) -> str:
    """A text of some sentences, another one for each seed."""
    rng = random.Random(seed)
    parts = [f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}" for _ in range(sentences)]
    return f"Story {seed}. " + ". ".join(parts) + ".\n"


def write_files(
    folder: Path, kind: str, arrays: dict[str, np.ndarray], eos_id: int = EOS, dtype: str = "uint32"
) -> None:
    """The same arrays as train and val split, and the tokens.json that describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {}
    for split in ("train", "val"):
        for suffix, array in arrays.items():
            data = array.tobytes()
            (folder / f"{split}.{suffix}").write_bytes(data)
            files[f"{split}.{suffix}"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    counts = {"n_items": len(arrays["starts"]), "n_tokens": len(arrays["bin"]), "n_bytes": 1, "n_trained": 0}
    info = {
        "kind": kind,
        "dtype": dtype,
        "eos_id": eos_id,
        "splits": {"train": counts, "val": counts},
        "files": files,
    }
    (folder / "tokens.json").write_text(json.dumps(info))


def counting_documents(folder: Path, lengths: list[int]) -> TokenFolder:
    """Documents whose tokens are their own positions in the file, so that a row says where it was read."""
    starts = np.cumsum([0, *lengths])[:-1]
    write_files(
        folder, "documents", {"bin": np.arange(sum(lengths), dtype="<u4"), "starts": starts.astype("<i8")}
    )
    return TokenFolder(folder)


def chat_folder(
    folder: Path, conversations: list[tuple[list[int], list[bool]]], eos_id: int = EOS
) -> ChatFolder:
    """Rendered conversations as a prepared folder."""
    lengths = [len(ids) for ids, _ in conversations]
    arrays = {
        "bin": np.array([i for ids, _ in conversations for i in ids], dtype="<u4"),
        "mask": np.array([t for _, trained in conversations for t in trained], dtype=np.uint8),
        "starts": np.cumsum([0, *lengths])[:-1].astype("<i8"),
    }
    write_files(folder, "conversations", arrays, eos_id)
    return ChatFolder(folder)
