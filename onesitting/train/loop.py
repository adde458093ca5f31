"""The only training loop of the project. Every stage runs through `fit()`.

A stage brings its batches, its loss and its evaluation (`Stage`); the loop brings accumulation, clipping, the
optimizer, the schedule, the time budget, checkpoints, metrics, signals and several processes. Losses are sums:
the loop divides once, by the number of units (tokens, pairs, sequences) over all micro-batches and processes.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onesitting.checkpoint import (
    discard_newer_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from onesitting.config import RunConfig
from onesitting.errors import UserError
from onesitting.model import moe
from onesitting.model.transformer import PLAIN, Transformer
from onesitting.runlog import StageFolder, append_jsonl, keep_jsonl
from onesitting.train import distributed, memory
from onesitting.train.compiler import added_breaks, failures, graph_breaks
from onesitting.train.device import DevicePlan, compile_model
from onesitting.train.display import Display
from onesitting.train.optim import MuonAdamW, build_optimizer
from onesitting.train.parts import StepParts
from onesitting.train.passes import make_passes
from onesitting.train.prefetch import Prefetch
from onesitting.train.signals import Interrupted, StopSignals
from onesitting.train.stage import Stage, TrainBatch
from onesitting.train.state import FitResult, FitSettings, LoopState, host_values, means, step_seed
from onesitting.train.tensorboard import add_scalars, open_tensorboard
from onesitting.train.usage import compile_seconds, peak_memory_bytes, reset_peak_memory

MAX_BAD_STEPS, MAX_ROLLBACKS = 3, 3
"""Non-finite steps in a row after which the loop goes back to a checkpoint at half the rate; times it goes back."""


def fit(
    stage: Stage,
    model: Transformer,
    settings: FitSettings,
    *,
    cfg: RunConfig,
    folder: StageFolder,
    plan: DevicePlan,
    ranks: distributed.Ranks,
    tokenizer: Any = None,
) -> FitResult:
    """Train `model` in place until the budget is reached; resume from the folder's newest checkpoint.

    Raises Interrupted after SIGINT or SIGTERM (the state is saved first) and UserError when the loss stays
    non-finite.
    """
    loop = Loop(stage, model, settings, cfg, folder, plan, ranks, tokenizer)
    loop.resume()
    if plan.compile and loop.uncompiled_because:
        loop.display.note(loop.uncompiled_because)
    with StopSignals() as signals, loop.display:
        while not loop.finished():
            record = loop.train_step()
            if loop.state.bad_steps >= MAX_BAD_STEPS:
                loop.roll_back()
                continue
            loop.log(record)
            is_better = loop.target.evaluation_due(loop.state.step) and loop.evaluate()
            stop = ranks.agree(signals.received) and loop.between_sets()
            if stop or loop.checkpoint_due(is_better):
                loop.save()
            if stop:
                step = loop.state.step
                raise Interrupted(f"{stage.name} was interrupted at step {step}; the state is saved")
        loop.save()
    return loop.result()


class Loop:
    """The moving parts of one `fit()`: each method is one line of the loop above."""

    def __init__(
        self,
        stage: Stage,
        model: Transformer,
        settings: FitSettings,
        cfg: RunConfig,
        folder: StageFolder,
        plan: DevicePlan,
        ranks: distributed.Ranks,
        tokenizer: Any,
    ) -> None:
        self.stage, self.model, self.settings, self.cfg = stage, model, settings, cfg
        self.folder, self.plan, self.ranks, self.tokenizer = folder, plan, ranks, tokenizer
        self.target, self.state = settings.target, LoopState(lr_scale=settings.lr_scale)
        plan.apply()
        self.breaks_before = graph_breaks() if plan.compile else {}
        reset_peak_memory(plan.torch_device)
        self.compiled_before_s = compile_seconds()  # by earlier stages
        self.uncompiled_because = compile_model(model, plan)
        # On a processor the update's products are most of it, and as fast without a compiler.
        compiler = (
            "inductor" if plan.compile and not self.uncompiled_because and plan.device != "cpu" else None
        )
        self.optimizer: MuonAdamW = build_optimizer(model, cfg.optim, compiler=compiler)
        self.scaler = plan.make_scaler()
        self.display = Display(stage.name, stage.unit, cfg.log, quiet=ranks.rank != 0)
        self.started_at = time.perf_counter()
        self.last_save_s, self.last_save_step = 0.0, 0
        self.prefetch = Prefetch(stage, model, plan.torch_device)
        self.step_times: deque[float] = deque(maxlen=max(1, stage.cycle))
        self.parts = StepParts(plan.torch_device)
        self.passes = make_passes(stage, model, plan, self.parts, self.display.note)
        self.tensorboard = open_tensorboard(folder) if cfg.log.tensorboard and ranks.rank == 0 else None

    # ---- the step -------------------------------------------------------------------------------------------

    def finished(self) -> bool:
        """Whether the step target is known and reached; the same on every rank."""
        return self.target.n_steps is not None and self.state.step >= self.target.n_steps

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its line of metrics. A non-finite step changes no weight."""
        state, began = self.state, time.perf_counter()
        row_length = self.target.row_length(state.step)
        with self.parts("data"):
            batches = self.prefetch.take(state.step, row_length)
        self.prefetch.start(state.step + 1, self.target.row_length(state.step + 1))
        sizes = [sum(b.n_units for b in batches), sum(b.n_tokens for b in batches)]
        n_units, n_tokens = self.ranks.sum_counts(sizes)
        # What a forward pass draws, such as dropout, is a function of (seed, step, rank) too.
        torch.manual_seed(step_seed(self.cfg.seed, state.step, self.ranks.rank))
        self.stage.rate = lr_factor = self.target.lr_factor(state.step)
        sums = self.accumulate(batches, n_units, n_tokens)
        distributed.all_reduce_gradients(self.model, self.ranks)
        sums = self.ranks.sum_tensors(sums)
        routing = moe.update_routers(self.model, self.ranks.sum_counts)
        with self.parts("optimizer"):
            if self.scaler is not None:
                self.scaler.unscale(self.optimizer)
            norm = self.optimizer.clip(self.cfg.optim.clip_norm)
            # The only wait for the device in a step, with nothing of the update asked for yet.
            totals = host_values({**sums, "norm": norm})
            norm, loss = totals.pop("norm"), totals["loss"] / n_units if n_units else 0.0
            finite = math.isfinite(loss) and math.isfinite(norm)
            applied = finite and n_units > 0
            if applied:
                self.optimizer.step(lr_factor * state.lr_scale)
            self.optimizer.zero_grad()
        self.after_step(finite, n_units, n_tokens, loss)
        seconds = time.perf_counter() - began
        self.tick(row_length, seconds)
        return {
            "step": state.step,
            "tokens": state.tokens,
            "elapsed_s": round(state.elapsed_s, 4),
            "progress": self.target.progress(state.step, state.elapsed_s),
            "loss": loss if finite else None,
            "lr_factor": lr_factor * state.lr_scale,
            "grad_norm": norm if finite else None,
            "row_length": row_length,
            "n_units": n_units,
            "step_s": round(seconds, 5),
            "tokens_per_s": round(n_tokens / seconds, 1),
            **({"skipped": True} if not applied else {}),
            **(means(totals, n_units) | routing),
        }

    def accumulate(self, batches: Sequence[TrainBatch], n_units: int, n_tokens: int) -> dict[str, Tensor]:
        """`accumulate_once`, again with smaller micro-batches wherever memory runs out on any process."""
        while True:
            sums = memory.unless_out_of_memory(lambda b=batches: self.accumulate_once(b, n_units, n_tokens))
            if sums is None and self.ranks.world > 1:
                memory.refuse_sharded(self.cfg.device.shard, self.state.step, self.stage.name)
            someone_failed = self.ranks.agree(sums is None)
            if sums is not None and not someone_failed:
                return sums
            place = self.state.step, self.target.row_length(self.state.step)
            self.passes.forget()
            memory.forget_attempt(self.model, self.plan.torch_device)
            self.prefetch.forget()
            failed = sums is None
            batches = memory.cut_further(
                self.stage, self.model, batches, place, self.ranks, has_failed=failed
            )
            self.display.note(memory.describe_cut(place[0], batches))
            torch.manual_seed(step_seed(self.cfg.seed, place[0], self.ranks.rank))

    def accumulate_once(
        self, batches: Sequence[TrainBatch], n_units: int, n_tokens: int
    ) -> dict[str, Tensor]:
        """Add the gradients of (sum of losses / n_units); returns the sums over this rank's micro-batches."""
        device = self.plan.torch_device
        sums: dict[str, Tensor] = {"loss": torch.zeros((), device=device)}
        scale = (self.scaler.scale if self.scaler else 1.0) / max(1, n_units)
        for number, batch in enumerate(batches, start=1):
            distributed.sum_in_backward(self.model, number == len(batches))
            for key, value in self.passes(batch, scale, n_units / max(1, n_tokens)).items():
                sums[key] = sums.get(key, torch.zeros((), device=device)) + value
        return sums

    def after_step(self, finite: bool, n_units: int, n_tokens: int, loss: float) -> None:
        """Count the step; react to one that could not be used."""
        state = self.state
        if self.scaler is not None:
            explained = self.scaler.update(not finite)
            state.skipped_steps += not finite and explained
            finite = finite or explained  # an overflow that a smaller scale cures is no failure
        if n_units == 0:
            self.display.note(f"step {state.step}: nothing to learn in this batch (every target is masked)")
        if not finite:
            state.bad_steps += 1
            state.skipped_steps += 1
            self.display.note(f"step {state.step}: loss or gradient is not finite; the step was skipped")
        else:
            state.bad_steps, state.last_loss = 0, loss
        state.step += 1
        state.tokens += n_tokens

    def tick(self, row_length: int, seconds: float) -> None:
        """Advance the clock and let the target learn how long steps take (the same on every rank)."""
        state = self.state
        # Rank 0's times for all: targets that disagree would end the ranks at different steps.
        state.elapsed_s, seconds = self.ranks.broadcast((time.perf_counter() - self.started_at, seconds))
        if not self.step_times:
            self.look_at_compiler()
        if state.first_step_s == 0.0:
            state.first_step_s = state.elapsed_s
        # The step that makes a set of data is the longest: the mean over a set is what a step costs.
        self.step_times.append(seconds)
        seconds = sum(self.step_times) / len(self.step_times)
        self.target.step_done(state.step, state.elapsed_s, row_length, seconds)

    def look_at_compiler(self) -> None:
        """After the first step: say what the compiler could not do; where it failed, go on uncompiled."""
        if not self.plan.compile or self.uncompiled_because:
            return
        for note in added_breaks(self.breaks_before):
            self.display.note(note)
        if failed := failures([*self.model.training_parts, self.optimizer.move_matrices]):
            self.uncompiled_because = f"torch.compile failed, training goes on without: {'; '.join(failed)}"
            self.display.note(self.uncompiled_because)
            self.model.training_parts = PLAIN

    def roll_back(self) -> None:
        """Go back to the last checkpoint with half the learning rate (after repeated non-finite steps)."""
        state = self.state
        found, _ = latest_checkpoint(self.folder.checkpoints)
        if found is None or state.rollbacks >= MAX_ROLLBACKS:
            raise UserError(
                f"{self.stage.name}: loss or gradient was not finite for {MAX_BAD_STEPS} steps in a row at step "
                f"{state.step}; lower optim.matrix_lr and optim.embed_lr, use device.dtype=float32, or check the data"
            )
        rollbacks, elapsed, lr_scale = state.rollbacks + 1, state.elapsed_s, state.lr_scale / 2
        self.load(found)
        self.state.rollbacks, self.state.elapsed_s, self.state.lr_scale = rollbacks, elapsed, lr_scale
        self.prefetch.forget()
        self.forget_later()
        self.display.note(f"went back to step {self.state.step}; learning rates are halved from here")

    # ---- evaluation, log, checkpoints --------------------------------------------------------------------------

    def evaluate(self) -> bool:
        """Validate and write samples, to metrics.jsonl and samples.jsonl; whether no validation before was as good."""
        began, state = time.perf_counter(), self.state
        self.model.eval()
        with torch.inference_mode(), self.plan.autocast():
            state.evaluation = self.stage.evaluate(self.model)
            # A sharded model speaks only if all processes take part.
            speaks = self.ranks.rank == 0 or self.cfg.device.shard == "fsdp"
            texts = self.stage.samples(self.model, state.step) if speaks else []
        self.model.train()
        value = self.ranks.broadcast(state.evaluation.get("bits_per_byte", math.inf))
        is_better = value < state.best_value
        if is_better:
            state.best_value, state.best_step = value, state.step
        if self.ranks.rank == 0:
            spent = {"evaluation_s": round(time.perf_counter() - began, 4)}
            if compile_s := compile_seconds() - self.compiled_before_s:
                spent["compile_s"] = round(compile_s, 4)
            self.write({"step": state.step, "tokens": state.tokens, "evaluation": state.evaluation, **spent})
            for text in texts:
                append_jsonl(self.folder.samples_path, {"step": state.step, **text})
            self.display.evaluation(state.step, state.evaluation, texts)
        self.pause("evaluation", began)
        return is_better

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics a step, from rank 0."""
        if self.ranks.rank != 0:
            return
        self.write(record)
        limit = self.settings.limit_flops_per_s
        used = record["tokens_per_s"] * self.settings.flops_per_token
        fraction = used / limit / self.ranks.world if limit else None
        self.display.step(record, self.target, fraction)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl, and its numbers to TensorBoard where that is on."""
        append_jsonl(self.folder.metrics_path, record)
        if self.tensorboard is not None:
            add_scalars(self.tensorboard, self.stage.name, record)

    def between_sets(self) -> bool:
        """Whether the next step begins a new set of data, so that nothing but the step is needed to go on."""
        return self.stage.cycle == 0 or self.state.step % self.stage.cycle == 0

    def checkpoint_due(self, is_better: bool) -> bool:
        """By seconds, by steps or for the best validation so far, decided on rank 0; at the end of a set."""
        settings, state = self.cfg.checkpoint, self.state
        every = settings.every_steps
        by_step = every > 0 and state.step // every > self.last_save_step // every
        by_time = settings.every_s > 0 and state.elapsed_s - self.last_save_s >= settings.every_s
        is_best = is_better and (every > 0 or settings.every_s > 0)
        return self.ranks.broadcast(self.between_sets() and (by_step or by_time or is_best))

    def save(self) -> None:
        """Write a complete checkpoint; atomic, the same for any number of processes."""
        began, state = time.perf_counter(), self.state
        state.target = self.target.state_dict()
        state.scaler = self.scaler.state_dict() if self.scaler else {}
        path = self.folder.checkpoints / f"{state.step:06d}"
        model, tensors = distributed.unsharded(self.model), self.optimizer.state_tensors()
        if self.ranks.rank == 0 and not path.exists():
            tensors |= moe.router_state(self.model)
            save_checkpoint(path, model, self.tokenizer, tensors=tensors, state={"loop": asdict(state)})
            best = f"{state.best_step:06d}" if state.best_step >= 0 else None
            prune_checkpoints(self.folder.checkpoints, self.cfg.checkpoint.keep_last, best)
        self.ranks.barrier()
        self.last_save_s, self.last_save_step = state.elapsed_s, state.step
        self.pause("save", began)

    def pause(self, kind: str, began: float) -> None:
        """Tell the target how long a validation or a save took, the same on every rank."""
        self.target.pause(kind, self.ranks.broadcast(time.perf_counter() - began))
        self.state.elapsed_s = self.ranks.broadcast(time.perf_counter() - self.started_at)

    def resume(self) -> None:
        """Continue from the newest valid checkpoint, if there is one."""
        found, skipped = latest_checkpoint(self.folder.checkpoints)
        for message in skipped:
            self.display.note(f"skipped a checkpoint: {message}")
        if found is not None:
            self.load(found)
            self.display.note(f"{self.stage.name}: going on from step {self.state.step}")
        self.forget_later()
        self.started_at = time.perf_counter() - self.state.elapsed_s
        self.last_save_s, self.last_save_step = self.state.elapsed_s, self.state.step

    def forget_later(self) -> None:
        """Drop lines and checkpoints of steps after the current one: they are run, and written, again."""
        self.ranks.barrier()  # another process may still be reading them
        if self.ranks.rank == 0:
            discard_newer_checkpoints(self.folder.checkpoints, self.state.step)
            for path in (self.folder.metrics_path, self.folder.samples_path):
                keep_jsonl(path, lambda record: record.get("step", 0) <= self.state.step)

    def load(self, path: Path) -> None:
        """Take weights, optimizer, clock and target from a checkpoint."""
        whole = distributed.unsharded(self.model)
        tensors, state = load_checkpoint(path, whole)
        distributed.load_unsharded(self.model, whole)
        moe.load_router_state(self.model, tensors)
        self.optimizer.load_state_tensors(tensors)
        self.state = LoopState(**state["loop"])
        self.target.load_state_dict(self.state.target)
        if self.scaler and self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)

    def result(self) -> FitResult:
        """How the stage went; ends the thread that reads ahead."""
        state = self.state
        self.prefetch.close()
        failed = self.uncompiled_because or failures(
            [*self.model.training_parts, self.optimizer.move_matrices]
        )
        training_s = max(1e-9, state.elapsed_s - state.first_step_s)
        return FitResult(
            steps=state.step,
            tokens=state.tokens,
            seconds=state.elapsed_s,
            seconds_setup=state.first_step_s,
            seconds_compile=compile_seconds() - self.compiled_before_s,
            tokens_per_s=state.tokens / training_s,
            final_loss=state.last_loss,
            skipped_steps=state.skipped_steps,
            peak_memory_bytes=peak_memory_bytes(self.plan.torch_device),
            compiled=self.plan.compile and not failed,
            evaluation=state.evaluation,
        )
