"""A run from text to report: tokenizer -> data -> pretrain -> sft -> evaluation -> report card.

Each phase leaves its result in the run folder and is skipped when it is there already, so the same command goes on
where it stopped. All phases share one time budget (`Clock`); what each really took is in timing.json.
"""

import json
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from onesitting.checkpoint import find_model_folder, latest_checkpoint, load_model, save_adapter, save_model
from onesitting.checks import check_config
from onesitting.clock import Clock
from onesitting.config import RunConfig, stage_config
from onesitting.data.ngrams import N_PAIRS, count_bigrams
from onesitting.data.prepare import prepare_conversations, prepare_documents, prepare_preferences
from onesitting.data.text_sample import text_sample
from onesitting.data.tokens import ChatFolder, Material, PreferenceFolder, TokenFolder
from onesitting.errors import UserError
from onesitting.evaluation.report import print_report, write_report
from onesitting.model.flops import count_active_parameters, count_parameters, flops_per_token
from onesitting.model.lora import adapter_in_use, add_adapter, merge, n_adapter_parameters
from onesitting.model.transformer import Transformer
from onesitting.rewards import check_rl
from onesitting.run_evaluation import HELD_OUT_FILE, START, Examiner, stage_summary, write_json
from onesitting.run_settings import (
    check_adapters,
    check_enough,
    claim,
    has_suite,
    own_budget,
    remarks,
    stage_tokens,
    total_seconds,
    with_stage,
)
from onesitting.runlog import RunFolder, StageFolder, write_atomic
from onesitting.stage_time import questions_end_at, stage_seconds
from onesitting.stages.bigrams import fit_bigrams
from onesitting.stages.make import PipelineStage, StageInputs, make_stage, prepare_general
from onesitting.stages.ppo import add_value_head
from onesitting.stages.pretrain import counting, explicit_counting, text_sources
from onesitting.stages.reward import with_score_head
from onesitting.start import general_data, start_folder, stretched_as, with_start_model
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.train import distributed
from onesitting.train.budget import StepTarget
from onesitting.train.device import DevicePlan, detect, plan_device
from onesitting.train.limit import measure_matrix_limit
from onesitting.train.loop import FitSettings, fit
from onesitting.train.probe import measured_plan
from onesitting.train.signals import Interrupted

BASE_SUITE_FROM_S = 150
"""Smallest budget, in seconds, in which the suite is also asked before the last stage."""
COMPILED = ("pretrain", "sft")
"""Stages whose step is one call of the model on rows of one length, which is what a compiler makes faster."""

T = TypeVar("T")


def run_pipeline(cfg: RunConfig, recipe: str, only: tuple[str, ...] = ()) -> Path:
    """Do every phase that is not done yet; the run's folder comes back.

    only: phases of `tokenizer`, `prepare`, `evaluate`, or the name of a stage; () is all of them and the report.
    Raises UserError for a user's mistake and KeyboardInterrupt once the state of an interrupted stage is saved.
    """
    cfg = with_start_model(with_stage(cfg, only))
    check_config(cfg)
    check_rl(cfg)
    ranks = distributed.init(cfg.device)
    try:
        run = Run(cfg, only, ranks)
        run.prepare()
        run.examine_start()
        for stage in run.stages:
            run.train(stage)
        if run.reports:
            run.report()
        return run.folder.path
    except Interrupted as interrupted:
        command = f"onesitting {only[0] if only else 'run'} {shlex.quote(str(Path(cfg.out) / cfg.name))}"
        Console(quiet=ranks.rank != 0).print(f"\n{interrupted}. Go on with: {command}", highlight=False)
        raise KeyboardInterrupt from None
    finally:
        distributed.shutdown(ranks)


