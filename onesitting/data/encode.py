"""Texts and conversations -> parts: arrays of tokens with the length, size and hash of each item.

A part is one file, `000012.npz`, written whole or not at all. Parts that exist are not made again, so a
preparation that was killed goes on where it stopped. Items: documents, conversations or preferences; N
tokens, D items in a part.
"""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onesitting.data.preference_records import Preference
from onesitting.data.sources import Conversation, Document
from onesitting.runlog import storage_error
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render

Item = Document | Conversation | Preference
TRAINED, REJECTED = 1, 2
"""Bits of a token's mask: the loss reads it; it belongs to the rejected reply (or to the prompt before it)."""
CHUNK_CHARACTERS = 2_000_000
"""Text in one part: a fraction of a second of encoding, so that little is lost by a kill."""


@dataclass(frozen=True)
class PartInfo:
    """What a part holds."""

    path: Path
    n_items: int
    n_tokens: int
    n_bytes: int


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Consecutive items of CHUNK_CHARACTERS in all."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.text) if isinstance(item, Document) else _characters(item)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def encode_items(
    items: Iterable[Item], tokenizer: Tokenizer, folder: Path, workers: int
) -> Iterator[PartInfo]:
    """Write the parts of items into a folder, `workers` at a time; yields each part as it is done.

    Constant memory: a few chunks wait at a time. Too little text for several workers is encoded right here.
    """
    numbered = enumerate(chunks(items))
    first = list(islice(numbered, 3))
    numbered = chain(first, numbered)
    if workers > 1 and len(first) > 2:
        # Conversations are rendered in Python, which runs in one thread at a time.
        spread = _in_threads if isinstance(first[0][1][0], Document) else _in_processes
        yield from spread(numbered, tokenizer, folder, workers)
    else:
        for index, chunk in numbered:
            yield _existing(folder, index) or write_part(index, chunk, tokenizer, folder)


def write_part(index: int, items: Sequence[Item], tokenizer: Tokenizer, folder: Path) -> PartInfo:
    """Encode items and write them as part number `index`."""
    encoded = [_encode(item, tokenizer) for item in items]
    tokens = [ids for ids, _, _, _ in encoded]
    masks = [mask for _, mask, _, _ in encoded if mask is not None]
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens": np.concatenate(tokens).astype(token_dtype(tokenizer.vocab_size)),
        "lengths": np.array([len(ids) for ids in tokens], dtype=np.int64),
        "n_bytes": np.array([n_bytes for _, _, n_bytes, _ in encoded], dtype=np.int64),
        "hashes": np.array([digest for _, _, _, digest in encoded], dtype=np.uint64),
    }
    if masks:
        arrays["trained"] = np.concatenate(masks)
    path = part_path(folder, index)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(error, path) from None
    return PartInfo(path, len(items), len(arrays["tokens"]), int(arrays["n_bytes"].sum()))


def part_path(folder: Path, index: int) -> Path:
    """File of a part."""
    return folder / f"{index:06d}.npz"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def content_hash(item: Item) -> int:
    """64 bits that depend on the content alone: they decide on duplicates and on the validation split."""
    if isinstance(item, Document):
        return _hash(item.text.encode(), 8)
    if isinstance(item, Conversation):
        return _hash(json.dumps([item.messages, item.tools], sort_keys=True).encode(), 8)
    # The split is decided by the upper bits, which are the prompt's: its pairs are all held out, or none.
    prompt = json.dumps([item.prompt, item.tools], sort_keys=True).encode()
    replies = json.dumps([item.chosen, item.rejected], sort_keys=True).encode()
    return _hash(prompt, 4) << 32 | _hash(prompt + replies, 4)


def _hash(data: bytes, n_bytes: int) -> int:
    return int.from_bytes(blake2b(data, digest_size=n_bytes).digest(), "little")


def _characters(item: Conversation | Preference) -> int:
    if isinstance(item, Conversation):
        messages = item.messages
    else:
        messages = [*item.prompt, *item.prompt, *(item.chosen or []), *(item.rejected or [])]
    return sum(len(message.get("content") or "") for message in messages) + 64


