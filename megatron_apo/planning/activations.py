"""Bytes that one microbatch leaves for the backward pass, by recompute setting, under the local layer spec.

tests/unit/planning/test_activations.py compares them with what saved-tensor hooks see. Every term names what saves it.
With sequence parallelism, what lies between the parallel regions is cut over the tensor ranks. Sequences, windows and
frames count as equally long: of unequal ones the attention keeps padded copies instead of the projections' outputs,
which comes to nearly the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megatron_apo.planning.sizes import ModelSize
from megatron_apo.planning.state import BYTES
from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE, padded_width


@dataclass(frozen=True)
class Budget:
    """One microbatch on one rank.

    ``tokens`` of the language model and ``patches`` of the vision tower; ``chunk`` rows of logits are in memory at a
    time.
    """

    tokens: int
    patches: int
    dtype: str = "bfloat16"
    chunk: int = 512


@dataclass(frozen=True)
class _Layer:
    """Widths of one layer on this rank: ``queries`` and ``keys`` in all heads together, ``product`` of the tensor that
    they and the values are cut from. ``split``: ranks that share what lies between the parallel regions; ``context``:
    ranks whose keys and values are gathered."""

    width: int
    queries: float
    keys: float
    product: float
    head_size: int
    ffn: float
    gated: bool
    e: int
    split: int = 1
    context: int = 1
    rms_norm: bool = True


def _norm(tokens: float, width: int, e: int, rms: bool) -> float:
    """torch's composite RMSNorm saves its input (in half precision a float32 copy) and the normed tokens; LayerNorm
    saves its input alone."""
    return tokens * width * ((4 + e if e == 2 else 2 * e) if rms else e)


def _attention(layer: _Layer, tokens: float, recompute: str) -> float:
    e, rotary = layer.e, 4 * tokens * layer.head_size * layer.e  # cos and sin, for queries and for keys
    read = layer.queries * tokens * e  # what the projection after it reads
    turned = (layer.queries + layer.keys) * tokens * e
    if recompute == "selective":
        return rotary + turned + layer.product * tokens * e + read  # the values keep the product that they lie in
    given = turned + (layer.queries + 2 * layer.keys) * tokens * e
    gathered = 2 * (layer.context - 1) * layer.keys * tokens * e
    log_sums = 4 * tokens * layer.queries / layer.head_size
    return rotary + given + read + log_sums + gathered


def _layer(layer: _Layer, tokens: float, recompute: str) -> float:
    between = tokens / layer.split
    if recompute == "full":
        return between * layer.width * layer.e  # the layer's input
    normed = between * layer.width * layer.e  # what the first matrix after a norm reads
    # The first product (twice as wide when gated) and its activation; Megatron's copy of the linear half (its offset of
    # zero makes one) and what the last matrix reads.
    mlp = tokens * layer.ffn * layer.e * (5 if layer.gated else 3)
    norms = 2 * (_norm(between, layer.width, layer.e, layer.rms_norm) + normed)
    return norms + _attention(layer, tokens, recompute) + mlp


def _language(model: ModelSize, budget: Budget, tensor: int, context: int, sequence: bool) -> _Layer:
    few = model.kv_heads < tensor  # then Megatron gathers the product of all tensor ranks
    return _Layer(
        width=model.hidden,
        queries=model.heads * model.head_size / tensor,
        keys=max(1, model.kv_heads / tensor) * model.head_size,
        product=(model.heads + 2 * model.kv_heads) * model.head_size / (1 if few else tensor),
        head_size=model.head_size,
        ffn=model.ffn / tensor,
        gated=True,
        e=BYTES[budget.dtype],
        split=tensor if sequence else 1,
        context=context,
    )


def language_layers(
    model: ModelSize,
    budget: Budget,
    layers: int,
    *,
    tensor: int = 1,
    context: int = 1,
    sequence: bool = False,
    recompute: str = "none",
) -> float:
    """Bytes that ``layers`` language layers save for one microbatch."""
    layer = _language(model, budget, tensor, context, sequence)
    return layers * _layer(layer, budget.tokens, recompute)


def recomputed(
    model: ModelSize, budget: Budget, *, tensor: int = 1, context: int = 1, sequence: bool = False, recompute: str
) -> float:
    """Bytes that exist for one layer at a time while the backward pass computes it again."""
    return _again(_language(model, budget, tensor, context, sequence), budget.tokens, recompute)


def _again(layer: _Layer, tokens: float, recompute: str) -> float:
    if recompute == "none":
        return 0.0
    if recompute == "full":
        return _layer(layer, tokens, "none")
    return _attention(layer, tokens, "none")


def _tower(model: ModelSize, budget: Budget, tensor: int, sequence: bool) -> _Layer:
    return _Layer(
        width=model.v_hidden,
        queries=model.v_hidden / tensor,
        keys=model.v_hidden / tensor,
        product=3 * model.v_hidden / tensor,
        head_size=model.v_hidden // model.v_heads,
        ffn=padded_width(model.v_ffn, VISION_FFN_MULTIPLE) / tensor,
        gated=model.v_gated,
        e=BYTES[budget.dtype],
        split=tensor if sequence else 1,
        rms_norm=model.v_gated,
    )


def vision_tower(
    model: ModelSize,
    budget: Budget,
    *,
    tensor: int = 1,
    sequence: bool = False,
    recompute: str = "none",
    frozen: Collection[str] = (),
) -> float:
    """Bytes of the tower and its merger; context ranks do not share the patches of an image. ``frozen``: "vision", the
    tower alone, saves nothing; with "merger" too nothing at all is saved."""
    if {"vision", "merger"} <= set(frozen):
        return 0.0
    e, width, patches = BYTES[budget.dtype], model.v_hidden, budget.patches
    layer = _tower(model, budget, tensor, sequence)
    between = patches / layer.split
    merger = _norm(between, width, e, model.v_gated) + (between + 2 * patches / tensor) * width * e
    if "vision" in frozen:
        return merger
    return patches * model.v_patch_values * e + model.v_layers * _layer(layer, patches, recompute) + merger


def recomputed_vision(
    model: ModelSize, budget: Budget, *, tensor: int = 1, sequence: bool = False, recompute: str
) -> float:
    """As ``recomputed``, for one layer of the tower."""
    return _again(_tower(model, budget, tensor, sequence), budget.patches, recompute)


def between_layers(model: ModelSize, budget: Budget) -> float:
    """Bytes in the backward pass that nothing saved: float32 copies of hidden states, a projection's input gathered
    again, gradients on their way. 18 bytes for each number of the hidden states, not cut over tensor ranks: the number
    fits what is allocated (tests/distributed/test_planned_activations.py), it is not derived."""
    return 18 * budget.tokens * model.hidden


def final_norm(model: ModelSize, budget: Budget, *, split: int = 1) -> float:
    """Bytes that the last stage's norm saves."""
    return _norm(budget.tokens / split, model.hidden, BYTES[budget.dtype], True)


def head(model: ModelSize, budget: Budget, *, tensor: int = 1) -> float:
    """Bytes of the fused head: the hidden states it reads, one float32 chunk of logits and its gradient. That of the
    output matrix is added to Megatron's buffer chunk by chunk."""
    e, vocab = BYTES[budget.dtype], -(-model.vocab // tensor)
    rows = min(budget.chunk, budget.tokens)
    return budget.tokens * model.hidden * e + rows * vocab * (4 + e)
