"""One dial: from the number of parameters, every other setting of a model and of its training.

    onesitting run demo --size 5M           # shape, vocabulary and batch follow
    onesitting run auto --budget 30m        # the size too: what learns most in that time on this machine

The family has one free number, the width. Depth, vocabulary, MLP and batch are functions of it, read off the sizes
that were tuned (docs/dial.md). How good a size gets in how many tokens is a fit to small runs.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onesitting.errors import UserError

HEAD = 64
"""Width of an attention head; widths of models are multiples of it."""
WIDEST = 2048
NOMINAL_WORK = 3e13
"""What `auto` takes a budget to hold where no machine was asked: some minutes of a laptop's two cores."""

# The fit: bits per byte = FLOOR + OF_SIZE / parameters^SIZE_POWER + OF_TOKENS / tokens^TOKENS_POWER.
FLOOR, OF_SIZE, SIZE_POWER, OF_TOKENS, TOKENS_POWER = 1.4, 71.2, 0.40, 11.66, 0.25
SLOW_WIDTH = 110
"""At this width a processor does half of the operations a second that it does at large widths."""

STEP_OF_ROOT, STEP_OF_WIDTH = 3.0, 8
"""Tokens in a step that suit a budget: so many times the root of its tokens; but Muon's products, which grow with the
width, should stay a small part of a step."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgbKMGB]?)")
_MULTIPLE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


@dataclass(frozen=True)
class Shape:
    """A model of the family."""

    width: int

    @property
    def layers(self) -> int:
        """Two, which looking up takes, and a further one for each 128 of width from 256 on: 5 at 512, 7 at 768."""
        return max(2, 1 + self.width // 128)

    @property
    def vocabulary(self) -> int:
        """32 entries for each unit of width: what tables know is counted, not learned (stages/bigrams.py)."""
        return max(2048, 32 * self.width)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // HEAD

    @property
    def kv_heads(self) -> int:
        """Key/value heads: a half of few heads, at most a third of many."""
        most = max(1, self.heads // (2 if self.heads <= 4 else 3))
        return max(n for n in range(1, most + 1) if self.heads % n == 0)

    @property
    def hidden(self) -> int:
        """Width of the MLP: 8/3 of the model's, in steps of 64."""
        return round(self.width * 8 / 3 / HEAD) * HEAD

    @property
    def context(self) -> int:
        """Tokens."""
        return 512 if self.width <= 512 else 1024

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the embedding and the norms."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * HEAD
        return self.vocabulary * self.width + self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def parameters(self) -> int:
        """All of them."""
        norms = self.layers * (2 * self.width + 2 * HEAD) + self.width
        return self.multiplied + self.vocabulary * self.width + norms

    @property
    def flops(self) -> float:
        """Floating-point operations of training on one token, as `model.flops.flops_per_token` counts them."""
        return 6.0 * self.multiplied + 6.0 * self.layers * self.width * self.context

    @property
    def work(self) -> float:
        """Operations on one token, with those that narrow models lose: what its time is proportional to."""
        return self.flops * (1 + SLOW_WIDTH / self.width)

    @property
    def step_tokens(self) -> int:
        """A power of two near 2048 · (parameters / 1.2M)^0.6: 2,048 at 1.2M, 4,096 at 6M, 32,768 at 94M."""
        return 2 ** round(11 + 0.6 * math.log2(max(1.0, self.parameters / 1.2e6)))

    def settings(self) -> dict[str, Any]:
        """The settings that follow."""
        return {
            "tokenizer.vocab_size": self.vocabulary,
            "model.n_layers": self.layers,
            "model.d_model": self.width,
            "model.n_heads": self.heads,
            "model.n_kv_heads": self.kv_heads,
            "model.head_dim": HEAD,
            "model.d_ff": self.hidden,
            "model.context_length": self.context,
            "model.tie_embeddings": False,
            "pretrain.step_tokens": self.step_tokens,
            "pretrain.smaller_steps": True,
            "pretrain.warmup_steps": round(20 * max(1.0, self.parameters / 1.2e6) ** 0.35),
            "sft.step_tokens": self.step_tokens,
            "sft.smaller_steps": True,
        }


def family() -> Iterable[Shape]:
    """All shapes, the smallest first."""
    return (Shape(width) for width in range(HEAD, WIDEST + 1, HEAD))


def parse_size(text: str) -> Shape:
    """The shape whose number of parameters is nearest, as a ratio, to `5M` or `5000000`; `auto`: NOMINAL_WORK's.

    Raises UserError for any other text.
    """
    if text == "auto":
        return best_shape(NOMINAL_WORK)
    match = _SIZE.fullmatch(text.strip())
    wanted = float(match[1]) * _MULTIPLE[match[2].lower()] if match else 0.0
    if wanted <= 0:
        raise UserError(f"size = {text!r}: write a number of parameters such as 5M, or auto")
    return min(family(), key=lambda shape: abs(math.log(shape.parameters / wanted)))


def size_text(shape: Shape) -> str:
    """`5.8M`, which `parse_size` reads as the same shape."""
    return f"{shape.parameters / 1e6:.4g}M"


def expected_bits(shape: Shape, tokens: float) -> float:
    """Bits per byte of prose after so many tokens of one schedule, by the fit of docs/dial.md.

    The form is that of Hoffmann et al. 2022, arXiv:2203.15556. Other text has other numbers; only the balance between
    the two terms is used here.
    """
    return FLOOR + OF_SIZE / shape.parameters**SIZE_POWER + OF_TOKENS / tokens**TOKENS_POWER


def best_shape(work: float, most_tokens: float = math.inf) -> Shape:
    """The shape of which `expected_bits` is least after so much `work`.

    most_tokens: more than these (several passes over the text) teach nothing, and more parameters than these would
    learn the text by heart; where every shape has more, the smallest is taken.
    """
    shapes = list(family())
    fitting = [shape for shape in shapes if shape.parameters <= most_tokens] or shapes[:1]
    return min(fitting, key=lambda shape: expected_bits(shape, min(most_tokens, work / shape.work)))


def fitting_step(tokens: float, width: int, row_length: int, most: int) -> int:
    """Tokens in a step, at most `most`, that suit training on so many tokens: a power of two of rows.

    A small step says less of the gradient, many of them go further; how large is best grows with the tokens there
    are (Zhang et al. 2024, arXiv:2410.21676). docs/budget.md has what was measured.
    """
    wanted = max(STEP_OF_WIDTH * width, STEP_OF_ROOT * math.sqrt(tokens))
    rows = 2 ** max(0, round(math.log2(wanted / row_length)))
    return min(rows * row_length, most)
