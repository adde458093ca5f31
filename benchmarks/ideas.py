"""Ideas that may make a small model learn more from each token, tried one at a time against the recipes' settings.

    python benchmarks/ideas.py base "ngrams 0.7" --data prose.train.jsonl.zst --val prose.dev.jsonl.zst --seeds 0 1
    python benchmarks/ideas.py --list

Every run reads the same rows in the same order for the same number of tokens; an idea changes one thing. A line of JSON
a run goes to `--out`, where runs that are there already are left out. What won is part of the package, what lost is
here alone; docs/log.md has the numbers. Times are not compared: several runs may share a machine.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onesitting.config import RunConfig
from onesitting.data.ngrams import count_bigrams
from onesitting.data.prepare import prepare_documents
from onesitting.data.sources import sample_texts
from onesitting.data.tokens import TokenFolder
from onesitting.evaluation.bits_per_byte import bits_per_byte
from onesitting.model.transformer import Transformer
from onesitting.recipe import resolve
from onesitting.stages.bigrams import fit_bigrams
from onesitting.stages.pretrain import PretrainStage, count_ngrams
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.train import distributed
from onesitting.train.device import detect, plan_device
from onesitting.train.muon import orthogonalise, polar_coefficients, rate_scale
from onesitting.train.optim import MatrixGroup, MuonAdamW, build_optimizer, gradients
from onesitting.train.schedule import decay_start, fall, rise

SIZES: dict[str, dict[str, Any]] = {
    "2M": {
        "model.n_layers": 4,
        "model.d_model": 128,
        "model.n_heads": 2,
        "model.n_kv_heads": 1,
        "model.d_ff": 384,
    },
    "5M": {
        "model.n_layers": 5,
        "model.d_model": 256,
        "model.n_heads": 4,
        "model.n_kv_heads": 2,
        "model.d_ff": 640,
    },
    "26M": {
        "model.n_layers": 7,
        "model.d_model": 512,
        "model.n_heads": 8,
        "model.n_kv_heads": 2,
        "model.d_ff": 1408,
        "pretrain.step_tokens": 4096,
    },
}
COMMON: dict[str, Any] = {
    "model.context_length": 256, "model.tie_embeddings": False, "optim.embed_lr": 0.015, "optim.head_lr": 0.003,
    "pretrain.step_tokens": 2048, "pretrain.warmup_steps": 10, "pretrain.ngram_targets": 0,
}  # fmt: skip


@dataclass
class Trial:
    """One run in progress: what an idea may change."""

    cfg: RunConfig
    model: Transformer
    optimizer: MuonAdamW
    n_steps: int
    data: TokenFolder
    seed: int
    lr_factor: Callable[[int], float] = lambda step: 1.0
    row_length: Callable[[int], int] = lambda step: 256
    loss: Callable[[Any], Tensor] | None = None
    """In place of the next-token loss: the sum over a batch."""
    step: int = 0
    after_step: list[Callable[[int], None]] = field(default_factory=list)
    final_models: dict[str, Transformer] = field(default_factory=dict)
    """Further models to measure at the end, such as averages."""


@dataclass(frozen=True)
class Idea:
    """Settings that differ, and what no setting does."""

    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Trial], None] = lambda trial: None


# ---- ideas that need code ------------------------------------------------------------------------------------


def averages(trial: Trial) -> None:
    """Exponential averages of the weights (e.g. arXiv:2411.18704), measured beside the weights themselves."""
    for decay in (0.9, 0.97, 0.99):
        mean = copy.deepcopy(trial.model)

        def follow(step: int, mean: Transformer = mean, decay: float = decay) -> None:
            with torch.no_grad():
                here = min(decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(mean.parameters()), list(trial.model.parameters()), 1 - here)

        trial.after_step.append(follow)
        trial.final_models[f"average {decay}"] = mean


def momentum_warmup(trial: Trial) -> None:
    """Muon's momentum rises from 0.85 to 0.95 (modded-nanogpt)."""

    def set_momentum(step: int) -> None:
        share = min(1.0, step / (0.3 * trial.n_steps))
        trial.optimizer.cfg = replace(trial.cfg.optim, momentum=0.85 + 0.1 * share)

    trial.after_step.append(set_momentum)


