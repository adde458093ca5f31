"""From a stage's name to the stage: the one place that lists them all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onesitting.config import RunConfig
from onesitting.data.prepare import prepare_conversations, prepare_documents
from onesitting.data.tokens import ChatFolder, Material, PreferenceFolder, TokenFolder
from onesitting.errors import UserError
from onesitting.rewards import Batched
from onesitting.start import General
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks
from onesitting.train.stage import Stage

NO_MATERIAL = Material()


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """What a stage may be made from; each takes what it needs."""

    cfg: RunConfig
    tokenizer: Tokenizer
    plan: DevicePlan
    ranks: Ranks
    data: TokenFolder | None
    """Prepared text, where a stage of this sitting reads any."""
    chat: ChatFolder | None
    """Prepared conversations, where a stage of this sitting reads any."""
    preferences: PreferenceFolder | None = None
    """Prepared preferences, where a stage of this sitting reads any."""
    general: Material = NO_MATERIAL
    """Prepared general data to replay."""
    start: Path | None
    """Folder of the model that the stage starts from, for a frozen reference; None: random weights."""
    folder: Path
    """The stage's folder, for what it keeps there."""


def prepare_general(general: General | None, tokenizer: Tokenizer, out: Path) -> Material:
    """The data that a run replays and must not forget, from the cache where they are there; out: for its pointers."""
    if general is None:
        return Material()
    text = chat = None
    if general.data:
        text = prepare_documents(general.data, tokenizer, general.corpus, out / "text", general.seed)
    if general.chat:
        chat = prepare_conversations(general.chat, tokenizer, general.corpus, out / "chat", general.seed)
    return Material(text, chat)


class PipelineStage(Stage, Protocol):
    """A stage with the size of its steps, from which the budget makes their number."""

    row_length: int
    """Tokens in a row, at most."""
    n_rows: int
    """Rows in an optimizer step, over all processes."""

    def max_steps(self) -> int | None:
        """Optimizer steps after which the data ends; None: never."""
        ...


def make_stage(name: str, inputs: StageInputs) -> PipelineStage:
    """The stage of a name, its data loaded; UserError where sharded processes would get unequal parts of its steps.

    The first process makes its stage before the others do: files that it leaves for all are there when they look.
    """
    ranks, world = inputs.ranks, inputs.ranks.world
    if ranks.rank != 0:
        ranks.barrier()
    stage = _stage(name, inputs)
    if inputs.cfg.device.shard == "fsdp" and stage.n_rows % world:
        raise UserError(
            f"device.shard = fsdp: the {stage.n_rows} rows of {stage.row_length} tokens in a step of {name} do not "
            f"divide by {world} processes, which would wait for each other for ever; change {name}.step_tokens"
        )
    if ranks.rank == 0:
        ranks.barrier()
    return stage


def _stage(name: str, inputs: StageInputs) -> PipelineStage:
    cfg, tokenizer, plan, ranks = inputs.cfg, inputs.tokenizer, inputs.plan, inputs.ranks
    if name == "pretrain":
        from onesitting.stages.pretrain import PretrainStage, count_ngrams

        assert inputs.data is not None
        chat = inputs.chat if cfg.pretrain.chat_fraction > 0 else None
        # A model that is trained already knows more than counts of a few words say.
        ngrams = count_ngrams(cfg, inputs.data, chat, tokenizer, plan) if inputs.start is None else None
        return PretrainStage(cfg, tokenizer, inputs.data, chat, plan, ranks, inputs.general, ngrams)
    if name == "sft":
        from onesitting.stages.sft import SFTStage

        assert inputs.chat is not None
        return SFTStage(cfg, tokenizer, inputs.chat, plan, ranks, inputs.general.chat)
    if name == "dpo":
        from onesitting.stages.dpo import DPOStage

        assert inputs.preferences is not None
        assert inputs.start is not None
        return DPOStage(
            cfg, tokenizer, inputs.preferences, plan, ranks, start=inputs.start, folder=inputs.folder
        )
    if name == "grpo":
        from onesitting.stages.grpo import GRPOStage

        return GRPOStage(cfg, tokenizer, plan, ranks, inputs.start, learned_rewards(inputs))
    if name == "reward":
        from onesitting.stages.reward import RewardStage

        assert inputs.preferences is not None
        return RewardStage(cfg, tokenizer, inputs.preferences, plan, ranks)
    if name == "distill":
        from onesitting.stages.distill import DistillStage

        assert inputs.chat is not None
        return DistillStage(cfg, tokenizer, inputs.chat, plan, ranks, folder=inputs.folder)
    if name == "ppo":
        from onesitting.stages.ppo import PPOStage

        return PPOStage(cfg, tokenizer, plan, ranks, inputs.start, learned_rewards(inputs))
    raise UserError(f"there is no stage '{name}'")


def learned_rewards(inputs: StageInputs) -> dict[str, Batched]:
    """The reward `judge`, where rl.rewards names it: a reward model, rl.judge's or that of this run."""
    rl = inputs.cfg.rl
    if "judge" not in [text.partition("=")[0] for text in rl.rewards]:
        return {}
    from onesitting.stages.reward import load_reward_model

    return {"judge": load_reward_model(rl.judge or inputs.folder.parent, inputs.plan.torch_device).judge}
