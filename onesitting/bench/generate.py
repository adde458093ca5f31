"""`onesitting bench generate`: tokens a second of decoding, ours beside transformers' on the same model folder."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from onesitting.bench.limit import describe_machine
from onesitting.bench.tables import aligned
from onesitting.checkpoint import find_model_folder, load_model
from onesitting.config import DeviceConfig
from onesitting.errors import UserError
from onesitting.inference.generate import for_decoding, generate
from onesitting.inference.sampling import Sampling
from onesitting.model.flops import count_parameters
from onesitting.model.hf import hf_format
from onesitting.model.transformer import Transformer
from onesitting.runlog import write_atomic
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.unused import tokenizer_of_model
from onesitting.train.device import DevicePlan, detect, plan_device

TEXT = (
    "The river ran through the middle of the town, and on both sides of it stood houses with gardens. In the "
    "morning the people went over the bridge to the market, where they bought bread, fruit and flowers. "
)
"""What all prompts are cut from."""
SHORTEST_PROMPT = 4
"""Tokens of the first prompt; each further one is a token longer, up to the text's length, and then again."""
N_ALONE = 5
"""Prompts of one stream, one after the other: how much it can guess depends on the text."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class DecodeSpeed:
    """One number of streams; rates are new tokens a second over all streams, prompts included."""

    streams: int
    new_tokens: int
    """Of each stream."""
    ours_per_s: float
    unguessed_per_s: float
    """Ours without guesses from the text, which one stream has (inference/lookup.py). Only texts that repeat
    themselves gain by those, as the greedy texts of a model with random weights do."""
    theirs_per_s: float
    ratio: float
    same: int
    """Texts with the same greedy tokens from both."""
    n_texts: int
    """N_ALONE for one stream, else one a stream."""
    first_difference: int | None
    """Earliest place at which a text differs; None if none does."""


def bench_generate(
    run: str,
    *,
    streams: Sequence[int] = (1, 32),
    tokens: int = 128,
    repeats: int = 3,
    dtype: str = "float32",
    device: str = "auto",
    threads: int = 0,
    save: Path | None = None,
) -> dict[str, Any]:
    """Measure, print, and return (and save, as JSON) a DecodeSpeed for each number of streams.

    run: a run, stage, checkpoint or model folder. tokens: new ones of each stream; no stop token ends it earlier.
    repeats: the fastest of so many counts, on both sides.
    Raises UserError where transformers is not installed or lacks the shape, and where the context is too short.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    folder = find_model_folder(Path(run))
    plan = plan_device(DeviceConfig(device=device, threads=threads), detect())
    plan.apply()
    model = load_model(folder, plan.torch_device).to(DTYPES[dtype]).eval()
    hf_format(model.cfg)
    tokenizer = tokenizer_of_model(folder, model.cfg.vocab_size)
    laid_out = for_decoding(model, None)  # once, as chat and server do, and as theirs is loaded
    theirs = _load_theirs(folder, plan, DTYPES[dtype])
    found = [
        _measure(laid_out, tokenizer, theirs, _prompts(tokenizer, n), tokens, repeats, plan) for n in streams
    ]
    print(f"{plan.describe()}, weights in {dtype} · {folder} · {count_parameters(model.cfg):,} parameters")
    print(_table(found))
    record = {
        **describe_machine(plan),
        "dtype": dtype,
        "model": str(folder),
        "n_parameters": count_parameters(model.cfg),
        "speeds": [asdict(speed) for speed in found],
    }
    if save is not None:
        write_atomic(save, json.dumps(record, indent=1) + "\n")
    return record