class Run:
    """One sitting's work on a run folder."""

    def __init__(self, cfg: RunConfig, only: tuple[str, ...], ranks: distributed.Ranks) -> None:
        self.cfg, self.only, self.ranks = cfg, only, ranks
        self.folder = RunFolder(Path(cfg.out).expanduser() / cfg.name)
        self.console = Console(highlight=False, quiet=ranks.rank != 0)
        self.stages = [s for s in cfg.stages if not only or s in only or "evaluate" in only]
        check_adapters(cfg, self.stages, self.folder)
        if ranks.rank == 0:
            claim(self.folder, cfg)
        ranks.barrier()
        self.plan = plan_device(cfg.device, detect(), ranks)
        self.reports = not only or "evaluate" in only or own_budget(cfg, only[0]) is not None
        again = "evaluate" in only and (self.folder.stage(cfg.stages[-1]).path / "evaluation.json").is_file()
        # Questions that are asked again are no part of the run's time.
        writes = ranks.rank == 0 and not again
        self.clock = Clock(self.folder.path / "timing.json", total_seconds(cfg), writes=writes)
        self.start_s = time.process_time()
        self.tokenizer: Tokenizer
        self.data: TokenFolder | None = None
        self.chat: ChatFolder | None = None
        self.preferences: PreferenceFolder | None = None
        self.general, self.general_material = general_data(cfg), Material()

    def say(self, message: str) -> None:
        """A line on the screen of the first process."""
        self.console.print(message, soft_wrap=True)

    # ---- tokenizer and data ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Tokenizer and token files; rank 0 makes them, all ranks open them."""
        cfg, out = self.cfg, self.folder.data
        self.say(f"[bold]{cfg.name}[/bold] · {self.plan.describe()} · budget {cfg.budget}")
        self.tokenizer = self.first_rank_makes("tokenizer", self.make_tokenizer)
        if self.only == ("tokenizer",):
            return
        needed = cfg.stages if not self.only or "prepare" in self.only else self.stages
        if "pretrain" in needed:
            self.data = self.first_rank_makes(
                "prepare",
                lambda: prepare_documents(cfg.data, self.tokenizer, cfg.corpus, out / "text", cfg.seed),
            )
            check_enough(cfg, self.data.train.n_tokens)
        if {"sft", "distill"} & set(needed) or ("pretrain" in needed and cfg.pretrain.chat_fraction > 0):
            self.chat = self.first_rank_makes(
                "prepare",
                lambda: prepare_conversations(cfg.chat, self.tokenizer, cfg.corpus, out / "chat", cfg.seed),
            )
        if {"dpo", "reward"} & set(needed):
            place = out / "preferences"
            self.preferences = self.first_rank_makes(
                "prepare",
                lambda: prepare_preferences(cfg.preferences, self.tokenizer, cfg.corpus, place, cfg.seed),
            )
        if {"pretrain", "sft"} & set(needed):
            self.general_material = self.first_rank_makes(
                "prepare", lambda: prepare_general(self.general, self.tokenizer, out / "general")
            )

    def first_rank_makes(self, phase: str, make: Callable[[], T]) -> T:
        """Run `make` on rank 0, then on the others, which find its result on disk."""
        with self.clock.phase(phase):
            made = make() if self.ranks.rank == 0 else None
            self.ranks.barrier()
            return make() if made is None else made

    def make_tokenizer(self) -> Tokenizer:
        """The run's tokenizer: the one that is there, a given one, or one trained on a sample of the data."""
        cfg, folder = self.cfg, self.folder.tokenizer
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder)
        if cfg.tokenizer.path:
            tokenizer = Tokenizer.load(Path(cfg.tokenizer.path).expanduser())
        elif "distill" in cfg.stages:  # a student's words must be its teacher's
            tokenizer = Tokenizer.load(find_model_folder(Path(cfg.distill.teacher).expanduser()))
        else:
            tokenizer = train_tokenizer(text_sample(cfg), cfg.tokenizer.vocab_size)
        tokenizer.save(folder)
        self.say(f"tokenizer · {tokenizer.vocab_size} entries")
        return tokenizer

    # ---- training --------------------------------------------------------------------------------------------

    def train(self, name: str) -> None:
        """One stage: train, save the final model, run the question suite. What is done already is skipped."""
        folder = self.folder.stage(name)
        if (folder.path / "summary.json").is_file():
            self.say(f"{name} · done before, {folder.model}")
        elif "evaluate" in self.only:
            raise UserError(
                f"{folder.path} holds no finished model; train it with `onesitting {name} …` first"
            )
        else:
            self.fit(name, folder)
        if self.reports:
            self.evaluate(name, folder)
            self.examine(name, folder, folder.model)
            if name == "dpo":
                self.compare(name, folder)

    def fit(self, name: str, folder: StageFolder) -> None:
        """Train one stage through the loop; write its model and summary.json."""
        settings = stage_config(self.cfg, name)
        model = self.initial_model(name)
        plan = self.plan.for_model(model.cfg)
        if name not in COMPILED:
            plan = replace(plan, compile=False, compile_reason=f"rows of {name} differ in length")
        elif not settings.micro_batch_rows and self.cfg.device.shard != "fsdp":
            plan = measured_plan(model, plan, settings.context_length or model.cfg.context_length)
        n_adapter = n_adapter_parameters(model)
        for remark in remarks(self.cfg, name, model.cfg.n_experts):
            self.say(remark)
        with self.clock.phase("n-grams" if name == "pretrain" else "prepare"):
            stage = self.make_stage(name, plan)
        limit = measure_matrix_limit(plan, model.cfg)
        short = self.cfg.pretrain.short_context if name == "pretrain" else 0
        rehearse = partial(self.examiner.pass_seconds, model)
        seconds = stage_seconds(self.cfg, name, self.clock, rehearse, start_s=self.start_s, say=self.say)
        target = StepTarget(
            settings,
            seconds=self.ranks.broadcast(seconds),
            tokens=getattr(settings, "steps", 0) * stage.row_length * stage.n_rows
            or stage_tokens(self.cfg, name),
            max_steps=stage.max_steps(),
            row_length=stage.row_length,
            n_rows=stage.n_rows,
            evaluate_every=self.cfg.evaluation.every_fraction,
            evaluation_tokens=self.cfg.evaluation.val_tokens if name in ("pretrain", "sft") else 0,
            save_every_s=self.cfg.checkpoint.every_s,
            saves_best=(self.cfg.checkpoint.every_s or self.cfg.checkpoint.every_steps) > 0,
            step_cost={n: flops_per_token(model.cfg, n, n_adapter) for n in {stage.row_length, short} if n},
        )
        flops = flops_per_token(model.cfg, stage.row_length, n_adapter)
        n_parameters = count_parameters(model.cfg)
        trained = f" and {n_adapter:,} trained in an adapter" if n_adapter else ""
        if model.cfg.n_experts:
            trained = f" ({count_active_parameters(model.cfg):,} work on a token){trained}"
        self.say(
            f"{name} · {n_parameters:,} parameters{trained} · {target.describe()} · limit {limit / 1e9:,.0f} GFLOP/s"
        )
        fit_settings = FitSettings(
            target=target, lr_scale=settings.lr_scale, flops_per_token=flops, limit_flops_per_s=limit
        )
        result = fit(
            stage, model, fit_settings, cfg=self.cfg, folder=folder, plan=plan, ranks=self.ranks,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        self.clock.set(name, result.seconds)
        with self.clock.phase(name):
            whole = distributed.unsharded(model)
            if self.ranks.rank == 0:
                self.save_result(folder, whole)
                summary = stage_summary(name, result, n_parameters, flops, limit, self.ranks.world, self.plan)
                summary |= {
                    "n_adapter_parameters": n_adapter,
                    "lora": asdict(self.cfg.lora) if n_adapter else None,
                }
                summary["repeat_with"] = target.explicit() | explicit_counting(self.cfg, name)
                write_atomic(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
            self.ranks.barrier()

    def save_result(self, folder: StageFolder, model: Transformer) -> None:
        """The stage's final model; one with an adapter is merged, and the adapter kept beside it."""
        adapter = adapter_in_use(model)
        model.value = None  # PPO's value head was for training alone
        if adapter is not None:
            save_adapter(folder.adapter, model, adapter, self.tokenizer)
            merge(model, adapter)
        save_model(folder.model, model, self.tokenizer)

    def initial_model(self, name: str) -> Transformer:
        """The model of the stage before, that of `start_from`, or random weights for pretraining and distillation."""
        cfg = self.cfg
        source = self.source(name)
        if source is not None:
            self.say(f"{name} · starting from {source}")
            model = load_model(source)
            model.cfg = stretched_as(model.cfg, cfg.model)
        elif name in ("pretrain", "distill"):
            vocab_size = cfg.model.vocab_size or self.tokenizer.vocab_size
            model = Transformer(replace(cfg.model, vocab_size=vocab_size), seed=cfg.seed)
        else:
            raise UserError(
                f"{name} needs a model to start from: run `onesitting pretrain …` first, or name one with --from"
            )
        if name == "reward":
            model = with_score_head(model, cfg.seed)
        model = model.to(device=self.plan.torch_device, dtype=torch.float32).train()
        if source is None and name == "pretrain":
            self.fit_bigrams(model)
        distributed.broadcast_model(model, self.ranks)  # machines may differ in a last bit
        # Random weights have nothing worth freezing; a reward model's new head must be trained.
        if cfg.lora.rank and source is not None and name != "reward":
            add_adapter(model, cfg.lora, seed=cfg.seed, base=source)
        if name == "ppo":
            add_value_head(model)
        return distributed.shard_model(model, self.ranks) if cfg.device.shard == "fsdp" else model

    def fit_bigrams(self, model: Transformer) -> None:
        """Begin a new model from counted pairs of tokens, on rank 0; not one that goes on from a checkpoint."""
        settings, data = self.cfg.pretrain, self.data
        going_on = latest_checkpoint(self.folder.stage("pretrain").checkpoints)[0] is not None
        n_steps = round(counting(self.cfg) * settings.bigram_steps)
        if not n_steps or model.lm_head is None or data is None or going_on:
            return
        with self.clock.phase("n-grams"):
            if self.ranks.rank == 0:
                self.plan.apply()
                sources = text_sources(self.cfg, data, self.chat)
                bigrams = count_bigrams(sources, model.cfg.vocab_size, round(counting(self.cfg) * N_PAIRS))
                self.say(f"pretrain · first weights from {bigrams.counts.sum():,} counted pairs of tokens")
                fit_bigrams(model, bigrams, n_steps=n_steps, seed=self.cfg.seed, plan=self.plan)
            self.ranks.barrier()

    def source(self, name: str) -> Path | None:
        """Folder of the model that a stage starts from: the last stage before it that is done, else `start_from`."""
        stages = self.cfg.stages
        for earlier in reversed(stages[: stages.index(name)]):
            if earlier != "reward" and (self.folder.stage(earlier).model / "config.json").is_file():
                return self.folder.stage(earlier).model
        return start_folder(self.cfg)

    def make_stage(self, name: str, plan: DevicePlan) -> PipelineStage:
        """The stage's data, loss and evaluation."""
        return make_stage(
            name,
            StageInputs(
                cfg=self.cfg, tokenizer=self.tokenizer, plan=plan, ranks=self.ranks, data=self.data, chat=self.chat,
                preferences=self.preferences, general=self.general_material, start=self.source(name),
                folder=self.folder.stage(name).path,
            ),
        )  # fmt: skip

    # ---- evaluation and report ---------------------------------------------------------------------------------

    def evaluate(self, name: str, folder: StageFolder) -> None:
        """Ask the question suite, on rank 0; evaluation.json holds the results."""
        path = folder.path / "evaluation.json"
        done_before = path.is_file() and "evaluate" not in self.only
        if name == "reward" or not has_suite(self.cfg) or done_before:
            return
        if self.is_short and not self.only and name != self.stages[-1]:
            self.say(f"{name} · no question suite here: below {BASE_SUITE_FROM_S} s there is no time for it")
            return
        ends_at = None if "evaluate" in self.only else questions_end_at(self.cfg, name, self.clock)
        with self.clock.phase(f"evaluate {name}"):
            if self.ranks.rank == 0:
                self.say(f"{name} · asking the question suite")
                self.say(self.examiner.ask(path, folder.model, base=name == "pretrain", ends_at=ends_at))
            self.ranks.barrier()

    @property
    def is_short(self) -> bool:
        """Whether the budget has time for one pass of the suite alone, after the last stage."""
        return (self.clock.budget_s or math.inf) < BASE_SUITE_FROM_S

    @property
    def examiner(self) -> Examiner:
        """What measures this run's models."""
        return Examiner(cfg=self.cfg, tokenizer=self.tokenizer, plan=self.plan)

    def examine_start(self) -> None:
        """Measure the model that the run starts from, before any training: the report's column `before`."""
        if self.cfg.start_from and self.reports:
            self.examine(
                START, self.folder.stage(START), find_model_folder(Path(self.cfg.start_from).expanduser())
            )

    def examine(self, name: str, folder: StageFolder, model_folder: Path) -> None:
        """Of a run that starts from a model: measure what it knows of held-out text, and what of the general world."""
        done = (folder.path / HELD_OUT_FILE).is_file() and "evaluate" not in self.only
        if not self.cfg.start_from or done or not {"pretrain", "sft"} & set(self.cfg.stages):
            return
        with self.clock.phase(f"measure {name}"):
            if self.ranks.rank == 0:
                self.examiner.examine(
                    name, folder.path, model_folder, own=Material(self.data, self.chat),
                    general=self.general, general_material=self.general_material, has_suite=has_suite(self.cfg),
                    asks=not self.is_short, say=self.say,
                )  # fmt: skip
            self.ranks.barrier()

    def compare(self, name: str, folder: StageFolder) -> None:
        """Held-out preferences before and after a stage, on rank 0; preferences.json holds the results."""
        source, path = self.source(name), folder.path / "preferences.json"
        if source is None or self.preferences is None or (path.is_file() and not self.only):
            return
        with self.clock.phase(f"compare {name}"):
            if self.ranks.rank == 0:
                write_json(path, self.examiner.preferences(name, source, folder.model, self.preferences))
            self.ranks.barrier()

    def report(self) -> None:
        """The report card, in the run folder and on the screen."""
        if self.ranks.rank == 0:
            with self.clock.phase("report"):
                write_report(self.folder)
            write_report(self.folder)  # once more, so that the report's own seconds are in it
            print_report(self.folder)
        self.ranks.barrier()