def jordan(trial: Trial) -> None:
    """The constants of Jordan et al. 2024 for all five iterations."""
    trial.optimizer.coefficients = ((3.4445, -4.7750, 2.0315),) * 5


def iterations(n: int, smallest: float) -> Callable[[Trial], None]:
    """Other Newton-Schulz iterations than four for singular values from 0.003 on; each costs the same."""

    def change(trial: Trial) -> None:
        trial.optimizer.coefficients = polar_coefficients(n, smallest)

    return change


def nesterov(group: MatrixGroup, beta: float) -> list[Tensor]:
    """Gradients of a group, moved one step of momentum ahead, as Muon's own step does it."""
    grads = gradients(group.params)
    torch._foreach_lerp_(group.momentum, grads, 1 - beta)
    torch._foreach_lerp_(grads, group.momentum, beta)
    return grads


def custom_matrices(trial: Trial, shape_update: Callable[[str, Tensor], Tensor], decay: str = "") -> None:
    """Muon matrix by matrix, with `shape_update(name, update)` after the orthogonalisation."""
    optimizer = trial.optimizer

    def step(shape: tuple[int, int], group: MatrixGroup, lr: float) -> None:
        grads = nesterov(group, optimizer.cfg.momentum)
        stack = torch.stack([(g.mT if g.shape[0] > g.shape[1] else g).to(optimizer.dtype) for g in grads])
        updates = orthogonalise(stack, optimizer.coefficients)
        for name, p, grad, update in zip(group.names, group.params, grads, updates, strict=True):
            update = (update.mT if p.shape[0] > p.shape[1] else update).float()
            update = shape_update(name, update)
            if decay == "cautious":
                p.data -= lr * 0.1 * p.data * (update * p.data > 0)
            if decay == "mask":
                agrees = (update * grad > 0).float()
                update = update * agrees / agrees.mean().clamp_min(1e-3)
            p.data.add_(update, alpha=-lr * rate_scale(*p.shape))

    optimizer._step_matrices = step  # type: ignore[method-assign]


def normuon(trial: Trial) -> None:
    """NorMuon: each row of the update is divided by a running RMS of it (arXiv:2510.05491)."""
    second: dict[str, Tensor] = {}

    def normalise(name: str, update: Tensor) -> Tensor:
        square = update.square().mean(dim=1, keepdim=True)
        if name not in second:
            second[name] = torch.zeros_like(square)
        second[name].lerp_(square, 0.05)
        n = trial.optimizer.n_steps + 1
        scaled = update / (second[name] / (1 - 0.95**n)).sqrt().clamp_min(1e-8)
        return scaled * (update.norm() / scaled.norm().clamp_min(1e-8))

    custom_matrices(trial, normalise)


def cautious_decay(trial: Trial) -> None:
    """Weight decay of 0.1 only where the update shrinks the weight anyway (arXiv:2510.12402)."""
    custom_matrices(trial, lambda name, update: update, decay="cautious")


def cautious_update(trial: Trial) -> None:
    """Entries of the update that disagree in sign with the gradient are dropped (arXiv:2411.16085)."""
    custom_matrices(trial, lambda name, update: update, decay="mask")


def per_head(trial: Trial) -> None:
    """Queries and keys are orthogonalised head by head."""
    D = trial.cfg.model.head_dim
    optimizer = trial.optimizer

    def step(shape: tuple[int, int], group: MatrixGroup, lr: float) -> None:
        grads = nesterov(group, optimizer.cfg.momentum)
        for name, p, g in zip(group.names, group.params, grads, strict=True):
            split = "q_proj" in name or "k_proj" in name
            stack = (g.view(-1, D, g.shape[1]) if split else g[None]).to(optimizer.dtype)
            tall = stack.shape[1] > stack.shape[2]
            update = orthogonalise((stack.mT if tall else stack).clone(), optimizer.coefficients)
            update = (update.mT if tall else update).reshape(g.shape)
            p.data.add_(update.float(), alpha=-lr * rate_scale(*p.shape))

    optimizer._step_matrices = step  # type: ignore[method-assign]