def _encode(
    item: Item, tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8] | None, int, int]:
    """(ids, trained, bytes of text, hash); a document ends with the end-of-text token."""
    digest = content_hash(item)
    if isinstance(item, Document):
        ids = np.append(tokenizer.encode_array(item.text), np.uint32(tokenizer.eos_id))
        return ids, None, len(item.text.encode()), digest
    if isinstance(item, Conversation):
        rendered, trained = render(tokenizer, item.messages, item.tools)
        mask = np.array(trained, dtype=np.uint8)
    else:
        rendered, mask = encode_preference(item, tokenizer)
    n_bytes = sum(map(len, map(tokenizer.token_bytes.__getitem__, rendered)))
    return np.array(rendered, dtype=np.uint32), mask, n_bytes, digest


def encode_preference(item: Preference, tokenizer: Tokenizer) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """(ids, mask): the conversation with the chosen reply, then the one with the rejected reply.

    mask: TRAINED for the reply's tokens by the assistant, REJECTED for all of the second conversation. Assistant
    turns of the prompt are not trained: they are the same in both, and were not what was judged.
    """
    prompt_ids, _ = render(tokenizer, item.prompt, item.tools, add_generation_prompt=True)
    ids: list[int] = []
    masks: list[npt.NDArray[np.uint8]] = []
    for reply, side in ((item.chosen, 0), (item.rejected, REJECTED)):
        if reply is None:
            continue
        rendered, trained = render(tokenizer, [*item.prompt, *reply], item.tools)
        assert rendered[: len(prompt_ids)] == prompt_ids, (
            "the template renders a prompt otherwise before a reply"
        )
        mask = np.where(trained, TRAINED | side, side).astype(np.uint8)
        mask[: len(prompt_ids)] = side
        ids += rendered
        masks.append(mask)
    return ids, np.concatenate(masks)


def _existing(folder: Path, index: int) -> PartInfo | None:
    """The part, if an earlier preparation has written it."""
    path = part_path(folder, index)
    if not path.exists():
        return None
    with np.load(path) as part:
        return PartInfo(path, len(part["lengths"]), int(part["lengths"].sum()), int(part["n_bytes"].sum()))


Numbered = Iterator[tuple[int, list[Item]]]
Waiting = dict[Future[PartInfo], tuple[int, list[Item]]]


def _in_threads(numbered: Numbered, tokenizer: Tokenizer, folder: Path, workers: int) -> Iterator[PartInfo]:
    """`encode_items` for documents: nearly all of their time is in the tokenizer, which lets other threads run.

    A fifth faster than processes, which take time to start and texts to be sent.
    """

    def encode(index: int, items: list[Item]) -> PartInfo:
        return write_part(index, items, tokenizer, folder)

    with ThreadPoolExecutor(workers) as pool:
        yield from _spread(pool, encode, numbered, {}, folder, workers)


def _in_processes(numbered: Numbered, tokenizer: Tokenizer, folder: Path, workers: int) -> Iterator[PartInfo]:
    """`encode_items` in processes that are started afresh (forking a process with threads may hang)."""
    waiting: Waiting = {}
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(tokenizer, folder)
    ) as pool:
        try:
            yield from _spread(pool, _work, numbered, waiting, folder, workers)
        except BrokenProcessPool:
            pass  # a worker was killed, or this program's main module cannot be imported twice
        else:
            return
    for index, chunk in chain(waiting.values(), numbered):
        yield _existing(folder, index) or write_part(index, chunk, tokenizer, folder)


def _spread(
    pool: Executor,
    encode: Callable[[int, list[Item]], PartInfo],
    numbered: Numbered,
    waiting: Waiting,
    folder: Path,
    workers: int,
) -> Iterator[PartInfo]:
    """Parts as they are done, a few chunks under way at a time: those are in `waiting`, also after an error."""
    try:
        for index, chunk in numbered:
            existing = _existing(folder, index)
            if existing:
                yield existing
                continue
            waiting[pool.submit(encode, index, chunk)] = (index, chunk)
            if len(waiting) > 2 * workers:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _finished(waiting: Waiting) -> Iterator[PartInfo]:
    """The results of the chunks that are done, at least one. A broken pool leaves its chunks in `waiting`."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        result = future.result()
        del waiting[future]
        yield result


_worker: Callable[[int, list[Item]], PartInfo]


def _start_worker(tokenizer: Tokenizer, folder: Path) -> None:
    """Set up a worker process, which ends when the process that started it is gone, however it went."""

    def encode(index: int, items: list[Item]) -> PartInfo:
        return write_part(index, items, tokenizer, folder)

    global _worker
    _worker = encode
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(index: int, items: list[Item]) -> PartInfo:
    return _worker(index, items)
