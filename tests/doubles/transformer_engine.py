"""A double of Transformer Engine in plain torch, so that Megatron-Core's own wrappers of it run without a GPU.

It says that it is the version that a GPU host gets (requirements/gpu_host.txt), and Megatron-Core's wrappers ask that
version for what to import and to pass; a keyword that it takes is one that that version takes (tests/gpu asks it). It
proves wiring: which modules the layer spec ``transformer_engine`` builds, what they are given, under which names
their parameters are stored. It is strict where Transformer Engine is (formats, boundaries, mask types, arguments), its
weights are NaN until somebody sets them, and it has one tensor rank. What Transformer Engine computes, how fast, and
whether its kernels take these shapes, only a GPU can say: tests/gpu.

Shape suffixes: T packed tokens, A heads, D head size.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from tools.offline_wheels import listed

_LIST = Path(__file__).resolve().parents[2] / "requirements" / "gpu_host.txt"
(VERSION,) = (line.partition("==")[2] for line in listed(_LIST) if line.startswith("transformer_engine=="))
MASKS: Counter[str] = Counter()  # mask types that attention was called with


def _unset(*shape: int, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full(shape, torch.nan, dtype=dtype))


def _mark(parameter: torch.nn.Parameter, cut: int) -> None:
    """As Transformer Engine does for Megatron; it refuses a parameter that is marked already."""
    for attribute, value in (("tensor_model_parallel", True), ("partition_dim", cut), ("partition_stride", 1)):
        assert not hasattr(parameter, attribute), attribute
        setattr(parameter, attribute, value)


class _Module(torch.nn.Module):
    """Transformer Engine's modules have an extra state, empty where nothing is quantised."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        assert state is None or state.numel() == 0


class _Linear(_Module):
    """``parallel_mode`` decides which of its parameters it marks as cut."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        sequence_parallel: bool,
        fuse_wgrad_accumulation: bool,
        tp_group: Any,
        tp_size: int,
        get_rng_state_tracker: Any,
        init_method: Any,
        bias: bool,
        return_bias: bool,
        parallel_mode: str,
        params_dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        assert tp_size == 1 and not sequence_parallel, "the double has one tensor rank"
        assert not fuse_wgrad_accumulation
        assert parallel_mode in ("column", "row"), parallel_mode
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.return_bias, self.parallel_mode = return_bias, parallel_mode
        self.weight = _unset(out_features, in_features, dtype=params_dtype)
        self.bias = _unset(out_features, dtype=params_dtype) if bias else None
        _mark(self.weight, 1 if parallel_mode == "row" else 0)
        if self.bias is not None and parallel_mode == "column":
            _mark(self.bias, 0)
        elif self.bias is not None:
            self.bias.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def _linear(self, x: torch.Tensor) -> Any:
        if self.return_bias:
            return functional.linear(x, self.weight), self.bias
        return functional.linear(x, self.weight, self.bias)


class Linear(_Linear):
    """Without a norm."""

    def __init__(self, in_features: int, out_features: int, *, rng_tracker_name: str | None, **linear: Any) -> None:
        super().__init__(in_features, out_features, **linear)
        assert rng_tracker_name is None, rng_tracker_name

    def forward(self, x: torch.Tensor, *, is_first_microbatch: bool | None = None) -> Any:
        return self._linear(x)


class LayerNormLinear(_Linear):
    """A norm and the linear layer after it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        eps: float,
        normalization: str,
        zero_centered_gamma: bool,
        return_layernorm_output: bool,
        **linear: Any,
    ) -> None:
        super().__init__(in_features, out_features, **linear)
        assert not zero_centered_gamma and not return_layernorm_output
        self.eps, self.normalization = eps, normalization
        self.layer_norm_weight = _unset(in_features, dtype=linear["params_dtype"])
        if normalization == "LayerNorm":
            self.layer_norm_bias = _unset(in_features, dtype=linear["params_dtype"])
        else:
            assert normalization == "RMSNorm", normalization

    def forward(self, x: torch.Tensor, *, is_first_microbatch: bool | None = None) -> Any:
        weight = self.layer_norm_weight
        if self.normalization == "RMSNorm":
            return self._linear(functional.rms_norm(x, weight.shape, weight, self.eps))
        return self._linear(functional.layer_norm(x, weight.shape, weight, self.layer_norm_bias, self.eps))