def soft_cap(trial: Trial) -> None:
    """Logits are capped softly at 15 in training and evaluation (Gemma 2); no standard format has it for Qwen3."""
    model = trial.model

    def forward(
        tokens: Tensor, *, targets: Tensor | None = None, doc_ids: Any = None, positions: Any = None
    ) -> Tensor:
        x = model.hidden(tokens, doc_ids=doc_ids, positions=positions)
        logits = 15 * torch.tanh(model.logits(x) / 15)
        if targets is None:
            return logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    model.forward = forward  # type: ignore[method-assign]


def random_outputs(trial: Trial) -> None:
    """Output matrices of the blocks begin random, as GPT-2's do, not at zero."""
    generator = torch.Generator().manual_seed(trial.seed + 1)
    with torch.no_grad():
        for name, p in trial.model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                std = 0.5 / math.sqrt(p.shape[1] * 2 * trial.cfg.model.n_layers)
                p.add_(torch.randn(p.shape, generator=generator) * std)


def short_rows(trial: Trial) -> None:
    """Rows of 64 tokens for the first half."""
    trial.row_length = lambda step: 64 if step < trial.n_steps / 2 else 256


def cosine(trial: Trial) -> None:
    """A cosine to 0.02 over the whole run."""
    n = trial.n_steps
    trial.lr_factor = lambda step: min(
        (step + 1) / 10, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / n))
    )


def root_decay(trial: Trial) -> None:
    """1 - sqrt decay over the last half (arXiv:2405.18392)."""
    n, first = trial.n_steps, trial.n_steps // 2
    trial.lr_factor = lambda step: min(
        (step + 1) / 10, 1 - 0.98 * math.sqrt(max(0, step + 1 - first) / (n - first))
    )


class SoftLoss(torch.autograd.Function):
    """Cross-entropy against one-hot targets mixed with a teacher's; the loss that comes back is the one-hot one."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weight_of: float, teach: Any
    ) -> Tensor:
        """The one-hot loss; teach(probs, weight_of) takes the teacher's part off the probabilities."""
        logits = torch.nn.functional.linear(hidden, weight).float()
        probs = logits.softmax(1)
        loss = -probs.gather(1, targets[:, None]).log().sum()
        if weight_of > 0:
            teach(probs, weight_of)
        probs.scatter_add_(1, targets[:, None], torch.full((len(probs), 1), weight_of - 1.0))
        d_logits = probs.to(hidden.dtype)
        ctx.save_for_backward(d_logits @ weight, d_logits.T @ hidden)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of the mixed cross-entropy."""
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad, d_weight * grad, None, None, None


def teacher(trial: Trial, first: float, until: float, tokens: int = 48_000_000, order: int = 3) -> None:
    """Targets are mixed with a Kneser-Ney trigram's probabilities; its part falls from `first` to 0 at `until`."""
    began = time.perf_counter()
    ids = np.asarray(trial.data.train.tokens[:tokens]).astype(np.uint64)
    V, D = trial.model.cfg.vocab_size, 0.75
    triples = np.sort(ids[:-2] * np.uint64(V * V) + ids[1:-1] * np.uint64(V) + ids[2:])
    edges3 = np.flatnonzero(np.diff(triples, prepend=triples[:1] + np.uint64(1)))
    keys3, counts3 = triples[edges3], np.diff(edges3, append=len(triples))
    # bigram level: continuation counts of (b, c), how many a preceded them
    bc = (keys3 % np.uint64(V * V)).astype(np.int64)
    table = np.bincount(bc, minlength=V * V).reshape(V, V).astype(np.float32)
    total = table.sum(1, keepdims=True).clip(1)
    preceders = (table > 0).sum(0).astype(np.float32) + 0.1
    lower = preceders / preceders.sum()
    kinds = (table > 0).sum(1, keepdims=True)
    table = (table - D).clip(0) / total + (D * kinds / total) * lower
    table[(total[:, 0] <= 1) & (kinds[:, 0] == 0)] = lower
    p2 = torch.from_numpy(table).to(torch.bfloat16)
    after, n3 = (
        torch.from_numpy((keys3 % np.uint64(V)).astype(np.int64)),
        torch.from_numpy(counts3.astype(np.float32)),
    )
    context3 = torch.from_numpy((keys3 // np.uint64(V)).astype(np.int64))
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), n3.double().cumsum(0)])
    print(f"teacher: {time.perf_counter() - began:.1f} s, {len(keys3):,} triples", flush=True)
    model = trial.model

    def loss(batch: Any) -> Tensor:
        hidden = model.hidden(batch.tokens, doc_ids=batch.doc_ids, positions=batch.positions).flatten(0, 1)
        b = batch.tokens.flatten()
        a = torch.nn.functional.pad(batch.tokens[:, :-1], (1, 0), value=-1).flatten()
        keep = batch.targets.flatten() >= 0
        b, a, hidden, targets = b[keep], a[keep], hidden[keep], batch.targets.flatten()[keep]
        part = first * max(0.0, 1 - trial.step / ((until or 1) * trial.n_steps))
        if until == 2:  # with the learning rate
            part = first * min(1.0, 2 * (1 - trial.step / trial.n_steps))
        if until == 0:
            part = first

        def teach(probs: Tensor, part: float) -> None:
            context = torch.where(a >= 0, a * V + b, -1)
            begin = torch.searchsorted(context3, context)
            end = torch.searchsorted(context3, context, right=True)
            lengths = (end - begin) if order == 3 else torch.zeros_like(begin)
            totals = (cumulative[end] - cumulative[begin]).float().clamp_min(1)
            seen = lengths > 0
            left = torch.where(seen, D * lengths / totals, 1.0)
            probs.addcmul_(p2[b].float(), left[:, None], value=-part)
            row = torch.repeat_interleave(torch.arange(len(b)), lengths)
            place = begin[row] + torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]
            probs.index_put_((row, after[place]), -part * (n3[place] - D) / totals[row], accumulate=True)

        return SoftLoss.apply(hidden, model.output_weight.to(hidden.dtype), targets, part, teach)

    trial.loss = loss


