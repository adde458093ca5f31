"""The size of a model as formulas: parameters, arithmetic and memory, without building it and without torch.

Shapes: L layers, T tokens in a row, H query heads, K key/value heads, D head width, F width of the MLP's hidden
layer, V vocabulary, d width of the residual stream.
"""

from onesitting.config import ModelConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def count_parameters(cfg: ModelConfig) -> int:
    """Numbers in the model; a tied embedding counts once. Equal to the module's own count."""
    idle = cfg.n_experts - n_mlps(cfg) if cfg.n_experts else 0
    return count_active_parameters(cfg) + cfg.n_layers * idle * _count_mlp(cfg)


def count_active_parameters(cfg: ModelConfig) -> int:
    """Numbers that work on one token: all but the experts that it is not sent to."""
    return count_matrix_parameters(cfg) + _count_vectors(cfg) + _count_tables(cfg)


def count_matrix_parameters(cfg: ModelConfig) -> int:
    """Parameters that a token is multiplied with: the blocks' matrices, of its own experts only, and the output's."""
    d, heads, kv_heads = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    attention = 2 * d * heads + 2 * d * kv_heads
    mlp = n_mlps(cfg) * _count_mlp(cfg) + cfg.n_experts * d  # the router's matrix
    return cfg.n_layers * (attention + mlp) + cfg.vocab_size * d + cfg.n_scores * d


def n_mlps(cfg: ModelConfig) -> int:
    """MLPs of a block that work on a token: its experts, or the only one."""
    return cfg.n_active_experts if cfg.n_experts else 1


def _count_mlp(cfg: ModelConfig) -> int:
    """Numbers in the matrices of one MLP."""
    return (3 if cfg.mlp == "swiglu" else 2) * cfg.d_model * cfg.d_ff


def _count_vectors(cfg: ModelConfig) -> int:
    """Norm weights and biases."""
    norm = cfg.d_model * (2 if cfg.norm == "layer" and cfg.bias else 1)
    block = 2 * norm + (2 * cfg.head_dim if cfg.qk_norm else 0)
    if cfg.bias:
        block += (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim + cfg.d_model
        block += (2 if cfg.mlp == "swiglu" else 1) * cfg.d_ff + cfg.d_model
    return cfg.n_layers * block + norm


def _count_tables(cfg: ModelConfig) -> int:
    """Tables that are looked up only: an untied token embedding and learned positions."""
    rows = 0 if cfg.tie_embeddings or cfg.n_scores else cfg.vocab_size
    rows += cfg.context_length if cfg.positions == "learned" else 0
    return rows * cfg.d_model


def flops_per_token(cfg: ModelConfig, context: int, n_adapter: int = 0) -> int:
    """Floating-point operations of training on one token, forward and backward, in rows of `context` tokens.

    6 for each parameter that is multiplied (2 forward, 4 backward), and attention's two products over the half of
    the row that a token sees on average. Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
    n_adapter: parameters of an adapter, if one is trained: the frozen weights then need no gradient of their own,
    which saves 2 of their 6.
    """
    attention = 2 * 2 * cfg.n_heads * cfg.head_dim * context // 2
    products = (4 if n_adapter else 6) * count_matrix_parameters(cfg) + 6 * n_adapter
    return products + 3 * cfg.n_layers * attention


def training_memory_bytes(
    cfg: ModelConfig, micro_batch_rows: int, context: int, dtype: str = "float32"
) -> int:
    """Estimated peak of one training step, beside the program itself: state, activations, and the loss.

    dtype: of the matrix products (float32, bfloat16 or float16). State is 16 bytes a parameter: float32 weight,
    gradient and two optimizer moments; Muon keeps one, so this is a little high.
    """
    size, tokens = BYTES[dtype], micro_batch_rows * context
    d, heads, kv_heads = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    # Kept for the backward pass. Norms: unit vectors and what they feed. Attention: q, k, v and y, and q and k
    # before their own norm; probabilities of the half of the row that is seen. MLP: its inner activations.
    attention = 2 * d + 2 * heads + 2 * kv_heads + cfg.n_heads * context // 2
    if cfg.qk_norm:
        attention += heads + kv_heads
    mlp = 2 * d + n_mlps(cfg) * (4 if cfg.mlp == "swiglu" else 2) * cfg.d_ff
    if cfg.n_experts:
        mlp += 2 * cfg.n_active_experts * d  # each expert's copy of its tokens, and what it gives back
    activations = tokens * size * (cfg.n_layers * (attention + mlp) + 3 * d)
    cast_weights = count_parameters(cfg) * size if size < 4 else 0
    loss = 4 * cfg.vocab_size * d + 3 * 4 * max(
        2**20, 64 * cfg.vocab_size
    )  # its gradient; one chunk of logits
    return 16 * count_parameters(cfg) + activations + cast_weights + loss


def kv_cache_bytes(cfg: ModelConfig, rows: int, tokens: int, dtype: str = "float32") -> int:
    """Bytes of `rows` slots of `tokens` tokens; a KVCache has a slot more, and slots of whole pieces."""
    return 2 * cfg.n_layers * rows * cfg.n_kv_heads * tokens * cfg.head_dim * BYTES[dtype]
