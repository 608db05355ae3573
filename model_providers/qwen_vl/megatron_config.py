"""Megatron-Core's TransformerConfig for both towers, from the model's shape and the layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.activations import quick_gelu
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE, padded_width
from model_providers.qwen_vl.shape import QwenVLShape

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class BuildSettings:
    """What a model is built with besides its shape. ``dtype`` is that of parameters and activations.

    The vision FFN is padded with zeros to a multiple of ``vision_ffn_multiple``, the same in every layout, so that
    checkpoints are; the tensor ranks must divide the padded width, and FP8 asks for 16 columns of it on each rank.
    ``default_device``: parameters come into being on torch's default device, as ``torch.device("meta")`` sets it,
    instead of Megatron's current one.
    """

    dtype: torch.dtype = torch.float32
    layer_spec: str = "local"
    recompute: str = "none"
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    first_stage_layers: int = 0  # 0: as many as the other stages
    context: int = 1
    sequence_parallel: bool = False
    vision_ffn_multiple: int = VISION_FFN_MULTIPLE
    default_device: bool = False


def _common(settings: BuildSettings) -> dict[str, Any]:
    if settings.recompute not in RECOMPUTE:
        raise ValueError(f"model.recompute={settings.recompute!r}: must be one of {', '.join(RECOMPUTE)}")
    recompute: dict[str, Any] = {}
    if settings.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    elif settings.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return dict(
        use_cpu_initialization=settings.default_device,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        cuda_graph_scope=[],  # Megatron's default is a spelling that it warns of
        perform_initialization=False,  # every weight is loaded from a checkpoint, and the loader checks it
        params_dtype=settings.dtype,
        bf16=settings.dtype == torch.bfloat16,
        tensor_model_parallel_size=settings.tensor,
        sequence_parallel=settings.sequence_parallel,
        calculate_per_token_loss=True,  # see training/forward_step.py
        **recompute,
    )


def language_config(shape: QwenVLShape, settings: BuildSettings) -> TransformerConfig:
    """Config of the language model."""
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_size,
        ffn_hidden_size=shape.ffn,
        layernorm_epsilon=shape.norm_epsilon,
        add_bias_linear=False,
        add_qkv_bias=True,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=functional.silu,
        mrope_section=list(shape.mrope_section),
        pipeline_model_parallel_size=settings.pipeline,
        virtual_pipeline_model_parallel_size=settings.virtual_pipeline if settings.virtual_pipeline > 1 else None,
        num_layers_in_first_pipeline_stage=settings.first_stage_layers or None,
        # Batched messages mix up the chunks of the interleaved schedule, and Megatron does not check.
        batch_p2p_comm=settings.virtual_pipeline == 1,
        overlap_p2p_comm=settings.virtual_pipeline > 1,
        context_parallel_size=settings.context,
        pipeline_dtype=settings.dtype,
        variable_seq_lengths=settings.pipeline > 1,  # each packed microbatch has its own length
        moe_token_dispatcher_type="alltoall",  # what variable_seq_lengths demands, dense models included
        **_common(settings),
    )


def vision_config(shape: QwenVLShape, settings: BuildSettings) -> TransformerConfig:
    """Config of the vision tower: on the first pipeline stage whole, cut like the language model."""
    vision = shape.vision
    return TransformerConfig(
        num_layers=vision.layers,
        hidden_size=vision.hidden,
        num_attention_heads=vision.heads,
        num_query_groups=vision.heads,
        kv_channels=vision.hidden // vision.heads,
        ffn_hidden_size=padded_width(vision.ffn, settings.vision_ffn_multiple),
        normalization=vision.norm,
        gated_linear_unit=vision.gated,
        activation_func=functional.silu if vision.gated else quick_gelu,
        layernorm_epsilon=1e-6,  # fixed in the published model code, not in its config
        add_bias_linear=True,
        add_qkv_bias=True,
        **_common(settings),
    )
