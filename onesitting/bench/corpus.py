"""The text that a benchmark trains on: the run's own where it is prepared, else a small world."""

import json
from dataclasses import replace
from pathlib import Path

from onesitting.config import RunConfig
from onesitting.data.prepare import POINTER_FILE, prepare_documents
from onesitting.data.sources import sample_texts
from onesitting.data.tokens import INFO_FILE, TokenFolder
from onesitting.runlog import RunFolder
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

WORLD_MB, TOKENIZER_MB = 2.0, 1.0
"""Text that is written where nothing is prepared: enough for real rows; its amount changes no speed."""


def bench_corpus(cfg: RunConfig, scratch: Path) -> tuple[Tokenizer, TokenFolder, str]:
    """Tokenizer, tokens, and in words where they come from.

    scratch: a folder for what is made here; prepared tokens of the small world stay in the shared cache.
    """
    run = RunFolder(Path(cfg.out).expanduser() / cfg.name)
    pointer = run.data / "text" / POINTER_FILE
    if pointer.is_file() and (run.tokenizer / "tokenizer.json").is_file():
        folder = Path(json.loads(pointer.read_text())["folder"])
        if (folder / INFO_FILE).is_file():
            return Tokenizer.load(run.tokenizer), TokenFolder(folder), f"the prepared text of {run.path}"
    corpus = replace(cfg.corpus, world_mb=WORLD_MB, val_data=())
    tokenizer = train_tokenizer(
        sample_texts(("world",), corpus, TOKENIZER_MB, cfg.seed), cfg.tokenizer.vocab_size
    )
    data = prepare_documents(
        ("world",), tokenizer, corpus, scratch / "text", cfg.seed, progress=lambda progress: None
    )
    return tokenizer, data, f"{WORLD_MB:g} MB of the synthetic world, for {run.path} holds no prepared text"
