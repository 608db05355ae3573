"""Where Transformer Engine is missing, asking for it is one clear error; nothing computes with stand-ins."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from model_providers.qwen_vl.layers import layer_spec, norm_class
from model_providers.qwen_vl.weight_map import weight_map
from tests.unit.model_providers.test_shape import SHAPE_3B


@pytest.mark.skipif(torch.cuda.is_available(), reason="Transformer Engine may be usable here")
def test_missing_transformer_engine_is_named_each_time() -> None:
    message = r"model\.layer_spec=transformer_engine: .* cannot be imported here .* set model\.layer_spec=local"
    for _ in range(2):  # the second import must not find a half-made module
        with pytest.raises(ValueError, match=message):
            layer_spec("transformer_engine", AttnMaskType.causal)
        with pytest.raises(ValueError, match=message):
            norm_class("transformer_engine")


def test_an_unknown_spec_is_named() -> None:
    with pytest.raises(ValueError, match="model.layer_spec='apex': must be one of local, transformer_engine"):
        layer_spec("apex", AttnMaskType.causal)


def test_fused_norms_have_other_names_for_the_same_tensors() -> None:
    local, fused = (weight_map(SHAPE_3B, transformer_engine=choice) for choice in (False, True))
    assert [row.hf for row in local] == [row.hf for row in fused]
    moved = {one.megatron: other.megatron for one, other in zip(local, fused, strict=True) if one != other}
    assert len(moved) == 2 * (36 + 32)
    layer = "language_model.decoder.layers.0"
    assert moved[f"{layer}.input_layernorm.weight"] == f"{layer}.self_attention.linear_qkv.layer_norm_weight"
    assert moved[f"{layer}.pre_mlp_layernorm.weight"] == f"{layer}.mlp.linear_fc1.layer_norm_weight"


def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes that a module's source defines, read without importing it."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _parameters(owner: ast.ClassDef, method: str) -> list[str]:
    found = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == method)
    return [argument.arg for argument in (*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs)]


def test_the_fused_spec_names_what_megatron_has() -> None:
    """Not importable here, so by its source: classes, and the arguments that Megatron and the spec give them."""
    megatron = _classes("megatron.core.extensions.transformer_engine")
    ours = _classes("model_providers.qwen_vl.transformer_engine_layers")["PackedTEAttention"]
    assert _parameters(ours, "forward") == _parameters(megatron["TEDotProductAttention"], "forward")
    given = {
        "TEDotProductAttention": {"config", "layer_number", "attn_mask_type", "softmax_scale", "pg_collection"},
        "TELayerNormColumnParallelLinear": {"config", "init_method", "bias", "skip_bias_add", "tp_group"},
        "TERowParallelLinear": {"config", "init_method", "bias", "skip_bias_add", "input_is_parallel", "tp_group"},
    }
    for name, arguments in given.items():
        assert arguments <= set(_parameters(megatron[name], "__init__")), name
    assert {"config", "hidden_size", "eps"} <= set(_parameters(megatron["TENorm"], "__new__"))
    fields = {node.target.id for node in _classes("megatron.core.packed_seq_params")["PackedSeqParams"].body
              if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}  # fmt: skip
    assert {f"{kind}_{side}" for kind in ("cu_seqlens", "max_seqlen") for side in ("q", "kv")} <= fields
    assert {"cu_seqlens_q_padded", "cu_seqlens_kv_padded", "qkv_format"} <= fields
