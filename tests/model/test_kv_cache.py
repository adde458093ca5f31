"""Contract 10: with a cache, every position has the logits of a full forward pass, and no pass changes another."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.kv_cache import CHUNK, KVCache, Next, Piece
from onesitting.model.packed import packed
from onesitting.model.transformer import Transformer
from onesitting.train.hardware import detect

BASE = ModelConfig(
    n_layers=3, d_model=48, n_heads=6, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=61, context_length=200
)
GPT2 = replace(BASE, norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_heads=6)
LENGTHS = [3, CHUNK, 1, CHUNK + 9, 2 * CHUNK + 1]
N_DECODED = 6
HAS_TILES = "amx_bf16" in detect().cpu_flags
"""As oneDNN found it at its first product: what a test sets later changes nothing."""


def skip_with_tiles(dtype: torch.dtype) -> None:
    """Skip where oneDNN has AMX, whose bfloat16 sums depend on the number of rows: a server leaves it out."""
    if HAS_TILES and dtype is torch.bfloat16:
        pytest.skip("AMX: see test_without_tiles_rows_do_not_depend_on_how_many_there_are")


def random_model(cfg: ModelConfig) -> Transformer:
    model = Transformer(cfg).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(0, 61, (n + N_DECODED,), generator=generator).tolist() for n in LENGTHS]


def pieces_of(slot: int, prompt: list[int]) -> list[Piece]:
    return [Piece(slot, at, prompt[at : at + CHUNK]) for at in range(0, len(prompt), CHUNK)]


def alone(model: Transformer, row: list[int], n_prompt: int, cache: KVCache, slot: int) -> Tensor:
    """Hidden states of the prompt's last token and of the tokens behind it, each read in a pass of its own."""
    out = [cache.read(model, [piece], []) for piece in pieces_of(slot, row[:n_prompt])][-1:]
    out += [cache.read(model, [], [Next(slot, at, row[at])]) for at in range(n_prompt, len(row))]
    return torch.cat(out)


def mixed(model: Transformer, rows: list[list[int]], seed: int) -> list[Tensor]:
    """The same for all rows, read together in passes of random composition."""
    rng = random.Random(seed)
    cache = KVCache(model, len(rows), 200)
    slots = rng.sample(range(len(rows)), len(rows))
    waiting = [pieces_of(slot, row[:n]) for slot, row, n in zip(slots, rows, LENGTHS, strict=True)]
    done = list(LENGTHS)
    out: list[list[Tensor]] = [[] for _ in rows]
    while any(waiting) or any(at < len(row) for at, row in zip(done, rows, strict=True)):
        pieces: list[tuple[int, Piece]] = []
        nexts: list[tuple[int, Next]] = []
        for i, row in enumerate(rows):
            if waiting[i]:
                n = rng.randint(0, len(waiting[i]))
                pieces += [(i, piece) for piece in waiting[i][:n]]
                del waiting[i][:n]
            elif done[i] < len(row) and rng.random() < 0.7:
                nexts.append((i, Next(slots[i], done[i], row[done[i]])))
                done[i] += 1
        hidden = cache.read(model, [p for _, p in pieces], [n for _, n in nexts]) if pieces or nexts else []
        for (i, what), state in zip([*pieces, *nexts], hidden, strict=True):
            if isinstance(what, Next) or what.start + len(what.tokens) == LENGTHS[i]:
                out[i].append(state)
    return [torch.stack(states) for states in out]


