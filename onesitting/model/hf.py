"""The same model in Hugging Face's words: config.json and the names of its tensors, in both directions.

For Qwen3 and Llama the parameters of `Transformer` already carry Hugging Face's names. GPT-2 has names of its
own, keeps q, k and v in one matrix, and stores matrices transposed (Conv1D).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.moe import config_entries, split_experts, stack_experts
from onesitting.model.rope import read_rope_entries, rope_entries

# What each format fixes; every other field of ModelConfig is free.
FORMATS: dict[str, dict[str, Any]] = {
    "qwen3": {"norm": "rms", "positions": "rope", "mlp": "swiglu", "qk_norm": True, "bias": False, "n_experts": 0},
    "llama": {"norm": "rms", "positions": "rope", "mlp": "swiglu", "qk_norm": False, "n_experts": 0},
    "gpt2": {
        "norm": "layer", "positions": "learned", "mlp": "gelu", "qk_norm": False, "bias": True, "n_experts": 0
    },
    "qwen3_moe": {
        "norm": "rms", "positions": "rope", "mlp": "swiglu", "qk_norm": True, "bias": False, "router_bias_rate": 0.0
    },
}  # fmt: skip
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
SCORERS = {
    kind: re.sub("(ForCausalLM|LMHeadModel)$", "ForSequenceClassification", name)
    for kind, name in ARCHITECTURES.items()
}

# Buffers that older files carry and that follow from the configuration.
DERIVED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.bias|\.attn\.masked_bias)$")

# ours -> GPT-2's, for the tensors of a block (weights and biases alike); attention's q, k, v become c_attn.
GPT2_BLOCK = {
    "input_layernorm": "ln_1",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
GPT2_TOP = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.embed_positions.weight": "transformer.wpe.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "model.norm.bias": "transformer.ln_f.bias",
    "lm_head.weight": "lm_head.weight",
    "score.weight": "score.weight",
    "value.weight": "value.weight",
}


def hf_format(cfg: ModelConfig) -> str:
    """`qwen3`, `llama`, `gpt2` or `qwen3_moe`.

    Raises UserError when no standard format has this combination of switches, naming those to change.
    """
    misfits = {name: _misfits(cfg, name) for name in FORMATS}
    for name, wrong in misfits.items():
        if not wrong:
            return name
    # Of two formats with as much to change, the one with experts is nearer to a model with experts.
    nearest = min(
        misfits, key=lambda name: (len(misfits[name]), bool(cfg.n_experts) != (name == "qwen3_moe"))
    )
    changes = ", ".join(misfits[nearest])
    raise UserError(
        f"no standard format has this model's combination of switches; nearest is {nearest}: set {changes}"
    )


def _misfits(cfg: ModelConfig, name: str) -> list[str]:
    """The settings to change, as `model.x=value`, before cfg fits a format."""
    wanted = dict(FORMATS[name])
    if name == "gpt2":
        wanted |= {"n_kv_heads": cfg.n_heads}
        if cfg.n_heads * cfg.head_dim != cfg.d_model:
            wanted |= {"d_model": cfg.n_heads * cfg.head_dim}
    if name == "qwen3_moe":
        wanted |= {"n_experts": cfg.n_experts or 8}
    if name == "llama":  # transformers refuses a Llama whose width its heads do not divide
        wanted |= {"d_model": -(-cfg.d_model // cfg.n_heads) * cfg.n_heads}
    return [f"model.{k}={json.dumps(v)}" for k, v in wanted.items() if getattr(cfg, k) != v]


def hf_config(
    cfg: ModelConfig,
    *,
    eos_id: int | list[int] | None = None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The content of config.json; `dtype` is that of the stored weights. Raises UserError as `hf_format`."""
    kind = hf_format(cfg)
    common = {
        "architectures": [SCORERS[kind] if cfg.n_scores else ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name that transformers 4, vLLM and llama.cpp read
        "use_cache": True,
    }
    common |= _labels(cfg.n_scores)
    if kind == "gpt2":
        return common | _gpt2_entries(cfg)
    return (
        common
        | {
            "num_hidden_layers": cfg.n_layers,
            "hidden_size": cfg.d_model,
            "num_attention_heads": cfg.n_heads,
            "num_key_value_heads": cfg.n_kv_heads,
            "head_dim": cfg.head_dim,
            "intermediate_size": cfg.d_ff,
            "max_position_embeddings": cfg.context_length,
            "hidden_act": "silu",
            "rms_norm_eps": cfg.norm_eps,
            **rope_entries(cfg),
            "attention_bias": cfg.bias,
            "attention_dropout": 0.0,
        }
        | (
            {"mlp_bias": cfg.bias}
            if kind == "llama"
            else {"use_sliding_window": False, "sliding_window": None}
        )
        | (config_entries(cfg) if kind == "qwen3_moe" else {})
    )


def _gpt2_entries(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": cfg.n_layers,
        "n_embd": cfg.d_model,
        "n_head": cfg.n_heads,
        "n_inner": cfg.d_ff,
        "n_positions": cfg.context_length,
        "n_ctx": cfg.context_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": cfg.norm_eps,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a config.json; UserError names the first thing that our model does not have."""
    kind = config.get("model_type")
    if kind == "gpt2":
        return _gpt2_config(config)
    if kind not in ("qwen3", "llama", "qwen3_moe"):
        raise UserError(f"config.json: model_type is {kind!r}; only {', '.join(FORMATS)} can be read")
    bias = bool(config.get("attention_bias", False))
    _require(config, "hidden_act", "silu", default="silu")
    _require(config, "use_sliding_window", False, default=False)
    if kind != "llama":
        _require(config, "attention_bias", False, default=False)
    else:
        _require(config, "mlp_bias", bias, default=False)
    n_heads, d_model = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    is_moe = kind == "qwen3_moe"
    return ModelConfig(
        **(_read_moe_entries(config) if is_moe else {}),
        n_layers=_number(config, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        head_dim=config.get("head_dim") or (128 if kind == "qwen3" else d_model // n_heads),
        d_ff=_number(config, "moe_intermediate_size" if is_moe else "intermediate_size"),
        vocab_size=_number(config, "vocab_size"),
        context_length=_number(config, "max_position_embeddings"),
        **read_rope_entries(config),
        qk_norm=kind != "llama",
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        bias=bias,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        n_scores=_n_scores(config),
    )


def _read_moe_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    _require(config, "decoder_sparse_step", 1, default=1)
    _require(config, "mlp_only_layers", ([], None), default=[])
    # transformers 5 writes num_local_experts and reads both names.
    n_experts = "num_experts" if "num_experts" in config else "num_local_experts"
    return {
        "n_experts": _number(config, n_experts),
        "n_active_experts": _number(config, "num_experts_per_tok"),
        "norm_top_k": bool(config.get("norm_topk_prob", False)),
        "router_aux_loss": float(config.get("router_aux_loss_coef", 0.001)),
    }


def _gpt2_config(config: Mapping[str, Any]) -> ModelConfig:
    _require(config, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), default="gelu_new")
    _require(config, "scale_attn_weights", True, default=True)
    _require(config, "scale_attn_by_inverse_layer_idx", False, default=False)
    _require(config, "add_cross_attention", False, default=False)
    n_heads, d_model = _number(config, "n_head"), _number(config, "n_embd")
    return ModelConfig(
        n_layers=_number(config, "n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=config.get("n_inner") or 4 * d_model,
        vocab_size=_number(config, "vocab_size"),
        context_length=_number(config, "n_positions"),
        qk_norm=False,
        norm="layer",
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        positions="learned",
        mlp="gelu",
        bias=True,
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        n_scores=_n_scores(config),
    )


def _labels(n_scores: int) -> dict[str, Any]:
    """Names of a scorer's outputs, by which transformers counts them; nothing for a language model."""
    names = {str(i): f"score_{i}" for i in range(n_scores)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}} if n_scores else {}


def _n_scores(config: Mapping[str, Any]) -> int:
    """Outputs of a sequence classifier; 0 for a language model."""
    is_scorer = any(name in SCORERS.values() for name in config.get("architectures") or [])
    return len(config.get("id2label") or {}) or int(config.get("num_labels", 2)) if is_scorer else 0


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json: {key} is {value!r}; a whole number of at least 1 is needed")
    return value


def _require(config: Mapping[str, Any], key: str, allowed: Any, default: Any) -> None:
    value = config.get(key, default)
    options = allowed if isinstance(allowed, tuple) else (allowed,)
    if value not in options:
        raise UserError(f"config.json: {key} is {value!r}; this model only has {options[0]!r}")


def to_hf_state(cfg: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names, and in the layout, of cfg's Hugging Face format."""
    if hf_format(cfg) != "gpt2":
        return split_experts(state)
    out = {GPT2_TOP[name]: tensor for name, tensor in state.items() if name in GPT2_TOP}
    for layer in range(cfg.n_layers):
        ours, theirs = f"model.layers.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            qkv = [state[f"{ours}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{theirs}attn.c_attn.{kind}"] = torch.cat(qkv).t().contiguous()
            for a, b in GPT2_BLOCK.items():
                tensor = state[f"{ours}{a}.{kind}"]
                out[f"{theirs}{b}.{kind}"] = tensor.t().contiguous() if tensor.ndim == 2 else tensor
    return out


def from_hf_state(cfg: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face state dict under our names; derived buffers and the copy of a tied matrix are dropped.

    Raises UserError when a stored copy of a tied output matrix differs from the embedding.
    """
    state = {name: tensor for name, tensor in state.items() if not DERIVED.search(name)}
    state = _from_gpt2_state(cfg, state) if hf_format(cfg) == "gpt2" else stack_experts(state)
    copy = state.pop("lm_head.weight", None) if cfg.tie_embeddings else None
    if copy is not None and not torch.equal(copy, state["model.embed_tokens.weight"]):
        raise UserError(
            "config.json says tie_word_embeddings=true, but lm_head.weight differs from the embedding; "
            "set tie_word_embeddings to false in config.json"
        )
    return state


def _from_gpt2_state(cfg: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The files of the original GPT-2 were saved from the base model and lack the prefix.
    state = {
        k if k.startswith(("transformer.", "lm_head.", "score.", "value.")) else f"transformer.{k}": v
        for k, v in state.items()
    }
    rename = {theirs: ours for ours, theirs in GPT2_TOP.items()}
    for layer in range(cfg.n_layers):
        for a, b in GPT2_BLOCK.items():
            for kind in ("weight", "bias"):
                rename[f"transformer.h.{layer}.{b}.{kind}"] = f"model.layers.{layer}.{a}.{kind}"
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if fused := re.fullmatch(r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)", name):
            layer, kind = fused.groups()
            for p, part in zip(
                "qkv", tensor.t().chunk(3) if kind == "weight" else tensor.chunk(3), strict=True
            ):
                out[f"model.layers.{layer}.self_attn.{p}_proj.{kind}"] = part.contiguous()
        else:
            is_matrix = tensor.ndim == 2 and ".h." in name
            out[rename.get(name, name)] = tensor.t().contiguous() if is_matrix else tensor
    return out


def read_hf_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """(configuration, state dict under our names) of a local model folder, from one or several safetensors files.

    Raises UserError naming the file that is missing or broken.
    """
    cfg, tensors = read_config(folder), read_tensors(folder)
    native = read_json(folder / "config.json").get("model_type") == NATIVE
    return cfg, tensors if native else from_hf_state(cfg, tensors)


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder, from its config.json; UserError where our model cannot have it."""
    config = read_json(folder / "config.json")
    return native_config(config) if config.get("model_type") == NATIVE else config_from_hf(config)


NATIVE = "onesitting"
"""model_type of a combination of switches that no standard format has: only onesitting reads it."""


def native_config(config: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig that `checkpoint` wrote field by field for a shape without a standard format."""
    known = ModelConfig.__dataclass_fields__
    return ModelConfig(**{name: value for name, value in config.items() if name in known})


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder of a model (it holds config.json)") from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); restore the file or give another folder"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not a JSON object; give another folder")
    return value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's model.safetensors, or of the files that model.safetensors.index.json lists."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= read_safetensors(path)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json lists."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    names: set[str] = set(read_json(index).get("weight_map", {}).values())
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index} names a file in another folder; only files beside it are read")
    return [folder / name for name in sorted(names)]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of one file; UserError when it is missing or broken."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, the file is no mapping
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; only safetensors weights are read, convert others first"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from None
