"""What a finished stage of a run is asked and measured: the question suite, preferences, held-out text.

A run that starts from a model measures it first, as it measures each stage after it: START is the name of that in the
run folder, and the report shows before and after side by side.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from onesitting.checkpoint import load_model
from onesitting.config import RunConfig, stage_config
from onesitting.data.tokens import Material, PreferenceFolder
from onesitting.data.world import World
from onesitting.data.world.suite import score
from onesitting.evaluation.bits_per_byte import bits_per_byte, chat_bits_per_byte
from onesitting.evaluation.preferences import compare_models
from onesitting.evaluation.suite import TaskResult, model_replies, run_suite, run_suite_thinking
from onesitting.model.transformer import Transformer
from onesitting.runlog import write_atomic
from onesitting.start import General
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.state import FitResult

START = "start"
REHEARSED_TOKENS, REHEARSALS_OF_100 = 17, 78.0
"""Written tokens of 64 replies by whose time a pass of the suite is foreseen, and how many times that a pass takes with
100 questions a task: 56 to 72 on two cores, 82 to 87 on one (docs/log.md)."""
HELD_OUT_FILE = "held_out.json"
GENERAL_SUITE_FILE = "general.json"


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Measures the models of one run, all in the same way."""

    cfg: RunConfig
    tokenizer: Tokenizer
    plan: DevicePlan

    def load(self, folder: Path) -> Transformer:
        """A model on the run's device."""
        return load_model(folder, self.plan.torch_device)

    def ask(self, path: Path, model_folder: Path, *, base: bool, ends_at: float | None) -> str:
        """Ask a stage's model the run's own questions, and write the results; the line about them comes back."""
        return write_suite(
            path, self.suite(self.load(model_folder), self.cfg.seed, base=base, ends_at=ends_at)
        )

    def suite(
        self, model: Transformer, seed: int, *, base: bool, ends_at: float | None = None
    ) -> dict[str, TaskResult]:
        """The questions of the world of a seed; base: in completion form, for a model that cannot answer yet.

        ends_at: by time.monotonic(), when to be done; questions for which there is no time are left out.
        """
        world, n = World(seed), self.cfg.evaluation.suite_items
        with torch.inference_mode(), self.plan.autocast():
            if base:
                return run_suite(model, self.tokenizer, world.base_suite(n), mode="base", ends_at=ends_at)
            return run_suite_thinking(model, self.tokenizer, world.suite(n), self.cfg.evaluation, ends_at)

    def pass_seconds(self, model: Transformer) -> float:
        """About what a pass of the suite takes here, from the beginnings of its longest replies."""
        settings, model = self.cfg.evaluation, model.eval()
        items = World(self.cfg.seed).suite(8)["stories"] * 8  # as many rows as a batch of the suite has
        score(items[0], items[0].baseline_reply)  # the first builds tables, and judging is timed later
        seconds: list[float] = []
        with torch.inference_mode(), self.plan.autocast():
            for _ in range(3):
                began = time.perf_counter()
                model_replies(model, self.tokenizer, items, mode="chat", max_tokens=REHEARSED_TOKENS)
                seconds.append(time.perf_counter() - began)
        model.train()
        n_passes = 2 if settings.thinking == "both" else 1
        return min(seconds) * REHEARSALS_OF_100 * settings.suite_items / 100 * n_passes

    def examine(
        self,
        name: str,
        folder: Path,
        model_folder: Path,
        *,
        own: Material,
        general: General | None,
        general_material: Material,
        has_suite: bool,
        asks: bool,
        say: Callable[[str], None],
    ) -> None:
        """Measure one model of a run that starts from a model; write what is found into folder.

        name: START, or the stage that the model comes from. The own suite of a stage is asked elsewhere, as for every
        run; the general one is asked before all stages and after the last. asks: whether there is time for them.
        """
        cfg, model, base = self.cfg, self.load(model_folder), self.cfg.stages[-1] == "pretrain"
        if has_suite and asks and name == START:
            say(f"{name} · asking the question suite")
            say(write_suite(folder / "evaluation.json", self.suite(model, cfg.seed, base=base)))
        is_own = has_suite and general is not None and general.seed == cfg.seed  # asked already
        asks = asks and cfg.evaluation.suite != "none" and name in (START, cfg.stages[-1])
        if general is not None and general.has_world and asks and not is_own:
            say(f"{name} · asking the questions of the world of {cfg.start_from}")
            results = self.suite(model, general.seed, base=base)
            say(write_suite(folder / GENERAL_SUITE_FILE, results))
        measured = self.held_out(model, own, general_material)
        write_json(folder / HELD_OUT_FILE, measured)
        say(f"{name} · {held_out_line(measured)}")

    def held_out(self, model: Transformer, own: Material, general: Material) -> dict[str, dict[str, float]]:
        """Measure -> bits per byte, bytes: held-out documents, and replies of held-out conversations.

        `documents` and `replies` are the run's own; `general_documents` and `general_replies` show what is forgotten.
        """
        found: dict[str, Any] = {}
        pieces, length = self.tokenizer.token_bytes, self.cfg.model.context_length
        n, device = self.cfg.evaluation.val_tokens, self.plan.torch_device
        with self.plan.autocast():
            for prefix, (text, chat) in (("", own), ("general_", general)):
                if text:
                    found[f"{prefix}documents"] = bits_per_byte(
                        model, text.val, pieces, context=length, max_tokens=n, device=device
                    )
                if chat:
                    found[f"{prefix}replies"] = chat_bits_per_byte(
                        model, chat.val, pieces, row_length=length, max_tokens=n, device=device
                    )
        return {name: {"value": m.bits_per_byte, "n_bytes": m.n_bytes} for name, m in found.items()}

    def preferences(self, name: str, before: Path, after: Path, held_out: PreferenceFolder) -> dict[str, Any]:
        """Held-out preferences before and after a stage."""
        length = stage_config(self.cfg, name).context_length or self.cfg.model.context_length
        models = self.load(before), self.load(after)
        with torch.inference_mode(), self.plan.autocast():
            return compare_models(
                self.cfg, *models, self.tokenizer, held_out.val, row_length=length,
                micro_rows=self.plan.micro_batch_rows(length),
            )  # fmt: skip


