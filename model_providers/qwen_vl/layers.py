"""Layer specs for both towers: ``local`` (Megatron-Core and torch, runs anywhere) and ``transformer_engine``.

Packed sequences travel as one batch row [T, 1, heads, size] with their boundaries in ``PackedLayout``. Its format is
not "thd" on purpose: Megatron's rotary code for "thd" restarts positions at each boundary unless the frequency table's
length matches exactly, silently; with a frequency per token it must not look at boundaries at all.

Shape suffixes: T packed tokens (of this context rank), N sequences of a bucket, S longest of them, Q its piece,
A heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch.nn import functional

from model_providers.qwen_vl.buckets import Buckets, bucketed
from model_providers.qwen_vl.context import ContextLayout, ContextShare
from model_providers.qwen_vl.weight_map import STORED_NORMS

LAYER_SPECS = ("local", "transformer_engine")


@dataclass
class PackedLayout(PackedSeqParams):
    """Boundaries of the packed sequences.

    ``context`` says what this rank has of them where context ranks share the sequences; the boundaries are those of the
    whole sequences then.
    """

    context: ContextShare | None = None

    @cached_property
    def buckets(self) -> Buckets:
        """The local attention's gathers and masks, made when first asked for: Transformer Engine needs none."""
        assert self.cu_seqlens_q is not None
        return bucketed(self.cu_seqlens_q)


