"""What to expect of well-known cards: published peak rates, an assumed fraction of them, and the memory formula.

Nothing here looks at this machine, and nothing was measured on a GPU. `onesitting plan RECIPE` alone measures.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

from onesitting.budgets import parse_budget
from onesitting.config import DeviceConfig, RunConfig, stage_config
from onesitting.evaluation.curves import short_number
from onesitting.evaluation.report_text import duration
from onesitting.model.flops import count_parameters, flops_per_token, training_memory_bytes
from onesitting.train.device import even_rows, plan_device
from onesitting.train.hardware import Hardware

GPU_FRACTION = 0.25
"""Of a GPU's peak that a training step is taken to reach: an assumption, for no run on one was measured. Models as
small as these leave large cards waiting for memory and for kernels to start: it may be far less on an H100."""
CPU_FRACTION = 0.58
"""Of a processor's peak: measured on two Zen 4 cores, 1,630 to 1,700 tokens/s of recipe 26m (docs/performance.md)."""
TOKENS_PER_PARAMETER = 20
"""Where more parameters would serve a compute budget no better: Hoffmann et al. 2022, arXiv:2203.15556."""
CONTEXT_BYTES = 0.6e9
"""Of a GPU's memory that driver, kernels and workspaces take, about; of main memory, Python and PyTorch."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card, or a processor where `flags` are given, as published."""

    name: str
    memory_gib: int
    tflops: float
    source: str
    capability: tuple[int, int] = (0, 0)
    flags: tuple[str, ...] = ()

    @property
    def hardware(self) -> Hardware:
        """A machine with it, for the device policy."""
        memory = self.memory_gib * 2**30
        if self.flags:
            return Hardware(cpu_name=self.name, cpu_flags=frozenset(self.flags), ram_bytes=memory)
        return Hardware(
            accelerator="cuda",
            name=self.name,
            capability=self.capability,
            n_devices=1,
            memory_bytes=memory,
            triton=True,
        )

    @property
    def flops_per_s(self) -> float:
        """What training is taken to reach."""
        return self.tflops * 1e12 * (CPU_FRACTION if self.flags else GPU_FRACTION)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A recipe's pretraining on a card; every number is computed."""

    card: Card
    dtype: str
    tokens_per_s: float
    rows: int
    """In a micro-batch."""
    memory_bytes: float
    fits: bool
    enough_s: float
    """Until TOKENS_PER_PARAMETER tokens a parameter."""
    budget_tokens: float | None
    """In pretraining's share of the recipe's own time; None: its budget is not a time."""
    n_parameters: int


def read_cards() -> list[Card]:
    """The table in the package."""
    entries = tomllib.loads((resources.files("onesitting") / "cards.toml").read_text(encoding="utf-8"))[
        "card"
    ]
    return [
        Card(
            name=entry["name"],
            memory_gib=entry["memory_gib"],
            tflops=entry["tflops"],
            source=entry["source"],
            capability=tuple(entry.get("capability", (0, 0))),
            flags=tuple(entry.get("flags", ())),
        )
        for entry in entries
    ]


def expect(cfg: RunConfig, card: Card) -> Expectation:
    """What pretraining by this configuration is expected to do on a card."""
    model = replace(cfg.model, vocab_size=cfg.model.vocab_size or -(-cfg.tokenizer.vocab_size // 64) * 64)
    length = cfg.pretrain.context_length or model.context_length
    n_rows = max(1, cfg.pretrain.step_tokens // length)
    device = plan_device(DeviceConfig(), card.hardware).for_model(model)
    rows = min(n_rows, device.micro_batch_rows(length, cfg.pretrain.micro_batch_rows, n_rows))
    room = card.memory_gib * 2**30 - CONTEXT_BYTES
    while rows > 1 and training_memory_bytes(model, rows, length, device.dtype) > room:
        rows = even_rows(n_rows, rows // 2)
    memory = training_memory_bytes(model, rows, length, device.dtype)
    n_parameters = count_parameters(model)
    tokens_per_s = card.flops_per_s / flops_per_token(model, length)
    seconds = parse_budget(cfg.budget).seconds
    share = cfg.pretrain.share / sum(stage_config(cfg, name).share for name in cfg.stages)
    return Expectation(
        card=card,
        dtype=device.dtype,
        tokens_per_s=tokens_per_s,
        rows=rows,
        memory_bytes=memory + CONTEXT_BYTES,
        fits=memory <= room,
        enough_s=TOKENS_PER_PARAMETER * n_parameters / tokens_per_s,
        budget_tokens=None if seconds is None else seconds * share * tokens_per_s,
        n_parameters=n_parameters,
    )


def cards_table(cfg: RunConfig, cards: Sequence[Card] | None = None) -> str:
    """A Markdown table, a line a card."""
    found = [expect(cfg, card) for card in (read_cards() if cards is None else cards)]
    n = found[0].n_parameters
    rows = [
        [
            f"{cfg.name}, {n / 1e6:,.1f}M", "memory", "type", "peak, published", "tokens/s, computed",
            f"{TOKENS_PER_PARAMETER} tokens a parameter ({short_number(TOKENS_PER_PARAMETER * n)}), computed",
            f"pretraining tokens in {cfg.budget}, computed", "rows, computed", "memory needed, computed",
        ]
    ]  # fmt: skip
    for one in found:
        tokens = one.budget_tokens
        rows.append(
            [
                one.card.name,
                f"{one.card.memory_gib} GB",
                one.dtype,
                f"{one.card.tflops:,.4g} TFLOP/s",
                f"{one.tokens_per_s:,.0f}" if one.tokens_per_s < 1e4 else short_number(round(one.tokens_per_s)),
                duration(one.enough_s),
                "–" if tokens is None else _tokens(tokens, one.n_parameters),
                str(one.rows),
                f"{one.memory_bytes / 1e9:.1f} GB" + ("" if one.fits else ": too much"),
            ]
        )  # fmt: skip
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _tokens(tokens: float, n_parameters: int) -> str:
    """`227M, 8.8 a parameter`."""
    ratio = tokens / n_parameters
    return f"{short_number(round(tokens))}, {ratio:,.{1 if ratio < 10 else 0}f} a parameter"


def print_cards(cfg: RunConfig) -> None:
    """The table, with what it rests on."""
    print(cards_table(cfg))
    print(
        f"Computed, not measured: {GPU_FRACTION:.0%} of a GPU's published dense peak is assumed, {CPU_FRACTION:.0%} of "
        "a processor's was measured on two cores.\nRows and memory are those of a formula. For this machine give the "
        "same command without --cards."
    )
