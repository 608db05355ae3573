"""Bytes that one microbatch leaves for the backward pass, by recompute setting; docs/planning.md compares them with
what saved-tensor hooks see.

Every term names what saves it. T tokens, H hidden, e bytes of an element; with sequence parallelism what lies between
the parallel regions is cut over the tensor ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_apo.planning.sizes import ModelSize
from megatron_apo.planning.state import BYTES


@dataclass(frozen=True)
class Budget:
    """One microbatch: packed tokens of the language model, patches of the vision tower."""

    tokens: int
    patches: int
    dtype: str = "bfloat16"
    chunk: int = 1024  # rows of logits in memory at a time


def _layer(
    tokens: float, width: int, heads: float, kv: float, ffn: float, e: int, recompute: str, split: int, gates: int
) -> float:
    """One layer's bytes; ``heads`` and ``kv`` are query and key widths of this rank, ``ffn`` its width there."""
    between = tokens / split * width
    if recompute == "full":
        return between * e  # the layer's input
    half = e == 2
    # A norm saves its input; in half precision the float32 copy of it, and the normed tokens before their weight.
    norm = between * (4 + e if half else e)
    attention = (heads + 2 * kv) * e * tokens + heads * e * tokens  # q, k, v; what the projection reads
    projected = between * e  # normed tokens, the input of the first matrix
    mlp = tokens * ffn * e * (gates + 2 if gates == 2 else 2)  # product, its activation, the gated product
    return 2 * norm + 2 * projected + attention + mlp


def language_layer(model: ModelSize, budget: Budget, *, tensor: int, sequence: bool, recompute: str) -> float:
    """Bytes of one language layer."""
    heads = model.heads * model.head_size / tensor
    kv = model.kv_heads * model.head_size / tensor
    split = tensor if sequence else 1
    return _layer(
        budget.tokens, model.hidden, heads, kv, model.ffn / tensor, BYTES[budget.dtype], recompute, split, 2
    )  # fmt: skip


def vision_tower(model: ModelSize, budget: Budget, *, tensor: int, recompute: str) -> float:
    """Bytes of the tower and its merger; it is not cut along the patches."""
    e, width = BYTES[budget.dtype], model.v_hidden
    gates = 2 if model.v_gated else 1
    layer = _layer(
        budget.patches, width, width / tensor, width / tensor, model.v_ffn / tensor, e, recompute, 1, gates
    )  # fmt: skip
    patches = budget.patches * model.v_patch_values * e
    merger = budget.patches * (width * (2 * e if e == 4 else 4 + 2 * e) + width / tensor * 2 * e)
    return patches + model.v_layers * layer + merger


def head(model: ModelSize, budget: Budget, *, tensor: int) -> float:
    """Bytes of the fused head: final hidden states, one float32 chunk of logits and its gradient, the gradient of the
    output matrix before it joins the buffer."""
    e, vocab = BYTES[budget.dtype], -(-model.vocab // tensor)
    rows = min(budget.chunk, budget.tokens)
    return budget.tokens * model.hidden * 2 * e + rows * vocab * (4 + e) + vocab * model.hidden * e
