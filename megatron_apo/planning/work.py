"""What training on a token, an attention pair and an image patch costs, from the model's shape: FLOPs.

A product of [n, k] and [k, m] counts 2 n k m; norms, activations and rotary angles are left out. The backward pass
costs twice the forward pass; a frozen part has none, the reference model has a forward pass of its own, and full
recomputation runs every layer again.
"""

from __future__ import annotations

from megatron_apo.config import ModelConfig
from megatron_apo.data.costs import CostModel
from model_providers.qwen_vl.shape import QwenVLShape


def forward_costs(shape: QwenVLShape) -> CostModel:
    """FLOPs of one forward pass."""
    vision, heads = shape.vision, shape.heads * shape.head_size
    keys = 2 * shape.kv_heads * shape.head_size
    layer = 2 * shape.hidden * (2 * heads + keys + 3 * shape.ffn)  # q, k, v, output; gate, up, down
    v_layer = 2 * vision.hidden * (4 * vision.hidden + (3 if vision.gated else 2) * vision.ffn)
    merged = vision.hidden * vision.spatial_merge_size**2
    merger = 2 * merged * (merged + vision.out_hidden) / vision.spatial_merge_size**2
    full = len(vision.full_attention_layers)
    v_pair = 4 * vision.hidden  # a query times a key, and a weight times a value, in all heads
    return CostModel(
        per_token=shape.layers * layer,
        per_response_token=2 * shape.hidden * shape.vocab,
        per_pair=shape.layers * 4 * heads,
        per_patch=2 * vision.patch_values * vision.hidden + vision.layers * v_layer + merger,
        per_window_pair=(vision.layers - full) * v_pair,
        per_frame_pair=full * v_pair,
        window=vision.window_size // vision.patch_size,
    )


def training_costs(shape: QwenVLShape, model: ModelConfig, *, extra_forward: int = 0) -> CostModel:
    """FLOPs of one update: forward and backward, what ``model`` freezes or recomputes, and further forward passes
    (the reference model's, one that scores the old policy).

    The gradient of a layer's input is always needed: something before it or in it is trained.
    """
    forward = forward_costs(shape)
    passes = 1 + extra_forward
    again, attention_again = model.recompute == "full", model.recompute in ("selective", "full")
    weights = 0 if model.freeze_language else 1
    tower = passes + (0 if model.freeze_vision else 2 + again)
    tower_pairs = passes + (0 if model.freeze_vision else 2 + attention_again)
    return CostModel(
        per_token=(passes + again + 1 + weights) * forward.per_token,
        per_response_token=(passes + 2 + weights) * forward.per_response_token,  # the backward makes logits again
        per_pair=(passes + attention_again + 2) * forward.per_pair,
        per_patch=tower * forward.per_patch,
        per_window_pair=tower_pairs * forward.per_window_pair,
        per_frame_pair=tower_pairs * forward.per_frame_pair,
        window=forward.window,
    )
