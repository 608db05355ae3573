"""Where Transformer Engine is missing, asking for it is one clear error; nothing computes with stand-ins."""

from __future__ import annotations

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