@pytest.mark.parametrize("cfg", [BASE, replace(BASE, n_kv_heads=6, qk_norm=False), GPT2])
@torch.no_grad()
def test_cached_states_equal_the_full_forward_pass(cfg: ModelConfig) -> None:
    model = random_model(cfg)
    for row, n, ours in zip(sequences(), LENGTHS, mixed(model, sequences(), 0), strict=True):
        full = model.hidden(torch.tensor([row]))[0, n - 1 :]
        torch.testing.assert_close(ours, full, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cfg", [BASE, replace(BASE, n_kv_heads=6), GPT2])
@pytest.mark.parametrize("layout", ["plain", "packed"])
@torch.inference_mode()
def test_states_are_the_same_bits_in_any_company(cfg: ModelConfig, dtype: torch.dtype, layout: str) -> None:
    model = packed(random_model(cfg), dtype) if layout == "packed" else random_model(cfg).to(dtype)
    cache = KVCache(model, 2, 200)
    # One slot serves all, so what its last user left there must not show.
    expected = [alone(model, row, n, cache, 1) for row, n in zip(sequences(), LENGTHS, strict=True)]
    for seed in range(3):
        for ours, one in zip(mixed(model, sequences(), seed), expected, strict=True):
            assert torch.equal(ours, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cfg", [BASE, replace(BASE, n_kv_heads=6), GPT2])
@torch.inference_mode()
def test_several_tokens_of_a_slot_in_one_pass_have_the_bits_of_passes_of_their_own(
    cfg: ModelConfig, dtype: torch.dtype
) -> None:
    model, rows = packed(random_model(cfg), dtype), sequences()
    cache = KVCache(model, len(rows), 200)
    expected = [
        alone(model, row, n, cache, slot)[1:] for slot, (row, n) in enumerate(zip(rows, LENGTHS, strict=True))
    ]
    for slot, (row, n) in enumerate(zip(rows, LENGTHS, strict=True)):  # the same positions with other tokens
        cache.read(model, [], [Next(slot, at, 60 - row[at]) for at in range(n, n + N_DECODED)])
    nexts = [
        [Next(slot, at, row[at]) for at in range(n, n + 2 + slot % 3)]
        for slot, (row, n) in enumerate(zip(rows, LENGTHS, strict=True))
    ]
    found = cache.read(model, [], [it for some in nexts for it in some])
    for states, wanted in zip(found.split([len(some) for some in nexts]), expected, strict=True):
        assert torch.equal(states, wanted[: len(states)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_token_beside_a_much_longer_text_has_the_bits_it_has_alone(dtype: torch.dtype) -> None:
    # Heads as wide as real ones, and positions beyond the sums that a library computes in one go.
    cfg = replace(BASE, n_layers=1, n_heads=4, n_kv_heads=1, head_dim=64, context_length=640)
    model, generator = packed(random_model(cfg), dtype), torch.Generator().manual_seed(9)
    row = torch.randint(0, 61, (640,), generator=generator).tolist()
    cache = KVCache(model, 2, 640)
    for slot in (0, 1):
        cache.read(model, pieces_of(slot, row), [])
    for position in (100, 130, 180, 200, 250, 330, 470):
        alone = cache.read(model, [], [Next(0, position, row[position])])
        for other in range(position // CHUNK * CHUNK + CHUNK, 640, CHUNK):
            nexts = [Next(0, position, row[position]), Next(1, other, row[other])]
            assert torch.equal(cache.read(model, [], nexts)[:1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_matrix_product_do_not_depend_on_how_many_there_are(dtype: torch.dtype) -> None:
    skip_with_tiles(dtype)
    # What batch invariance rests on, measured here for the numbers of rows that a pass can have.
    generator = torch.Generator().manual_seed(0)
    rows = Transformer(BASE).row_multiple
    for n_in, n_out in [(48, 64), (128, 384), (384, 128), (128, 2048), (768, 768)]:
        x = torch.randn(16 * rows, n_in, generator=generator).to(dtype)
        weight = torch.randn(n_out, n_in, generator=generator).to(dtype)
        whole = F.linear(x, weight)
        for n in range(rows, len(x), rows):
            assert torch.equal(F.linear(x[:n], weight), whole[:n])


WITHOUT_TILES = """
from onesitting.train.process import leave_tiles_out
leave_tiles_out()
import torch, torch.nn.functional as F
from onesitting.model.packed import PackedLinear, can_pack
for n_in, n_out in [(1408, 512), (512, 1408), (768, 768), (512, 512)]:
    x, weight = torch.randn(256, n_in).bfloat16(), torch.randn(n_out, n_in).bfloat16()
    ways = [lambda x: F.linear(x, weight), *([PackedLinear(weight, None)] if can_pack("cpu", weight.dtype) else [])]
    for product in ways:
        whole = product(x)
        assert all(torch.equal(product(x[:n]), whole[:n]) for n in range(16, 256, 16)), (n_in, n_out)
"""


def test_without_tiles_rows_do_not_depend_on_how_many_there_are() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
    subprocess.run([sys.executable, "-c", WITHOUT_TILES], env=environment, check=True, timeout=120)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_cached_states_agree_within_the_tolerance_of_a_short_dtype(dtype: torch.dtype) -> None:
    exact = random_model(BASE)
    expected = [
        exact.hidden(torch.tensor([row]))[0, n - 1 :] for row, n in zip(sequences(), LENGTHS, strict=True)
    ]
    for ours, full in zip(mixed(random_model(BASE).to(dtype), sequences(), 0), expected, strict=True):
        assert (ours - full).norm() < 0.03 * full.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_slots_are_laid_out_as_long_as_the_longest_text_and_keep_what_they_hold(dtype: torch.dtype) -> None:
    cfg = replace(BASE, n_heads=4, n_kv_heads=2, head_dim=64)
    model, generator = random_model(cfg).to(dtype), torch.Generator().manual_seed(5)
    short, long = (torch.randint(0, 61, (n,), generator=generator).tolist() for n in (10 + N_DECODED, 190))
    expected = alone(model, short, 10, KVCache(model, 1, 200), 0)
    cache = KVCache(model, 3, 200)
    cache.read(model, pieces_of(1, short[:10]), [])
    lengths, states = [cache.length], []
    for at in range(10, 10 + N_DECODED):
        nexts = [Next(1, at, short[at])]
        if at == 11:  # a long text joins below, and another one above comes out of a cache
            cache.read(model, pieces_of(0, long[:70]), [])
            cache.restore(2, 0, cache.prefix(0, 0))
            cache.read(model, pieces_of(2, long)[1:], [])
        if at == 12:
            cache.free(2)
        if at == 13:
            cache.free(0)
        states.append(cache.read(model, [], nexts)[0])
        lengths.append(cache.length)
        whole = cache.keys[0, 0], cache.values[0, 0]
        assert all(part.is_contiguous() for part in whole)
    assert lengths[:5] == [CHUNK, CHUNK, 3 * CHUNK, 2 * CHUNK, CHUNK]
    assert torch.equal(torch.stack(states), expected[1:])
    cache.keys.fill_(torch.nan)
    cache.clear()
    assert torch.equal(alone(model, short, 10, cache, 1), expected)


@torch.inference_mode()
def test_restored_prefix_is_as_good_as_one_that_was_read() -> None:
    model, row = random_model(BASE), sequences()[-1]
    cache = KVCache(model, 3, 200)
    expected = alone(model, row, LENGTHS[-1], cache, 0)
    for start in (0, CHUNK):
        cache.restore(2, start, cache.prefix(0, start))
    ours = cache.read(model, pieces_of(2, row[: LENGTHS[-1]])[2:], [])
    assert torch.equal(ours, expected[:1])


def test_cache_that_is_too_small_says_so() -> None:
    model = random_model(GPT2)
    with pytest.raises(UserError, match=r"model\.context_length is 200"):
        KVCache(model, 1, 201)
    cache = KVCache(model, 1, 4)
    with pytest.raises(ValueError, match="position 4 in a cache of 4 tokens"):
        cache.read(model, [Piece(0, 0, [1] * 5)], [])
