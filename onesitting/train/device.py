"""What this machine has, and what follows from it: device, dtype, compilation, threads, micro-batch.

`detect()` (hardware.py) looks, `plan_device()` decides. The decision is a function of a plain table (`Hardware`),
so that tests can play machines that are not there; each choice comes with its reason.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from onesitting.config import DeviceConfig, ModelConfig
from onesitting.errors import UserError
from onesitting.model.flops import n_mlps
from onesitting.model.kernels import attention_route
from onesitting.model.transformer import PLAIN, Parts, Transformer
from onesitting.train.compiler import Compiled, Compiler, first_line
from onesitting.train.hardware import Hardware, detect
from onesitting.train.process import keep_freed_memory
from onesitting.train.scaler import LossScaler

CPU_MICRO_BATCH_TOKENS = 8192
GPU_MICRO_BATCH_TOKENS = 65_536
"""Most tokens in one forward pass: enough to keep the device busy, more only takes memory."""
ACTIVATION_SHARE = {"cpu": 0.25, "gpu": 0.6}
"""Share of memory that activations may fill; on a CPU the rest belongs to other programs too."""
CPU_ACTIVATION_BYTES = 1.5e9
"""Most bytes of activations on a CPU, whatever the memory: the demo promises 3 GB for everything."""
TF32_REASON = "; products round their factors to TensorFloat-32, several times faster on these tensor cores"
"""8 bits of range and 10 of fraction, summed in float32: finer than bfloat16, which trains well here."""


class Place(Protocol):
    """What the plan asks of a process among several: see distributed.Ranks."""

    @property
    def local_world(self) -> int:
        """Processes on this machine."""
        ...


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """Decisions, each with a line in `reasons`."""

    device: str
    """cpu, cuda, mps or xpu, as PyTorch calls them; ROCm is cuda there. The process's current device."""
    name: str
    dtype: str
    """Type of matrix products: float32, bfloat16 or float16. Weights and optimizer state stay float32."""
    use_scaler: bool
    """Whether gradients need a loss scale (float16)."""
    compile: bool
    compile_reason: str
    graphs: bool
    """Whether the passes of a micro-batch are replayed as a CUDA graph where they can be (passes.py)."""
    isolates_documents: bool
    """Whether hiding documents in a row from each other is worth its price here."""
    threads: int
    micro_batch_tokens: int
    """Most tokens in one forward pass."""
    memory_bytes: int
    """Memory for activations."""
    measures_memory: bool = False
    """Whether the device tells its memory, so that a micro-batch can be measured before training (probe.py)."""
    tf32: bool = False
    """Whether float32 products may round their factors to TensorFloat-32."""
    most_rows: int = 0
    """Most rows in one forward pass, learned where memory ran out; 0: not limited by rows."""
    reasons: tuple[str, ...] = ()

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch wants it."""
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The matrix products' dtype as PyTorch wants it."""
        return getattr(torch, self.dtype)

    def apply(self) -> None:
        """Set this process's threads and float32 precision and, on a processor, what it does with freed memory."""
        torch.set_num_threads(self.threads)
        if self.tf32:
            torch.set_float32_matmul_precision("high")
        if self.device == "cpu":
            keep_freed_memory()

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which models compute in this plan's dtype."""
        return torch.autocast(self.device, dtype=self.torch_dtype, enabled=self.dtype != "float32")

    def make_scaler(self) -> LossScaler | None:
        """A loss scaler for float16, else None."""
        return LossScaler() if self.use_scaler else None

    def for_model(self, model: ModelConfig) -> "DevicePlan":
        """The same plan with a micro-batch whose activations fit the memory."""
        element_bytes = 4 if self.dtype == "float32" else 2
        on_gpu = self.device != "cpu"
        fits = int(self.memory_bytes / activation_bytes_per_token(model, element_bytes, on_gpu=on_gpu))
        return replace(self, micro_batch_tokens=max(1, min(self.micro_batch_tokens, fits)))

    def micro_batch_rows(self, row_length: int, given: int = 0, n_rows: int = 0, together: int = 1) -> int:
        """Rows in one forward pass: as given, else as many as micro_batch_tokens allows, at least 1.

        n_rows: rows that this process has in a step, to be cut into equal parts; 0: any number. together: rows that
        stay in one forward pass, such as the two of a pair.
        """
        most = given or max(1, self.micro_batch_tokens // row_length)
        if self.most_rows:
            most = min(most, self.most_rows)
        if n_rows and (self.most_rows or not given):
            most = together * even_rows(n_rows // together, max(1, most // together))
        return most

    def describe(self) -> str:
        """One line for people: `AMD EPYC, 2 threads, bfloat16`."""
        parts = [self.name, *([f"{self.threads} threads"] if self.device == "cpu" else []), self.dtype]
        return ", ".join(
            [*parts, *(["compiled"] if self.compile else []), *(["CUDA graphs"] if self.graphs else [])]
        )

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the device."""
        return {
            "device": self.name,
            "device_kind": self.device,
            "dtype": self.dtype,
            "compiled": self.compile,
            "threads": self.threads,
            "micro_batch_tokens": self.micro_batch_tokens,
            "device_reasons": list(self.reasons),
        }


def even_rows(n_rows: int, most: int) -> int:
    """The largest divisor of n_rows up to `most`, so that all micro-batches of a step have one shape.

    A new shape is compiled again, and a last micro-batch of one row keeps a device waiting. Where no divisor is
    even half of `most` (31 rows of which 16 fit), small parts would cost more: then the last one is smaller.
    """
    if n_rows <= most:
        return max(1, n_rows)
    divisor = next(rows for rows in range(most, 0, -1) if n_rows % rows == 0)
    return divisor if 2 * divisor >= most else -(-n_rows // -(-n_rows // most))


def activation_bytes_per_token(model: ModelConfig, element_bytes: int, *, on_gpu: bool = False) -> float:
    """Upper estimate of what one token keeps for the backward pass, in bytes.

    Per block: residual stream and norms (8 d_model), queries, keys, values and attention output (4 head widths), and
    the MLP's three or four hidden vectors, for each expert of the token; then one float32 row of logits with its
    gradient. On a GPU also what `attention_route` may need: keys and values repeated for each query head, and one
    document mask for all blocks, a row of the context's length with the two of booleans that it is made from. On a
    CPU the mask is not counted, nor the probabilities that its short rows keep.
    """
    heads = (2 * model.n_heads + 2 * model.n_kv_heads) * model.head_dim
    heads += 2 * (model.n_heads - model.n_kv_heads) * model.head_dim if on_gpu else 0
    per_block = 8 * model.d_model + 2 * heads + 4 * n_mlps(model) * model.d_ff
    per_block += 2 * model.n_active_experts * model.d_model if model.n_experts else 0
    mask = (element_bytes + 2) * model.context_length if on_gpu else 0
    return model.n_layers * per_block * element_bytes + 2 * 4 * model.vocab_size + 16 * model.d_model + mask


# ---- decisions ---------------------------------------------------------------------------------------------


def plan_device(cfg: DeviceConfig, hardware: Hardware, place: Place | None = None) -> DevicePlan:
    """Device, dtype, compilation and the rest for this machine, with reasons.

    place: this process among others; threads are shared between the processes of a machine.
    Raises UserError when the configuration asks for what is not there.
    """
    kind = pick_kind(cfg.device, hardware)
    device = "cuda" if kind == "rocm" else kind
    dtype, dtype_reason = _pick_dtype(cfg.dtype, kind, hardware)
    use_compile, compile_reason = _pick_compile(cfg.compile, kind, hardware)
    graphs, graphs_reason = _pick_graphs(cfg.cuda_graphs, kind)
    local_world = place.local_world if place else 1
    threads = cfg.threads or max(1, hardware.cores // local_world)
    gpu = kind in ("cuda", "rocm", "xpu")
    if kind == "cpu":
        memory = min(CPU_ACTIVATION_BYTES, ACTIVATION_SHARE["cpu"] * hardware.ram_bytes) / local_world
    else:
        memory = ACTIVATION_SHARE["gpu"] * (hardware.memory_bytes or hardware.ram_bytes)
    tf32 = kind == "cuda" and dtype == "float32" and hardware.capability >= (8, 0)
    left_out = hardware.lacks_kernels() if cfg.device == "auto" else ""
    return DevicePlan(
        device=device,
        name=hardware.cpu_name if kind == "cpu" else hardware.name,
        dtype=dtype,
        use_scaler=dtype == "float16",
        compile=use_compile,
        compile_reason=compile_reason,
        graphs=graphs,
        isolates_documents=gpu,
        threads=threads,
        micro_batch_tokens=GPU_MICRO_BATCH_TOKENS if gpu else CPU_MICRO_BATCH_TOKENS,
        memory_bytes=int(memory),
        measures_memory=device == "cuda",
        tf32=tf32,
        reasons=(
            *([f"not on {hardware.name}: {left_out}"] if left_out else []),
            f"dtype {dtype}: {dtype_reason}{TF32_REASON if tf32 else ''}",
            f"{'compiled' if use_compile else 'not compiled'}: {compile_reason}",
            *([graphs_reason] if graphs_reason else []),
            f"a document mask is {_mask_price(kind, hardware, dtype, use_compile)}",
        ),
    )


def _mask_price(kind: str, hardware: Hardware, dtype: str, compiled: bool) -> str:
    """What hiding documents from each other costs here."""
    if kind not in ("cuda", "rocm", "xpu"):
        return "slow: plain causal attention is faster"
    capability = hardware.capability if dtype != "float32" else (0, 0)
    if attention_route(kind, capability, masked=True, gqa=True, compiled=compiled) == "flex":
        return "cheap: attention skips what is hidden (FlexAttention)"
    return "affordable: attention computes what is hidden too, without keeping it"


def pick_kind(asked: str, hardware: Hardware) -> str:
    """cpu, cuda, rocm, mps or xpu: as asked, or the best there is.

    Raises UserError for a device that is not there.
    """
    base, colon, index = asked.partition(":")
    if base == "auto":
        return "cpu" if hardware.lacks_kernels() else hardware.accelerator or "cpu"
    if base == "cpu":
        return "cpu"
    if base in (hardware.accelerator, "cuda" if hardware.accelerator == "rocm" else ""):
        if colon and index != "0":
            variable = {
                "cuda": "CUDA_VISIBLE_DEVICES",
                "rocm": "HIP_VISIBLE_DEVICES",
                "xpu": "ZE_AFFINITY_MASK",
            }
            raise UserError(
                f"device.device = {asked!r}: one of several cards is chosen from outside: set "
                f"{variable.get(hardware.accelerator, 'CUDA_VISIBLE_DEVICES')}={index} and device.device={base}"
            )
        if reason := hardware.lacks_kernels():
            raise UserError(f"device.device = {asked!r}: {reason}; or use device.device=cpu")
        return hardware.accelerator
    found = hardware.accelerator or "only a processor"
    if base not in ("cuda", "rocm", "mps", "xpu"):
        raise UserError(
            f"device.device = {asked!r}: use one of auto, cpu, cuda, mps, xpu (found here: {found})"
        )
    raise UserError(
        f"device.device = {asked!r}: this PyTorch ({torch.__version__}) finds {found}; use device.device=auto, or "
        "install the driver and the build of PyTorch for that device (https://pytorch.org/get-started)"
    )


def _pick_dtype(asked: str, kind: str, hardware: Hardware) -> tuple[str, str]:
    best, reason = _best_dtype(kind, hardware)
    if asked in ("auto", best):
        return best, reason
    if asked == "float16" and kind == "cpu":
        # Measured: float16 products on an AVX-512 processor are hundreds of times slower than float32.
        return asked, f"as asked for, though a processor multiplies it hundreds of times slower than {best}"
    return asked, f"as asked for; auto would take {best}: {reason}"


def _best_dtype(kind: str, hardware: Hardware) -> tuple[str, str]:
    """The fastest dtype that trains well, and why."""
    if kind == "cpu":
        flags = ", ".join(sorted(hardware.cpu_flags & {"avx512_bf16", "amx_bf16", "bf16"}))
        speed = hardware.cpu_bf16_speed
        if not flags:
            return "float32", "the processor has no 16-bit matrix instructions"
        if 0 < speed < 1:
            return "float32", f"bfloat16 ({flags}) multiplies at {speed:.2f} of its speed here, measured"
        return "bfloat16", f"the processor multiplies it directly ({flags})"
    if kind == "cuda":
        version = ".".join(map(str, hardware.capability))
        if hardware.capability >= (8, 0):
            return "bfloat16", f"compute capability {version} has bfloat16 tensor cores"
        if hardware.capability >= (7, 0):
            return "float16", f"compute capability {version} has float16 tensor cores but no bfloat16"
        return "float32", f"compute capability {version} has no tensor cores"
    if kind == "rocm":
        # CDNA (gfx908, gfx90a, gfx94*, gfx95*) and RDNA 3 on (gfx11*, gfx12*) have bfloat16 matrix instructions.
        if hardware.arch.startswith(("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")):
            return "bfloat16", f"{hardware.arch} has bfloat16 matrix instructions"
        return "float16", f"{hardware.arch} is fast in float16 but not in bfloat16"
    if kind == "mps":
        return (
            "float32",
            "Apple GPUs compute float32 at about the rate of 16 bits, and it needs no loss scale",
        )
    return "bfloat16", "the GPU has bfloat16 matrix engines"


def _pick_compile(asked: str, kind: str, hardware: Hardware) -> tuple[bool, str]:
    obstacle = _compile_obstacle(kind, hardware)
    if asked == "off":
        return False, "as asked for"
    if asked == "on":
        if obstacle:
            raise UserError(f"device.compile = 'on': {obstacle}; install it, or use device.compile=auto")
        return True, "as asked for"
    if obstacle:
        return False, obstacle
    if kind == "cpu":
        return False, "the model's own kernels are as fast on a processor, without the wait for a compiler"
    return True, "one fused step is faster than many small kernels"


def _pick_graphs(asked: str, kind: str) -> tuple[bool, str]:
    """Whether passes are replayed as CUDA graphs, and what is said of it."""
    if kind not in ("cuda", "rocm"):
        if asked == "on":
            raise UserError(
                f"device.cuda_graphs = 'on': {kind} has no CUDA graphs; use device.cuda_graphs=auto"
            )
        return False, ""
    if asked == "on":
        return True, "CUDA graphs: as asked for"
    if asked == "off":
        return False, ""
    return False, "no CUDA graphs: whether they pay has not been measured; device.cuda_graphs=on tries them"


def _compile_obstacle(kind: str, hardware: Hardware) -> str:
    """Why torch.compile cannot work here; empty if it can."""
    if kind == "mps":
        return "torch.compile does not support this device well yet"
    if kind == "cpu":
        if not hardware.compiler:
            return "no C++ compiler was found (g++ or clang++)"
        return "" if hardware.python_headers else "Python's headers are not installed (python3-dev)"
    if kind == "cuda" and hardware.capability < (7, 0):
        return "Triton needs compute capability 7.0"
    return "" if hardware.triton else "Triton is not installed"


def fast_dtype(device: torch.device) -> torch.dtype:
    """The type of matrices that the device that is here multiplies fastest, whatever the plan was told."""
    hardware = detect()
    kind = "rocm" if device.type == "cuda" and hardware.accelerator == "rocm" else device.type
    return getattr(torch, _best_dtype(kind, hardware)[0])


# ---- what acts on the plan ---------------------------------------------------------------------------------


def compile_model(model: Transformer, plan: DevicePlan, backend: Compiler = "inductor") -> str:
    """Compile the parts of the model's training passes where the plan says so; returns why not, or an empty string.

    One graph serves all blocks, one the last norm and one the loss; what keeps no gradients, validation and sampling,
    runs uncompiled, as its shapes come once or twice and compiling them would take longer than they do.
    A small function is compiled first: where that fails, or later a part of the model does, it runs eagerly.
    Parameter names stay as they are.
    """
    if not plan.compile:
        return plan.compile_reason
    try:
        probe = torch.compile(lambda x: x.sin() + 1, backend=backend)
        probe(torch.zeros(8, device=plan.torch_device))
    except Exception as failure:  # whatever a compiler tool chain can raise; eager training works without it
        return f"torch.compile failed here: {first_line(failure)}"
    compiled: list[Any] = [Compiled(part, backend) for part in PLAIN]
    model.training_parts = Parts(*compiled)
    return ""
