"""What reinforcement learning gave: how often a run's models are right as sampled, in one of the samples, greedily.

    python benchmarks/attempts.py runs/demo --models sft grpo --rl.prompts world:agent --rl.max_turns 3

A validation asks 64 held-out prompts greedily and is off by six points; this asks --rl.eval_prompts of them, each
--rl.samples times. Every model gets the same prompts and the same randomness.
"""

import sys
from pathlib import Path

import torch

from onesitting.checkpoint import load_model
from onesitting.cli_settings import parse_request, settings_parser
from onesitting.stages.attempts import AttemptMaker
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import detect, plan_device
from onesitting.train.distributed import Ranks


def main(argv: list[str]) -> None:
    """Print a row for each model."""
    parser = settings_parser("attempts", "Held-out attempts of a run's models", "RUN --models STAGE …")
    parser.add_argument("--models", nargs="+", required=True, metavar="STAGE", help="stages of the run")
    request = parse_request(parser, argv)
    cfg, run = request.cfg, Path(request.recipe)
    plan = plan_device(cfg.device, detect())
    torch.set_num_threads(plan.threads)
    print("| model | sampled | one of the samples | greedy |\n|---|---|---|---|")
    for stage in request.options.models:
        folder = run / stage / "model"
        maker = AttemptMaker(cfg, "held-out", Tokenizer.load(folder), plan, Ranks())
        model = load_model(folder, plan.torch_device)
        indices = range(cfg.rl.eval_prompts)
        repeated = [index for index in indices for _ in range(cfg.rl.samples)]
        prompts = [maker.prompts.get("val", index) for index in repeated]
        sampled = maker.attempt(model, prompts, range(len(prompts)), maker.settings, str(cfg.seed))
        right = torch.tensor(sampled.components["scorer"]).view(-1, cfg.rl.samples)
        greedy = torch.tensor(maker.greedy(model, "val", indices).components["scorer"])
        shares = (right.mean(), right.amax(dim=1).mean(), greedy.mean())
        print(f"| {stage} | {' | '.join(f'{100 * float(share):.1f} %' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
