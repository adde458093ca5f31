"""Entries for the rows of an embedding that a tokenizer has no name for."""

import json
from pathlib import Path

from onesitting.errors import UserError
from onesitting.tokenizer.bpe import Tokenizer


def tokenizer_of_model(folder: Path, n_rows: int) -> Tokenizer:
    """The tokenizer of a model's folder, with a name for all n_rows ids that the model can write.

    Raises UserError where there is none in the folder, or one with more entries than rows.
    """
    return with_unused_entries(Tokenizer.load(folder), n_rows)


def with_unused_entries(tokenizer: Tokenizer, n_rows: int) -> Tokenizer:
    """The tokenizer with an unused entry for each row of the embedding that has none, as ours are filled up.

    A model can write any row's id; Qwen3's embedding, for one, has 267 rows more than its tokenizer has entries.
    Raises UserError for a tokenizer with more entries than rows: the model knows no such ids.
    """
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = tokenizer.vocab_size
    if first > n_rows:
        raise UserError(
            f"the tokenizer has {first} entries and the embedding {n_rows} rows; give the tokenizer that belongs to "
            "this model"
        )
    unused = [
        {"id": i, "content": f"<|unused_{i - first}|>", **plain, "special": True}
        for i in range(first, n_rows)
    ]
    if not unused:
        return tokenizer
    spec = {**tokenizer.spec, "added_tokens": [*(tokenizer.spec.get("added_tokens") or []), *unused]}
    return Tokenizer(json.dumps(spec, ensure_ascii=False, indent=1) + "\n", tokenizer.settings)