def _prompts(tokenizer: Tokenizer, n: int) -> list[list[list[int]]]:
    """Prompts for n streams, in groups that are written together: n of unequal length that begin as documents do.

    For one stream, N_ALONE of equal length from all over the text, each alone.
    """
    ids = tokenizer.encode(TEXT)
    span = len(ids) - SHORTEST_PROMPT
    if n == 1:
        places = [i * span // N_ALONE for i in range(N_ALONE)]
        return [[[tokenizer.eos_id, *ids[place : place + SHORTEST_PROMPT]]] for place in places]
    return [[[tokenizer.eos_id, *ids[: SHORTEST_PROMPT + i % span]] for i in range(n)]]


def _measure(
    model: Transformer,
    tokenizer: Tokenizer,
    theirs: Any,
    groups: list[list[list[int]]],
    tokens: int,
    repeats: int,
    plan: DevicePlan,
) -> DecodeSpeed:
    longest = max(len(prompt) for prompts in groups for prompt in prompts)
    if longest + tokens > model.cfg.context_length:
        raise UserError(
            f"--tokens {tokens}: with prompts of {longest} tokens they exceed the model's context of "
            f"{model.cfg.context_length}; use at most {model.cfg.context_length - longest}"
        )
    sampling = Sampling(temperature=0.0, max_tokens=tokens)

    def ours(guess: bool = True) -> list[list[int]]:
        done = [
            generate(model, tokenizer, prompts, sampling, stop_ids=frozenset(), guess=guess)
            for prompts in groups
        ]
        return [text.ids for texts in done for text in texts]

    def other() -> list[list[int]]:
        done = [_generate_theirs(theirs, prompts, tokens, tokenizer.eos_id) for prompts in groups]
        return [ids for texts in done for ids in texts]

    streams = len(groups[0])
    our_ids, our_s = _fastest(ours, repeats, plan)
    unguessed_s = _fastest(lambda: ours(guess=False), repeats, plan)[1] if streams == 1 else our_s
    their_ids, their_s = _fastest(other, repeats, plan)
    differing = [_first_difference(a, b) for a, b in zip(our_ids, their_ids, strict=True)]
    places = [place for place in differing if place is not None]
    n = len(our_ids) * tokens
    return DecodeSpeed(
        streams=streams,
        new_tokens=tokens,
        ours_per_s=n / our_s,
        unguessed_per_s=n / unguessed_s,
        theirs_per_s=n / their_s,
        ratio=their_s / our_s,
        same=differing.count(None),
        n_texts=len(our_ids),
        first_difference=min(places, default=None),
    )


def _fastest(
    call: Callable[[], list[list[int]]], repeats: int, plan: DevicePlan
) -> tuple[list[list[int]], float]:
    """What a call gives, and the seconds of the fastest; one call before them warms up."""
    found, best_s = call(), float("inf")
    for _ in range(max(1, repeats)):
        began = time.perf_counter()
        found = call()
        if plan.device != "cpu":
            torch.get_device_module(plan.device).synchronize()
        best_s = min(best_s, time.perf_counter() - began)
    return found, best_s


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    if list(a) == list(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---- transformers ------------------------------------------------------------------------------------------


def _load_theirs(folder: Path, plan: DevicePlan, dtype: torch.dtype) -> Any:
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise UserError("bench generate compares with transformers: pip install 'onesitting[hf]'") from None
    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(plan.torch_device).eval()


def _generate_theirs(model: Any, prompts: list[list[int]], tokens: int, pad_id: int) -> list[list[int]]:
    """Greedy continuations; shorter prompts are padded at the left and masked, as transformers wants it."""
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    plain = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=pad_id)
    model.generation_config = plain  # the model's own would end texts and may ask for sampling
    with torch.inference_mode():
        done = model.generate(ids, attention_mask=mask, generation_config=plain)
    return done[:, longest:].tolist()


def _table(speeds: Sequence[DecodeSpeed]) -> str:
    rows = [
        [
            "streams",
            "new tokens",
            "ours, tokens/s",
            "without guesses",
            "transformers, tokens/s",
            "ratio",
            "same greedy text",
        ]
    ]
    for speed in speeds:
        same = f"{speed.same} of {speed.n_texts}"
        if speed.first_difference is not None:
            same += f", first difference after {speed.first_difference}"
        rates = [f"{speed.ours_per_s:,.0f}", f"{speed.unguessed_per_s:,.0f}"]
        rates += [f"{speed.theirs_per_s:,.0f}", f"{speed.ratio:.2f} x"]
        rows.append([str(speed.streams), str(speed.new_tokens), *rates, same])
    return aligned(rows)
