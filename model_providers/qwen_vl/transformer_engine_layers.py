"""The layer spec ``transformer_engine``: the same layers from NVIDIA's fused kernels, for GPUs.

Each norm is fused into the linear layer after it (hence the other parameter names in ``weight_map``), and attention
takes the packed sequences by their boundaries, without padding. Importing this module where Transformer Engine is not
usable raises ValueError: Megatron-Core itself would go on with stand-ins that compute nothing.

Shape suffixes: T packed tokens, A heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

try:
    import transformer_engine.pytorch  # noqa: F401 - raises what Megatron-Core would pass over
except (ImportError, RuntimeError, OSError) as error:
    raise ValueError(
        f"model.layer_spec=transformer_engine: Transformer Engine cannot be imported here ({error}); set "
        "model.layer_spec=local, or install transformer-engine on a machine with an NVIDIA GPU"
    ) from error

from megatron.core.extensions.transformer_engine import (
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
)

from model_providers.qwen_vl.layers import PackedLayout


class PackedTEAttention(TEDotProductAttention):
    """Transformer Engine's attention over the boundaries of a ``PackedLayout``.

    The layout calls itself "sbhd" for Megatron's rotary code (see layers.py); here it becomes Transformer Engine's
    "thd", in which a sequence sees itself alone. Its kernels for it need bfloat16 or float16.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        num_splits: int | None = None,
    ) -> torch.Tensor:
        """query [T, 1, A, D], key and value [T, 1, A_kv, D] -> [T, 1, A * D]."""
        if not isinstance(packed_seq_params, PackedLayout):
            raise ValueError(f"packed_seq_params={packed_seq_params!r}: make it with layers.packed_layout(cu_seqlens)")
        shared = packed_seq_params.context is not None
        boundaries = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=packed_seq_params.cu_seqlens_q,
            cu_seqlens_kv=packed_seq_params.cu_seqlens_kv,
            # Under context parallelism its kernels find each rank's share by these; padding is part of a sequence here.
            cu_seqlens_q_padded=packed_seq_params.cu_seqlens_q if shared else None,
            cu_seqlens_kv_padded=packed_seq_params.cu_seqlens_kv if shared else None,
            max_seqlen_q=packed_seq_params.max_seqlen_q,
            max_seqlen_kv=packed_seq_params.max_seqlen_kv,
        )
        out = super().forward(
            query.squeeze(1),
            key.squeeze(1),
            value.squeeze(1),
            attention_mask,
            attn_mask_type,
            attention_bias=attention_bias,
            packed_seq_params=boundaries,
            num_splits=num_splits,
        )
        return out.reshape(out.shape[0], 1, -1)


def transformer_engine_layer(mask: AttnMaskType) -> ModuleSpec:
    """One transformer layer; ``mask`` is causal for the language model, no_mask for the vision tower."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=TELayerNormColumnParallelLinear,
                    core_attention=PackedTEAttention,
                    linear_proj=TERowParallelLinear,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def norm() -> Any:
    """The norm that stands alone: called with config, hidden_size and eps."""
    return TENorm
