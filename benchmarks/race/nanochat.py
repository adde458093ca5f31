"""nanochat in a race: its GPT, its Muon + AdamW and the schedules of its scripts/base_train.py; from a checkout of it.

Settings: those of its runs/runcpu.sh (heads of 64, full windows, rows of 512 tokens, 16,384 tokens in a step) on the
defaults of base_train.py (rates, weight decay and their scaling with batch and horizon, 40 warm-up steps, warm-down
over the last 65 %, momentum and weight-decay schedules). Its optimizer compiles itself unless TORCHDYNAMO_DISABLE=1.
Rows are cuts of the whole text: its usual loader crops long documents, and advises against that where data is limited.
Ours to choose: depth 4 (width 256: 5 million parameters, and 2 million in value embeddings), and that the schedule
ends with the race's time.
"""

import math
import os
import sys

import numpy as np
import torch
from peer import Run, Tokens, count, parse, parser

REFERENCE_BATCH = 2**19
"""Tokens in a step at which its rates are meant."""


def main() -> None:
    """Train until the time is up."""
    made = parser(__doc__ or "")
    made.add_argument("--depth", type=int, default=4)
    made.add_argument("--aspect-ratio", type=int, default=64)
    made.add_argument("--head-dim", type=int, default=64)
    made.add_argument("--row-length", type=int, default=512)
    made.add_argument("--step-tokens", type=int, default=16_384)
    options = parse(made, on_gpu=("bf16", "compiled"))
    os.environ["NANOCHAT_DTYPE"] = "bfloat16" if options.bf16 else "float32"
    sys.path.insert(0, str(options.peer))
    from nanochat.gpt import GPT, GPTConfig  # the peer's; reads NANOCHAT_DTYPE

    def build(depth: int) -> GPT:
        width = -(-depth * options.aspect_ratio // options.head_dim) * options.head_dim
        heads = width // options.head_dim
        with torch.device("meta"):
            return GPT(
                GPTConfig(
                    sequence_len=options.row_length, vocab_size=options.vocab_size, n_layer=depth,
                    n_head=heads, n_kv_head=heads, n_embd=width, window_pattern="L",
                )
            )  # fmt: skip

    torch.manual_seed(options.seed)
    tokens, rng = Tokens.load(options), np.random.default_rng(options.seed)
    model = build(options.depth).to_empty(device=options.device)
    model.init_weights()
    rate_scale = math.sqrt(options.step_tokens / REFERENCE_BATCH)
    decay = 0.28 * rate_scale * scaling_parameters(build(12)) / scaling_parameters(model)
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * rate_scale, embedding_lr=0.3 * rate_scale, scalar_lr=0.5 * rate_scale,
        matrix_lr=0.02 * rate_scale, weight_decay=decay,
    )  # fmt: skip
    run = Run(options, tokens, count(model))
    forward = torch.compile(model, dynamic=False) if options.compiled else model
    rows = tokens.epoch_rows(options.row_length, rng)
    n_rows = max(1, options.step_tokens // options.row_length)
    done = 0

    def step() -> None:
        nonlocal done
        set_schedules(optimizer, done, run.total_steps(done), decay)
        ids = torch.stack([next(rows) for _ in range(n_rows)]).to(options.device)
        forward(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        done += 1
        run.n_tokens += n_rows * options.row_length

    run.train(model, step, lambda x, y: model(x, y))


def scaling_parameters(model: torch.nn.Module) -> int:
    """Of the blocks and the output matrix, as its scaling rules count them."""
    counts = model.num_scaling_params()
    return counts["transformer_matrices"] + counts["lm_head"]


def set_schedules(optimizer: torch.optim.Optimizer, step: int, total: int, decay: float) -> None:
    """Rates, Muon's momentum and its weight decay at a step of `total`."""
    down = max(1, round(0.65 * total))
    left = (total - step) / down
    factor = (step + 1) / 40 if step < 40 else 1.0 if step <= total - down else left + (1 - left) * 0.05
    momentum = 0.97
    if step < 400:
        momentum = 0.85 + 0.12 * step / 400
    elif step >= total - down:
        momentum = 0.90 + 0.07 * left
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
        if group["kind"] == "muon":
            group["momentum"] = momentum
            group["weight_decay"] = decay * 0.5 * (1.0 + math.cos(math.pi * step / total))


if __name__ == "__main__":
    main()