def packed_layout(
    cu_seqlens: torch.Tensor, max_seqlen: int, *, context_rank: int = 0, context_size: int = 1
) -> PackedLayout:
    """Layout of sequences with int32 boundaries ``cu_seqlens`` [N + 1], the longest of ``max_seqlen`` tokens.

    With ``context_size`` above 1, of this rank's share (``context.context_rows``) in causal attention; every sequence
    must then be a multiple of 2 * ``context_size`` tokens long (else ValueError, from the rows or the attention).
    """
    boundaries: dict[str, Any] = dict(
        qkv_format="sbhd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )
    share = ContextShare(cu_seqlens, context_rank, context_size) if context_size > 1 else None
    return PackedLayout(**boundaries, context=share)


class PackedAttention(MegatronModule):
    """Core attention over packed sequences: a batched SDPA over each bucket's padded [N, S], no [T, T] mask.

    Right padding needs no mask under causal attention: a real token never looks to its right. Context ranks gather each
    other's keys and values, and sum the gradients of their own over all ranks on the way back.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.causal = attn_mask_type == AttnMaskType.causal
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """query [T, 1, A, D], key and value [T, 1, A_kv, D] -> [T, 1, A * D]."""
        if not isinstance(packed_seq_params, PackedLayout):
            raise ValueError(f"packed_seq_params={packed_seq_params!r}: make it with layers.packed_layout(cu_seqlens)")
        layout = packed_seq_params
        if self.context_group is not None:
            if layout.context is None:
                raise ValueError(
                    f"packed_seq_params: made for one context rank, this model has {self.context_group.size()}; give "
                    "layers.packed_layout context_rank and context_size"
                )
            return self._context_forward(query, key, value, layout.context.attention)
        parts, pad = [], _gathered if layout.buckets.unpad_index_T is not None else _viewed
        for bucket in layout.buckets.buckets:
            query_NASD, key_NASD, value_NASD = (
                pad(tensor.squeeze(1), bucket.pad_index_NS) for tensor in (query, key, value)
            )
            masked = not self.causal and bucket.key_mask_NS is not None
            out_NASD = functional.scaled_dot_product_attention(
                query_NASD,
                key_NASD,
                value_NASD,
                attn_mask=bucket.key_mask_NS[:, None, None, :] if masked and bucket.key_mask_NS is not None else None,
                is_causal=self.causal,
                scale=self.softmax_scale,
                enable_gqa=query.shape[2] != key.shape[2],
            )
            parts.append(out_NASD.transpose(1, 2).flatten(2).flatten(0, 1))
        return _unpad(parts, layout.buckets.unpad_index_T)

    def _context_forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: ContextLayout
    ) -> torch.Tensor:
        """This rank's queries against the keys and values of all context ranks."""
        pairs = gather_from_sequence_parallel_region(torch.cat((key, value), dim=-1), group=self.context_group)
        parts = []
        for bucket in context.buckets:
            pairs_NASD = _gathered(pairs.squeeze(1), bucket.key_index_NS)
            key_NASD, value_NASD = pairs_NASD.split((key.shape[-1], value.shape[-1]), dim=-1)
            for index_NQ, columns, mask in zip(bucket.query_index_2NQ, bucket.key_columns, bucket.masks, strict=True):
                piece = functional.scaled_dot_product_attention(
                    _gathered(query.squeeze(1), index_NQ),
                    key_NASD[:, :, :columns],
                    value_NASD[:, :, :columns],
                    attn_mask=mask,
                    scale=self.softmax_scale,
                    enable_gqa=query.shape[2] != key.shape[2],
                )
                parts.append(piece.transpose(1, 2).flatten(2).flatten(0, 1))
        return _unpad(parts, context.unpad_index_R)


def _gathered(tensor_TAD: torch.Tensor, index_NS: torch.Tensor) -> torch.Tensor:
    """[T, A, D] -> [N, A, S, D]."""
    return tensor_TAD.index_select(0, index_NS.reshape(-1)).view(*index_NS.shape, *tensor_TAD.shape[1:]).transpose(1, 2)


def _viewed(tensor_TAD: torch.Tensor, index_NS: torch.Tensor) -> torch.Tensor:
    """``_gathered`` where the index only counts: one bucket of equally long sequences, nothing to copy."""
    return tensor_TAD.reshape(*index_NS.shape, *tensor_TAD.shape[1:]).transpose(1, 2)


def _unpad(parts: list[torch.Tensor], index_T: torch.Tensor | None) -> torch.Tensor:
    """Cells [.., A * D] of all buckets -> [T, 1, A * D]."""
    cells = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (cells if index_T is None else cells.index_select(0, index_T)).unsqueeze(1)


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm in fp32, result in the input's dtype (arXiv:1910.07467).

    Its weight carries Megatron's ``sequence_parallel`` flag, which torch's wrapped norm refuses: under sequence
    parallelism each rank sees part of the tokens, and the weight's gradient is summed over the ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype == torch.float32:
            return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        normed = functional.rms_norm(hidden.float(), self.weight.shape, None, self.eps)
        return self.weight * normed.to(hidden.dtype)


class LayerNorm(torch.nn.Module):
    """Layer norm with weight and bias (arXiv:1607.06450); torch computes it in fp32 within, whatever the dtype."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


LOCAL_NORMS = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}


def _local_layer(mask: AttnMaskType, normalization: str) -> ModuleSpec:
    norm = LOCAL_NORMS[normalization]
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=PackedAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=dict(STORED_NORMS),
        ),
    )


def _transformer_engine_layer(mask: AttnMaskType) -> ModuleSpec:
    from model_providers.qwen_vl.transformer_engine_layers import transformer_engine_layer

    return transformer_engine_layer(mask)


def layer_spec(name: str, mask: AttnMaskType, normalization: str = "RMSNorm") -> ModuleSpec:
    """One transformer layer; ``mask`` is causal for the language model, no_mask for the vision tower.

    ``normalization`` is that of its config, "RMSNorm" or "LayerNorm"; Transformer Engine reads it from there.
    """
    if name == "local":
        return _local_layer(mask, normalization)
    if name == "transformer_engine":
        return _transformer_engine_layer(mask)
    raise ValueError(f"model.layer_spec={name!r}: must be one of {', '.join(LAYER_SPECS)}")


def norm_class(name: str, normalization: str = "RMSNorm") -> Any:
    """The norm that stands alone (final norm, merger) in the spec ``name``."""
    if name == "transformer_engine":
        from model_providers.qwen_vl.transformer_engine_layers import norm

        return norm()
    return LOCAL_NORMS[normalization]


def block_spec(name: str, mask: AttnMaskType, layers: int) -> TransformerBlockSubmodules:
    """``layers`` layers (those of this pipeline stage) and the final norm."""
    return TransformerBlockSubmodules(layer_specs=[layer_spec(name, mask)] * layers, layer_norm=norm_class(name))