IDEAS: dict[str, Idea] = {
    "base": Idea(),
    "averages": Idea(change=averages),
    "averages, no decay": Idea({"pretrain.decay_fraction": 0.02, "pretrain.final_lr": 0.5}, averages),
    "momentum 0.9": Idea({"optim.momentum": 0.9}),
    "momentum 0.97": Idea({"optim.momentum": 0.97}),
    "momentum warm-up": Idea(change=momentum_warmup),
    "jordan": Idea(change=jordan),
    "three iterations": Idea(change=iterations(3, 1e-2)),
    "four iterations from 0.001": Idea(change=iterations(4, 1e-3)),
    "five iterations": Idea(change=iterations(5, 1e-3)),
    "normuon": Idea(change=normuon),
    "cautious decay": Idea(change=cautious_decay),
    "cautious update": Idea(change=cautious_update),
    "per head": Idea(change=per_head),
    "weight decay 0.1": Idea({"optim.weight_decay": 0.1}),
    "weight decay 1": Idea({"optim.weight_decay": 1.0}),
    "matrix lr x0.7": Idea({"optim.matrix_lr": 0.014}),
    "matrix lr x1.5": Idea({"optim.matrix_lr": 0.03}),
    "embed lr x2": Idea({"optim.embed_lr": 0.03}),
    "embed lr x0.5": Idea({"optim.embed_lr": 0.0075}),
    "head lr x2": Idea({"optim.head_lr": 0.006}),
    "head lr x0.5": Idea({"optim.head_lr": 0.0015}),
    "scalar lr x3": Idea({"optim.scalar_lr": 0.03}),
    "adam beta1 0.8": Idea({"optim.adam_beta1": 0.8}),
    "adam beta2 0.98": Idea({"optim.adam_beta2": 0.98}),
    "no clip": Idea({"optim.clip_norm": 0.0}),
    "soft cap": Idea(change=soft_cap),
    "random outputs": Idea(change=random_outputs),
    "plain first weights": Idea({"model.initial_weights": "plain"}),
    "no qk norm": Idea({"model.qk_norm": False}),
    "short rows": Idea(change=short_rows),
    "isolate": Idea({"pretrain.isolate": "on"}),
    "cosine": Idea(change=cosine),
    "root decay": Idea(change=root_decay),
    "decay 0.8": Idea({"pretrain.decay_fraction": 0.8}),
    "decay 0.3": Idea({"pretrain.decay_fraction": 0.3}),
    "to 0.1": Idea({"pretrain.final_lr": 0.1}),
    "warm-up 40": Idea({"pretrain.warmup_steps": 40}),
    "tied": Idea({"model.tie_embeddings": True}),
    "all key heads": Idea({"model.n_kv_heads": -1}),
    "heads of 32": Idea({"model.head_dim": 32, "model.n_heads": -2, "model.n_kv_heads": -2}),
    "rope 1000": Idea({"model.rope_theta": 1000.0}),
    "steps of 1024": Idea({"pretrain.step_tokens": 1024}),
    "steps of 4096": Idea({"pretrain.step_tokens": 4096}),
    "trigram 0.5 to 1": Idea(change=lambda trial: teacher(trial, 0.5, 1.0)),
    "trigram 0.8 to 1": Idea(change=lambda trial: teacher(trial, 0.8, 1.0)),
    "trigram 0.8 to 0.6": Idea(change=lambda trial: teacher(trial, 0.8, 0.6)),
    "trigram 1 to 1": Idea(change=lambda trial: teacher(trial, 1.0, 1.0)),
    "ngrams 0.5": Idea({"pretrain.ngram_targets": 0.5}),
    "ngrams 0.7": Idea({"pretrain.ngram_targets": 0.7}),
    "ngrams 0.9": Idea({"pretrain.ngram_targets": 0.9}),
    "trigram 0.3 constant": Idea(change=lambda trial: teacher(trial, 0.3, 0)),
    "trigram 0.7 constant": Idea(change=lambda trial: teacher(trial, 0.7, 0)),
    "trigram 0.5 constant": Idea(change=lambda trial: teacher(trial, 0.5, 0)),
    "trigram 0.8 with the rate": Idea(change=lambda trial: teacher(trial, 0.8, 2)),
    "trigram 1 with the rate": Idea(change=lambda trial: teacher(trial, 1.0, 2)),
    "trigram 0.8 with the rate, 16M": Idea(change=lambda trial: teacher(trial, 0.8, 2, tokens=16_000_000)),
    "rates x1.33": Idea({"optim.embed_lr": 0.02, "optim.head_lr": 0.004}),
    "trigram 0": Idea(change=lambda trial: teacher(trial, 0.0, 0.6)),
    "bigram 0.5 to 1": Idea(change=lambda trial: teacher(trial, 0.5, 1.0, order=2)),
    "no pairs": Idea({"optim.embed_lr": 0.06, "optim.head_lr": 0.012, "pretrain.bigram_steps": 0}),
    "pairs 50": Idea({"pretrain.bigram_steps": 50}),
    "pairs 200": Idea({"pretrain.bigram_steps": 200}),
    "rates x0.4": Idea({"optim.embed_lr": 0.006, "optim.head_lr": 0.0012}),
    "rates x0.15": Idea({"optim.embed_lr": 0.00225, "optim.head_lr": 0.00045}),
}


