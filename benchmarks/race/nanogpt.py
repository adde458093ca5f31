"""nanoGPT in a race: its GPT, its AdamW groups, the settings of its CPU example; run from a checkout of it.

Settings: README.md ("I only have a macbook" / its CPU command for Shakespeare) on config/train_shakespeare_char.py:
batches of 12 rows, learning rate 1e-3 falling by a cosine to 1e-4 over the whole run, 100 warm-up steps, AdamW
(0.9, 0.99), weight decay 0.1, clipping at 1, no dropout, no biases. Rows are random windows, as in its train.py.
Ours to choose: 6 layers of width 240 (6 heads), rows of 256 tokens, and that the cosine ends with the race's time.
"""

import math
import sys

import numpy as np
import torch
from peer import Run, Tokens, autocast, count, parse, parser


def main() -> None:
    """Train until the time is up."""
    made = parser(__doc__ or "")
    made.add_argument("--layers", type=int, default=6)
    made.add_argument("--heads", type=int, default=6)
    made.add_argument("--width", type=int, default=240)
    made.add_argument("--block-size", type=int, default=256)
    made.add_argument("--batch-size", type=int, default=12)
    made.add_argument("--learning-rate", type=float, default=1e-3)
    options = parse(made, on_gpu=("bf16", "compiled"))
    sys.path.insert(0, str(options.peer))
    from model import GPT, GPTConfig  # the peer's

    torch.manual_seed(options.seed)
    tokens, rng = Tokens.load(options), np.random.default_rng(options.seed)
    config = GPTConfig(
        block_size=options.block_size, vocab_size=options.vocab_size, n_layer=options.layers,
        n_head=options.heads, n_embd=options.width, dropout=0.0, bias=False,
    )  # fmt: skip
    model = GPT(config).to(options.device)
    optimizer = model.configure_optimizers(0.1, options.learning_rate, (0.9, 0.99), options.device)
    run = Run(options, tokens, count(model))
    forward = torch.compile(model) if options.compiled else model
    done = 0

    def step() -> None:
        nonlocal done
        rate = learning_rate(done, run.total_steps(done), options.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = tokens.windows(options.batch_size, options.block_size, rng)
        with autocast(options):
            _, loss = forward(x.to(options.device), y.to(options.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        run.n_tokens += x.numel()

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast(options):
            return model(x, y)[1].float()

    run.train(model, step, loss_of)


def learning_rate(step: int, total: int, peak: float) -> float:
    """A linear rise over 100 steps (a tenth of a short run), then a cosine to a tenth of the peak."""
    warmup = min(100, max(1, total // 10))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    part = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * part)))


if __name__ == "__main__":
    main()