class RMSNorm(_Module):
    """``hidden_size`` is the name from before 1.12, which Megatron-Core still gives and 2.11 takes by keyword alone."""

    def __init__(
        self,
        *,
        hidden_size: int,
        eps: float,
        sequence_parallel: bool,
        zero_centered_gamma: bool,
        params_dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        assert not zero_centered_gamma
        self.eps = eps
        self.weight = _unset(hidden_size, dtype=params_dtype)
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(RMSNorm):
    def __init__(self, *, hidden_size: int, **given: Any) -> None:
        super().__init__(hidden_size=hidden_size, **given)
        self.bias = _unset(hidden_size, dtype=given["params_dtype"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class DotProductAttention(torch.nn.Module):
    """Attention of packed sequences ("thd"), each by itself."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int,
        *,
        num_gqa_groups: int,
        attention_dropout: float,
        attn_mask_type: str,
        attention_type: str,
        softmax_scale: float | None,
        sequence_parallel: bool,
        tp_size: int,
        tp_group: Any,
        get_rng_state_tracker: Any,
        layer_number: int,
    ) -> None:
        super().__init__()
        assert attention_type == "self" and attention_dropout == 0 and layer_number >= 1
        assert attn_mask_type in ("causal", "no_mask"), attn_mask_type
        self.heads, self.head_size, self.groups = num_attention_heads, kv_channels, num_gqa_groups
        self.scale, self.masks = softmax_scale, {"causal": "padding_causal", "no_mask": "padding"}[attn_mask_type]

    def forward(
        self,
        query_TAD: torch.Tensor,
        key_TAD: torch.Tensor,
        value_TAD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        attn_mask_type: str,
        qkv_format: str,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_kv: torch.Tensor,
        cu_seqlens_q_padded: torch.Tensor | None,
        cu_seqlens_kv_padded: torch.Tensor | None,
        max_seqlen_q: int,
        max_seqlen_kv: int,
        num_splits: int = 1,
    ) -> torch.Tensor:
        """[T, A, D] three times -> [T, A * D]."""
        assert qkv_format == "thd" and attention_mask is None
        assert attn_mask_type == self.masks, (attn_mask_type, self.masks)
        assert num_splits == 1, num_splits
        assert cu_seqlens_q_padded is None and cu_seqlens_kv_padded is None, "padding is for context parallelism"
        assert query_TAD.shape[1:] == (self.heads, self.head_size), query_TAD.shape
        assert key_TAD.shape == value_TAD.shape == (len(query_TAD), self.groups, self.head_size), key_TAD.shape
        for boundaries, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_kv, max_seqlen_kv)):
            assert boundaries.dtype == torch.int32 and int(boundaries[0]) == 0 and int(boundaries[-1]) == len(query_TAD)
            assert type(longest) is int and longest == int(boundaries.diff().max())
        MASKS[attn_mask_type] += 1
        ends = cu_seqlens_q.tolist()
        found = [
            functional.scaled_dot_product_attention(
                *(tensor[start:end].transpose(0, 1)[None] for tensor in (query_TAD, key_TAD, value_TAD)),
                is_causal=attn_mask_type == "padding_causal",
                scale=self.scale,
                enable_gqa=self.heads != self.groups,
            )[0].transpose(0, 1)
            for start, end in zip(ends, ends[1:], strict=False)
        ]
        return torch.cat(found).flatten(1)


def _not_doubled(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the layer spec routes nothing to experts")


class _NotDoubled:
    """What Megatron-Core's module names when it is imported, and our spec never makes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the layer spec makes nothing of this class")


_MODULES: dict[str, dict[str, Any]] = {
    "transformer_engine": {"__version__": VERSION},
    "transformer_engine.pytorch": {
        "DotProductAttention": DotProductAttention,
        "GroupedLinear": type("GroupedLinear", (_NotDoubled,), {}),
        "LayerNorm": LayerNorm,
        "LayerNormLinear": LayerNormLinear,
        "Linear": Linear,
        "RMSNorm": RMSNorm,
    },
    "transformer_engine.pytorch.ops": {"FusibleOperation": _NotDoubled, "Sequential": _NotDoubled},
    "transformer_engine.pytorch.distributed": {
        "CudaRNGStatesTracker": type("CudaRNGStatesTracker", (_NotDoubled,), {})
    },
    "transformer_engine.pytorch.router": dict.fromkeys(
        ("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss", "fused_topk_with_score_function"), _not_doubled
    ),
    "transformer_engine.pytorch.fp8": {"FP8GlobalStateManager": _NotDoubled, "fp8_autocast": _NotDoubled},
    "transformer_engine.common": {},
    "transformer_engine.common.recipe": {"DelayedScaling": type("DelayedScaling", (_NotDoubled,), {})},
}


def install() -> None:
    """Puts the double in Transformer Engine's place for the rest of this process; call it in one of its own.

    Megatron-Core is imported first, so that it meets the double in its wrappers alone: its optimizer stays torch's.
    """
    import megatron.core.optimizer  # noqa: F401

    import model_providers.qwen_vl.model  # noqa: F401

    assert "transformer_engine" not in sys.modules, "Transformer Engine itself is here: there is no need for a double"
    for name, members in _MODULES.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(members)
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    sys.modules.pop("megatron.core.extensions.transformer_engine", None)  # imported without it: made of stand-ins