def settings_of(size: str, idea: Idea, seed: int) -> RunConfig:
    """The whole configuration; negative head counts are multiples of the size's own."""
    own = dict(idea.settings)
    for name in ("model.n_kv_heads", "model.n_heads"):
        if own.get(name, 0) == -1:
            own[name] = SIZES[size]["model.n_heads"]
        elif own.get(name, 0) == -2:
            own[name] = 2 * SIZES[size][name]
    return resolve({**COMMON, **SIZES[size], **own, "seed": seed})


def train(
    name: str, size: str, seed: int, n_tokens: int, tokenizer: Tokenizer, data: TokenFolder, threads: int
) -> dict[str, Any]:
    """One run; bits per byte of the final weights, of averages, and the loss on the way."""
    idea = IDEAS[name]
    cfg = settings_of(size, idea, seed)
    plan, ranks = plan_device(replace(cfg.device, threads=threads), detect()), distributed.Ranks()
    plan.apply()
    model = Transformer(replace(cfg.model, vocab_size=tokenizer.vocab_size), seed=seed).train()
    ngrams = count_ngrams(cfg, data, None, tokenizer, plan)
    stage = PretrainStage(cfg, tokenizer, data, None, plan, ranks, ngrams=ngrams)
    n_steps = n_tokens // cfg.pretrain.step_tokens
    trial = Trial(cfg, model, build_optimizer(model, cfg.optim), n_steps, data, seed)
    first, settings = decay_start(n_steps, cfg.pretrain.decay_fraction), cfg.pretrain
    trial.lr_factor = lambda step: min(
        rise(step, settings.warmup_steps), fall(step, n_steps, first, 1.0, settings.final_lr)
    )
    if cfg.pretrain.bigram_steps and model.lm_head is not None:
        bigrams = count_bigrams([(data.train.tokens, 1.0)], tokenizer.vocab_size)
        fit_bigrams(model, bigrams, n_steps=cfg.pretrain.bigram_steps, seed=seed, plan=plan)
    idea.change(trial)
    began, losses = time.process_time(), []
    for step in range(n_steps):
        trial.step, stage.rate = step, trial.lr_factor(step)
        batches = stage.next_batches(model, step, trial.row_length(step))
        n_units = sum(batch.n_units for batch in batches)
        total = 0.0
        for batch in batches:
            with plan.autocast():
                loss = trial.loss(batch) if trial.loss else stage.loss_sum(model, batch)[0]
            (loss / n_units).backward()
            total += float(loss.detach()) / n_units
        trial.optimizer.clip(cfg.optim.clip_norm)
        trial.optimizer.step(trial.lr_factor(step))
        trial.optimizer.zero_grad()
        losses.append(total)
        for call in trial.after_step:
            call(step)
    seconds = time.process_time() - began
    found = {}
    for label, final in {"": model, **trial.final_models}.items():
        with torch.inference_mode(), plan.autocast():
            found[label] = bits_per_byte(
                final.eval(), data.val, tokenizer.token_bytes, context=256, max_tokens=65536, device="cpu"
            ).bits_per_byte
    n = len(losses)
    return {
        "idea": name, "size": size, "seed": seed, "tokens": n_tokens, "bits_per_byte": round(found.pop(""), 4),
        "others": {k: round(v, 4) for k, v in found.items()}, "cpu_s": round(seconds, 1),
        "losses": [round(float(np.mean(losses[n * i // 8 : n * (i + 1) // 8])), 3) for i in range(8)],
    }  # fmt: skip


def corpus(args: argparse.Namespace) -> tuple[Tokenizer, TokenFolder]:
    """Tokenizer and tokens, made once in the folder of the results."""
    folder = Path(args.out).parent / f"corpus-{args.vocab}"
    cfg = resolve({"corpus.val_data": (args.val,) if args.val else (), "tokenizer.vocab_size": args.vocab})
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        tokenizer = train_tokenizer(sample_texts((args.data,), cfg.corpus, 16.0, 0), args.vocab)
        tokenizer.save(folder / "tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return tokenizer, prepare_documents((args.data,), tokenizer, cfg.corpus, folder / "text", 0)


def main() -> None:
    """Run the ideas that are named and not yet in the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ideas", nargs="*", default=["base"])
    parser.add_argument("--list", action="store_true", help="names of the ideas")
    parser.add_argument("--data", default="", help="text to train on")
    parser.add_argument("--val", default="", help="text to measure on")
    parser.add_argument("--size", default="5M", choices=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=491_520)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="ideas/results.jsonl")
    args = parser.parse_args()
    if args.list:
        print("\n".join(IDEAS))
        return
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer, data = corpus(args)
    for name in args.ideas:
        for seed in args.seeds:
            done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
            key = {"idea": name, "size": args.size, "seed": seed, "tokens": args.tokens}
            if any(all(one[k] == v for k, v in key.items()) for one in done):
                continue
            record = train(name, args.size, seed, args.tokens, tokenizer, data, args.threads)
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
