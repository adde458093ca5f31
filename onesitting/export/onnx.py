"""ONNX with a cache of keys and values: one graph that reads a prompt and writes token after token.

The graph is written node by node, in operators of opset 17, which every runtime has, browsers too. Inputs and
outputs carry the names that Optimum and transformers.js use:

    input_ids (B, T), attention_mask (B, P + T), position_ids (B, T), past_key_values.{i}.key|value (B, K, P, D)
    logits (B, T, V), present.{i}.key|value (B, K, P + T, D)

P is 0 for a prompt. Rows of unequal length are padded at the left, with 0 in attention_mask.

Shapes: B batch, T new tokens, P cached tokens, S = P + T, K key/value heads, G query heads of each, D head width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from onesitting import __version__
from onesitting.config import ModelConfig
from onesitting.export.source import Source, need, refuse_special
from onesitting.model.hf import hf_format, read_hf_folder
from onesitting.model.rope import frequencies, head_scale

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime that is in use, new enough for LayerNormalization."""

INLINE_BYTES = 1_900_000_000
"""Weights above this go into a file of their own: a protobuf message ends at 2 GiB."""

MASKED = -1e9  # not -inf: a padded query sees no key at all, and a softmax of -inf alone is NaN


def write_onnx(source: Source, path: Path) -> Path:
    """Write the model as float32 ONNX; its path comes back. Raises UserError for a shape without a standard format."""
    hf_format(source.cfg)
    refuse_special(source.cfg, "ONNX")
    onnx = need("onnx")
    graph = Graph(onnx)
    _, state = read_hf_folder(source.folder)
    model = graph.model(source.cfg, {name: tensor.float() for name, tensor in state.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    large = sum(tensor.numel() * 4 for tensor in state.values()) > INLINE_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}_data" if large else None)
    onnx.checker.check_model(str(path), full_check=True)
    return path


class Graph:
    """An ONNX graph under construction. A value is known by its name; `op` adds a node and names its output."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.constants: dict[tuple[Any, ...], str] = {}

    def op(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Name of the first output of a new node."""
        to = to or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [to], **attributes))
        return to

    def weight(self, name: str, value: Tensor) -> str:
        """A stored tensor."""
        if name not in self.weights:
            self.weights[name] = self.onnx.numpy_helper.from_array(value.detach().contiguous().numpy(), name)
        return name

    def const(self, value: float | int | list[int]) -> str:
        """A float32 scalar, or int64 numbers."""
        kind = np.float32 if isinstance(value, float) else np.int64
        key = (kind.__name__, *value) if isinstance(value, list) else (kind.__name__, "scalar", value)
        if key not in self.constants:
            name = self.constants[key] = f"const_{len(self.constants)}"
            self.weights[name] = self.onnx.numpy_helper.from_array(np.array(value, kind), name)
        return self.constants[key]

    # ---- the model, as in model/transformer.py -----------------------------------------------------------------

    def model(self, cfg: ModelConfig, state: Mapping[str, Tensor]) -> Any:
        """The whole ModelProto."""
        self.cfg, self.state = cfg, state
        x = self.op("Gather", self.param("model.embed_tokens.weight"), "input_ids")  # (B, T, d_model)
        self.rope = None
        if cfg.positions == "learned":
            x = self.op(
                "Add", x, self.op("Gather", self.param("model.embed_positions.weight"), "position_ids")
            )
        else:
            self.rope = self.rope_tables()
        self.bias = self.attention_bias()
        for layer in range(cfg.n_layers):
            name = f"model.layers.{layer}."
            x = self.op("Add", x, self.attention(self.norm(x, f"{name}input_layernorm"), layer))
            x = self.op("Add", x, self.mlp(self.norm(x, f"{name}post_attention_layernorm"), f"{name}mlp."))
        x = self.norm(x, "model.norm")
        tied = "model.embed_tokens" if cfg.tie_embeddings else "lm_head"
        self.op("MatMul", x, self.transposed(f"{tied}.weight"), to="logits")
        return self.finished()

    def param(self, name: str) -> str:
        """A parameter as it is stored."""
        return self.weight(name, self.state[name])

    def transposed(self, name: str) -> str:
        """A matrix (out, in) as (in, out); one that the graph also reads as it is, is turned by a node."""
        if name in self.weights:
            return self.op("Transpose", name, perm=[1, 0])
        return self.weight(f"{name}.T", self.state[name].t())

    def linear(self, x: str, name: str) -> str:
        """`x W^T + b` with the parameters of that name."""
        y = self.op("MatMul", x, self.transposed(f"{name}.weight"))
        return self.op("Add", y, self.param(f"{name}.bias")) if f"{name}.bias" in self.state else y

    def norm(self, x: str, name: str) -> str:
        """RMSNorm or LayerNorm over the last dimension, as the parameters are."""
        if f"{name}.bias" in self.state:
            weight, bias = self.param(f"{name}.weight"), self.param(f"{name}.bias")
            return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.cfg.norm_eps)
        square = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        rms = self.op("Sqrt", self.op("Add", square, self.const(float(self.cfg.norm_eps))))
        return self.op("Mul", self.op("Div", x, rms), self.param(f"{name}.weight"))

    def rope_tables(self) -> tuple[str, str]:
        """(cos, sin), each (B, 1, 1, T, D); the first half of sin is negated."""
        turns = self.weight("rope_frequencies", frequencies(self.cfg))
        positions = self.cast("position_ids")
        angles = self.op("Mul", self.op("Unsqueeze", positions, self.const([1, 2, 4])), turns)
        cos, sin = self.op("Cos", angles), self.op("Sin", angles)
        if self.cfg.rope_factor != 1.0:
            scale = self.const(head_scale(self.cfg))
            cos, sin = self.op("Mul", cos, scale), self.op("Mul", sin, scale)
        negative = self.op("Neg", sin)
        return self.op("Concat", cos, cos, axis=-1), self.op("Concat", negative, sin, axis=-1)

    def cast(self, x: str) -> str:
        """x as float32."""
        to = f"Cast_{len(self.nodes)}"
        kind = self.onnx.TensorProto.FLOAT
        self.nodes.append(self.onnx.helper.make_node("Cast", [x], [to], to=kind))
        return to

    def attention_bias(self) -> str:
        """(B, 1, 1, T, S): 0 where a query may see a key, MASKED elsewhere."""
        n_past = self.op("Shape", "past_key_values.0.key", start=2, end=3)
        n_all = self.op("Shape", "attention_mask", start=1, end=2)
        zero, one = self.const([0]), self.const([1])
        squeeze = lambda v: self.op("Squeeze", v, zero)  # noqa: E731, Range wants scalars
        keys = self.op("Range", self.const(0), squeeze(n_all), self.const(1))  # (S,)
        queries = self.op("Range", squeeze(n_past), squeeze(n_all), self.const(1))  # (T,)
        earlier = self.op("LessOrEqual", self.op("Unsqueeze", keys, zero), self.op("Unsqueeze", queries, one))
        real = self.op("Greater", "attention_mask", self.const(0))  # (B, S)
        visible = self.op("And", earlier, self.op("Unsqueeze", real, self.const([1, 2, 3])))
        return self.op("Where", visible, self.const(0.0), self.const(MASKED))

    def rotated(self, x: str) -> str:
        """x (B, K, G, T, D) with each pair turned by its angle."""
        if self.rope is None:
            return x
        half, D = self.cfg.head_dim // 2, self.cfg.head_dim
        left = self.op("Slice", x, self.const([0]), self.const([half]), self.const([-1]))
        right = self.op("Slice", x, self.const([half]), self.const([D]), self.const([-1]))
        swapped = self.op("Concat", right, left, axis=-1)
        return self.op("Add", self.op("Mul", x, self.rope[0]), self.op("Mul", swapped, self.rope[1]))

    def attention(self, x: str, layer: int) -> str:
        """(B, T, d_model) to add to the residual stream; writes the layer's `present` outputs."""
        cfg, name = self.cfg, f"model.layers.{layer}.self_attn."
        K, G, D = cfg.n_kv_heads, cfg.n_heads // cfg.n_kv_heads, cfg.head_dim

        def heads(part: str, n: int, norm: bool) -> str:
            y = self.op("Reshape", self.linear(x, f"{name}{part}_proj"), self.const([0, 0, K, n, D]))
            y = self.norm(y, f"{name}{part}_norm") if norm and cfg.qk_norm else y
            return self.op("Transpose", y, perm=[0, 2, 3, 1, 4])  # (B, K, n, T, D)

        q, k = self.rotated(heads("q", G, norm=True)), self.rotated(heads("k", 1, norm=True))
        k, v = self.cached(layer, "key", k), self.cached(layer, "value", heads("v", 1, norm=False))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 2, 4, 3]))  # (B, K, G, T, S)
        scores = self.op("Add", self.op("Mul", scores, self.const(float(D**-0.5))), self.bias)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)  # (B, K, G, T, D)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 3, 1, 2, 4]), self.const([0, 0, K * G * D]))
        return self.linear(y, f"{name}o_proj")

    def cached(self, layer: int, kind: str, new: str) -> str:
        """(B, K, 1, S, D): the cached keys or values of a layer with the new ones (B, K, 1, T, D) behind."""
        new = self.op("Squeeze", new, self.const([2]))
        both = self.op("Concat", f"past_key_values.{layer}.{kind}", new, axis=2, to=f"present.{layer}.{kind}")
        return self.op("Unsqueeze", both, self.const([2]))

    def mlp(self, x: str, name: str) -> str:
        """SwiGLU or GELU with the tanh approximation."""
        if self.cfg.mlp == "swiglu":
            gate = self.linear(x, f"{name}gate_proj")
            silu = self.op("Mul", gate, self.op("Sigmoid", gate))
            return self.linear(self.op("Mul", silu, self.linear(x, f"{name}up_proj")), f"{name}down_proj")
        x = self.linear(x, f"{name}up_proj")
        cube = self.op("Mul", self.op("Mul", x, x), x)
        inner = self.op("Add", x, self.op("Mul", cube, self.const(0.044715)))
        tanh = self.op("Tanh", self.op("Mul", inner, self.const(float((2 / np.pi) ** 0.5))))
        half = self.op("Mul", x, self.const(0.5))
        return self.linear(self.op("Mul", half, self.op("Add", tanh, self.const(1.0))), f"{name}down_proj")

    def finished(self) -> Any:
        """The graph with its inputs, outputs and weights, as a ModelProto."""
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        cfg, ids = self.cfg, ["batch", "tokens"]
        inputs = [("input_ids", ids), ("attention_mask", ["batch", "past + tokens"]), ("position_ids", ids)]
        values = [helper.make_tensor_value_info(name, kinds.INT64, shape) for name, shape in inputs]
        outputs = [helper.make_tensor_value_info("logits", kinds.FLOAT, [*ids, cfg.vocab_size])]
        for layer in range(cfg.n_layers):
            for kind in ("key", "value"):
                for prefix, length, many in (
                    ("past_key_values", "past", values), ("present", "past + tokens", outputs),
                ):  # fmt: skip
                    shape = ["batch", cfg.n_kv_heads, length, cfg.head_dim]
                    many.append(helper.make_tensor_value_info(f"{prefix}.{layer}.{kind}", kinds.FLOAT, shape))
        graph = helper.make_graph(self.nodes, "model", values, outputs, list(self.weights.values()))
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], producer_name="onesitting", producer_version=__version__
        )
        model.ir_version = IR_VERSION
        return model
