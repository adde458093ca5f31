"""What tests of reinforcement learning share: a small model that knows one conversation with a tool by heart."""

import functools
import json
from typing import Any

import torch
import torch.nn.functional as F

from onesitting.config import (
    CheckpointConfig,
    DeviceConfig,
    EvaluationConfig,
    GRPOConfig,
    ModelConfig,
    RLConfig,
    RunConfig,
)
from onesitting.data.prompts import Prompt
from onesitting.data.world.tools import CALCULATOR
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tokenizer.chat import render
from onesitting.train.device import DevicePlan, detect, plan_device

CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12 + 30"}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Sum?"},
    {"role": "assistant", "content": "", "reasoning_content": "I add.", "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
]
PROMPT = Prompt(
    messages=CONVERSATION[:1], tools=[CALCULATOR], scorer="answer", reference={"accepted": ["42"]}
)


@functools.cache
def memorised() -> tuple[Transformer, Tokenizer]:
    """The model, float32, and its tokenizer; do not change them."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([json.dumps(CONVERSATION) + json.dumps(CALCULATOR)] * 3, 320)
    ids, _ = render(tokenizer, CONVERSATION, [CALCULATOR])
    model = Transformer(shape(tokenizer.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.tensor([ids])
    for _ in range(160):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def shape(vocab_size: int) -> ModelConfig:
    """Of a model that computes in no time."""
    return ModelConfig(
        n_layers=2, d_model=64, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128, context_length=256,
        vocab_size=vocab_size,
    )  # fmt: skip


def config(tokenizer: Tokenizer, *, grpo: dict[str, Any] | None = None, **rl: Any) -> RunConfig:
    """A run of GRPO on sums, small enough for a second."""
    values = {"prompts": ("world:arithmetic",), "prompts_per_batch": 2, "samples": 4, "max_tokens": 12, **rl}
    return RunConfig(
        name="t",
        model=shape(tokenizer.vocab_size),
        stages=("grpo",),
        rl=RLConfig(**{"rewards": ("length", "stopped=0.3"), "eval_prompts": 2, **values}),
        grpo=GRPOConfig(**{"warmup_steps": 2, "lr_scale": 0.5, **(grpo or {})}),
        checkpoint=CheckpointConfig(every_s=0.0),
        evaluation=EvaluationConfig(every_fraction=0.5, samples=1),
        device=DeviceConfig(device="cpu", dtype="float32", compile="off", threads=1),
    )


def device_plan(cfg: RunConfig) -> DevicePlan:
    """The plan of `config`: float32 on the processor."""
    return plan_device(cfg.device, detect())


def random_model(tokenizer: Tokenizer) -> Transformer:
    """An untrained model whose attempts are of many lengths: every matrix random, so that all take part."""
    model = Transformer(shape(tokenizer.vocab_size), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
        model.output_weight[sorted(tokenizer.stop_ids)] *= 3.0
    return model
