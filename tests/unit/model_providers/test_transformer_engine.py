"""Where Transformer Engine is missing, asking for it is one clear error; on a double, the spec is wired right."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType

from model_providers.qwen_vl.layers import layer_spec, norm_class
from model_providers.qwen_vl.weight_map import weight_map
from tests.distributed.launcher import Case, run_cases
from tests.gradients import BOUND
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


FORMS = [("qwen2_5_vl", False), ("qwen2_5_vl", True), ("qwen2_vl", False)]
CROSSED = [("qwen2_5_vl", "local", "transformer_engine"), ("qwen2_vl", "transformer_engine", "local")]


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the double of Transformer Engine, in a process beside this one."""
    if find_spec("transformer_engine") is not None:
        pytest.skip("Transformer Engine itself is here: tests/gpu")
    root = tmp_path_factory.mktemp("wired")
    cases = [
        Case("tests.distributed.wiring:compare", 1, str(root / f"{family}-{tied}"), {"family": family, "tied": tied})
        for family, tied in FORMS
    ]
    cases += [
        Case(
            "tests.distributed.wiring:continue_in_the_other",
            1,
            str(root / f"{family}-{first}-{second}"),
            {"family": family, "first": first, "second": second},
        )
        for family, first, second in CROSSED
    ]
    run_cases(cases)
    return root


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("family", "tied"), FORMS)
def test_the_fused_spec_is_wired_like_the_local_one(wired: Path, family: str, tied: bool, recompute: str) -> None:
    """Logits and every gradient; the tower attends without a mask, the language model causally, both by boundaries."""
    found = json.loads((wired / f"{family}-{tied}" / "errors.json").read_text())[recompute]
    print(f"\n{family}, tied={tied}, {recompute}: logits {found['logits']:.1e}, gradients {found['gradients']:.1e}")
    assert found["logits"] < 1e-4
    assert found["gradients"] <= BOUND, found["worst"]
    times = {"none": 1, "selective": 2, "full": 2}[recompute]
    assert found["masks"] == {"padding": 3 * times, "padding_causal": 2 * times}  # three layers and two


@pytest.mark.parametrize(("family", "first", "second"), CROSSED)
def test_a_checkpoint_of_one_spec_is_continued_in_the_other(wired: Path, family: str, first: str, second: str) -> None:
    """Weights and Adam's moments to the last bit; the next update's loss to rounding."""
    found = json.loads((wired / f"{family}-{first}-{second}" / "continued.json").read_text())
    assert found["tensors"] > 50 and found["differ"] == []
    assert found["losses"][1] == pytest.approx(found["losses"][0], rel=1e-5)


def test_the_context_boundaries_of_the_fused_attention_exist() -> None:
    """The double has one context rank: what the spec would give more of them, by Megatron's own class."""
    fields = {field.name for field in dataclasses.fields(PackedSeqParams)}
    assert {f"{kind}_{side}" for kind in ("cu_seqlens", "max_seqlen") for side in ("q", "kv")} <= fields
    assert {"cu_seqlens_q_padded", "cu_seqlens_kv_padded", "qkv_format"} <= fields
