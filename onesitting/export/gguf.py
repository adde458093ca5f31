"""GGUF, the one-file format of llama.cpp, Ollama and LM Studio: weights, shape, tokenizer and chat template.

One tensor is converted and written at a time, from memory-mapped safetensors, so memory stays that of the largest.

Shapes: H heads, D head width, d_model width of the residual stream.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.export.chat_check import own_template
from onesitting.export.gguf_vocab import (
    adds_bos,
    merge_lines,
    pre_tokenizer_name,
    special_ids,
    tokens_and_types,
)
from onesitting.export.source import Source, need, refuse_special, whole_file
from onesitting.model.hf import hf_format, read_hf_folder
from onesitting.model.rope import original_context

LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QWEN3 = LLAMA | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GPT2 = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",  # q, k and v in one matrix
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BLOCKS = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2}
"""Our name of a block's tensor -> GGUF's, for each architecture."""

TOP = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
"""Stored type of the matrices -> `general.file_type`."""

_OPENS_THOUGHT = """{%- if enable_thinking is defined and enable_thinking is true %}
        {{- '<think>' }}
    {%- elif """

QUANTIZATION_BLOCK = 32
"""Numbers that share a scale in q8_0 and q4_0, so a row must be a multiple of it."""


Read = Callable[[], npt.NDArray[np.float32]]


def write_gguf(source: Source, path: Path, dtype: str = "f16") -> Path:
    """Write a model as one GGUF file; its path comes back.

    dtype: of the matrices, one of FILE_TYPES; norms, biases and position tables stay f32. In q4_0 the embedding
    and the output matrix are q8_0, and a matrix whose rows are no multiple of 32 is f16.
    Raises UserError for another dtype, a shape without a standard format, or a tokenizer that GGUF cannot name.
    """
    if dtype not in FILE_TYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; use one of {', '.join(FILE_TYPES)}")
    gguf = need("gguf")
    architecture = hf_format(source.cfg)
    refuse_special(source.cfg, "GGUF")
    with whole_file(path) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        _add_shape(writer, source.cfg)
        _add_yarn(writer, source.cfg, gguf.RopeScalingType.YARN)
        _add_tokenizer(writer, source)
        writer.add_name(source.name)
        writer.add_file_type(FILE_TYPES[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        tensors = list(gguf_tensors(source))
        types = [_type_of(gguf.GGMLQuantizationType, name, shape, dtype) for name, shape, _ in tensors]
        for (name, shape, _), kind in zip(tensors, types, strict=True):
            stored = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (_, _, read), kind in zip(tensors, types, strict=True):
            writer.write_tensor_data(gguf.quantize(read(), kind).view(np.uint8))
        writer.close()
    return path


def _type_of(kinds: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """The stored type of a tensor."""
    if len(shape) == 1 or name.startswith("position_embd"):
        return kinds.F32
    if dtype.startswith("q") and shape[-1] % QUANTIZATION_BLOCK:
        return kinds.F16
    if dtype == "q4_0" and name.startswith(("token_embd", "output.")):
        return kinds.Q8_0
    return kinds[dtype.upper()]


def _add_shape(writer: Any, cfg: ModelConfig) -> None:
    """The architecture's numbers, under the keys that llama.cpp reads."""
    writer.add_context_length(cfg.context_length)
    writer.add_embedding_length(cfg.d_model)
    writer.add_block_count(cfg.n_layers)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_kv_heads)
    writer.add_vocab_size(cfg.vocab_size)
    if cfg.norm == "layer":
        writer.add_layer_norm_eps(cfg.norm_eps)
        return
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)


def _add_yarn(writer: Any, cfg: ModelConfig, kind: Any) -> None:
    """Keys of a stretched context; llama.cpp derives the scale of the heads from the factor, as we do."""
    if cfg.rope_factor != 1.0:
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(cfg.rope_factor)
        writer.add_rope_scaling_orig_ctx_len(original_context(cfg))


def _add_tokenizer(writer: Any, source: Source) -> None:
    tokenizer = source.tokenizer
    tokens, types = tokens_and_types(tokenizer, source.cfg.vocab_size)
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, whatever the architecture
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merge_lines(tokenizer))
    for key, value in special_ids(tokenizer).items():
        writer.add_uint32(f"tokenizer.ggml.{key}", value)
    writer.add_add_bos_token(adds_bos(tokenizer) is not None)
    template = own_template(source.folder)
    if template is not None:
        writer.add_chat_template(llama_cpp_template(template))


def llama_cpp_template(template: str) -> str:
    """Our chat template for llama.cpp, which sets enable_thinking=true where nobody asked; another one as it is.

    Without the branch for true, a conversation that says nothing about thinking is rendered as everywhere else.
    """
    return template.replace(_OPENS_THOUGHT, "{%- if ", 1)


def gguf_tensors(source: Source) -> Iterator[tuple[str, tuple[int, ...], Read]]:
    """(GGUF's name, shape, a function that reads the float32 values) of each tensor."""
    cfg, state = read_hf_folder(source.folder)
    for name, gguf_name in TOP.items():
        yield from _both_kinds(state, cfg, name, gguf_name)
    for layer in range(cfg.n_layers):
        for name, gguf_name in BLOCKS[hf_format(cfg)].items():
            yield from _both_kinds(state, cfg, f"model.layers.{layer}.{name}", f"blk.{layer}.{gguf_name}")


def _both_kinds(
    state: Mapping[str, Tensor], cfg: ModelConfig, name: str, gguf_name: str
) -> Iterator[tuple[str, tuple[int, ...], Read]]:
    """The weight and the bias of a name, those that the model has."""
    for kind in ("weight", "bias"):
        names = [f"{name.replace('qkv_proj', f'{p}_proj')}.{kind}" for p in "qkv"]
        parts = [state[n] for n in dict.fromkeys(names) if n in state]
        if parts:
            shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
            yield f"{gguf_name}.{kind}", shape, _reader(parts, _interleaved_heads(cfg, name))


def _interleaved_heads(cfg: ModelConfig, name: str) -> int:
    """Heads whose rows llama.cpp wants in another order; 0: none."""
    if hf_format(cfg) != "llama":
        return 0
    return cfg.n_heads if name.endswith("q_proj") else cfg.n_kv_heads if name.endswith("k_proj") else 0


def _reader(parts: list[Tensor], n_heads: int) -> Read:
    def read() -> npt.NDArray[np.float32]:
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if n_heads:
            tensor = _interleaved(tensor, n_heads)
        return tensor.to(torch.float32).contiguous().numpy()

    return read


def _interleaved(tensor: Tensor, n_heads: int) -> Tensor:
    """Rows (H·D, …) reordered within each head: llama.cpp turns (x[2i], x[2i+1]) where we turn (x[i], x[i+D/2])."""
    halves = tensor.unflatten(0, (n_heads, 2, -1))  # (H, 2, D/2, …)
    return halves.transpose(1, 2).flatten(0, 2)
