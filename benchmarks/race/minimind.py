"""minimind in a race: its model, and the settings of its trainer/train_pretrain.py; run from a checkout of it.

Settings: batches of 32 rows of 340 tokens, AdamW with PyTorch's defaults at 5e-4, cosine to a tenth without warm-up,
clipping at 1, gradients of 8 batches accumulated (`--accumulation 1` is kinder to a processor: 8 times the updates).
Its data set truncates each text to a row and pads it; here rows are cuts of the whole text, in its favour.
Ours to choose: 8 layers of width 224, and that the cosine ends with the race's time.
"""

import math
import sys

import numpy as np
import torch
from peer import Run, Tokens, autocast, count, mean_cross_entropy, parse, parser


def main() -> None:
    """Train until the time is up."""
    made = parser(__doc__ or "")
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--width", type=int, default=224)
    made.add_argument("--row-length", type=int, default=340)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--accumulation", type=int, default=8)
    made.add_argument("--learning-rate", type=float, default=5e-4)
    options = parse(made, on_gpu=("bf16",))
    sys.path.insert(0, str(options.peer))
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM  # the peer's

    torch.manual_seed(options.seed)
    tokens, rng = Tokens.load(options), np.random.default_rng(options.seed)
    config = MiniMindConfig(
        hidden_size=options.width, num_hidden_layers=options.layers, vocab_size=options.vocab_size
    )
    model = MiniMindForCausalLM(config).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    run = Run(options, tokens, count(model))
    forward = torch.compile(model) if options.compiled else model
    rows = tokens.epoch_rows(options.row_length - 1, rng)
    batches = updates = 0

    def step() -> None:
        """One batch; an update after `accumulation` of them, as in its loop."""
        nonlocal batches, updates
        batches += 1
        part = min(1.0, batches / run.total_steps(batches))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (0.1 + 0.45 * (1.0 + math.cos(math.pi * part)))
        ids = torch.stack([next(rows) for _ in range(options.batch_size)]).to(options.device)
        with autocast(options):
            found = forward(ids, labels=ids)
            loss = (found.loss + found.aux_loss) / options.accumulation
        loss.backward()
        run.n_tokens += ids.numel()
        if batches % options.accumulation == 0:
            updates += 1
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast(options):
            logits = model(x).logits
        return mean_cross_entropy(logits, y)

    run.train(model, step, loss_of)


if __name__ == "__main__":
    main()