def write_suite(path: Path, results: dict[str, TaskResult]) -> str:
    """Write a suite's results; the line about them for the screen comes back."""
    write_json(path, {task: asdict(result) for task, result in results.items()})
    parts = [f"{task} {result.accuracy:.0%}" for task, result in results.items()]
    left_out = sum(result.left_out for result in results.values())
    return " · ".join([*parts, *([f"no time for {left_out} questions"] if left_out else [])])


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a result of the run, readable by people as well."""
    write_atomic(path, json.dumps(value, indent=1) + "\n")


def held_out_line(measured: dict[str, dict[str, float]]) -> str:
    """`documents 0.412 · general replies 0.250 bits per byte`."""
    parts = [f"{name.replace('_', ' ')} {m['value']:.3f}" for name, m in measured.items()]
    return f"{' · '.join(parts)} bits per byte"


def stage_summary(
    name: str,
    result: FitResult,
    n_parameters: int,
    flops: float,
    limit: float,
    processes: int,
    plan: DevicePlan,
) -> dict[str, Any]:
    """What summary.json holds; the report explains each key. flops: of a token; limit: FLOP/s of this machine."""
    return {
        "stage": name,
        **plan.summary(),
        **asdict(result),
        "bits_per_byte": result.evaluation.get("bits_per_byte"),
        "n_parameters": n_parameters,
        "flops_per_token": flops,
        "limit_flops_per_s": limit,
        "fraction_of_limit": result.tokens_per_s * flops / limit / processes if limit else None,
        "nonfinite_steps": result.skipped_steps,
        "processes": processes,
    }
