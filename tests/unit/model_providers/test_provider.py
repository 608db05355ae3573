"""Megatron's conventional callable gives the model with its weights, of the family that was asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_apo.parallel.groups import Groups
from model_providers.qwen2_5_vl import provider as of_qwen2_5_vl
from model_providers.qwen2_vl import provider as of_qwen2_vl
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape
from tests.unit.model_providers.reference import build_model, make_checkpoint

PROVIDERS = {"qwen2_5_vl": of_qwen2_5_vl.model_provider_for, "qwen2_vl": of_qwen2_vl.model_provider_for}


@pytest.fixture(scope="module", params=PROVIDERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(family), tied=False, family=family)


def test_the_model_has_its_weights(family: str, checkpoint: Path, one_process: Groups) -> None:
    model = PROVIDERS[family](checkpoint, BuildSettings())(pre_process=True, post_process=True, vp_stage=None)
    expected = build_model(checkpoint, one_process)
    for (name, one), other in zip(expected.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_both_ways_of_calling_it_give_one_model(checkpoint: Path, family: str, one_process: Groups) -> None:
    """The three words of old, and all five that Megatron's ``get_model`` gives."""
    provider = PROVIDERS[family](checkpoint, BuildSettings())
    short = provider(pre_process=True, post_process=True)
    long = provider(
        pre_process=True, post_process=True, vp_stage=0, config=script_config(), pg_collection=one_process.collection
    )
    assert long.pg_collection is one_process.collection
    for (name, one), other in zip(short.named_parameters(), long.parameters(), strict=True):
        assert torch.equal(one, other), name


def script_config(**changes: Any) -> TransformerConfig:
    """A TransformerConfig as a script makes it of its arguments: it knows nothing of the checkpoint."""
    known = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "calculate_per_token_loss": True}
    return TransformerConfig(**(known | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tensor_model_parallel_size": 2},
            "tensor_model_parallel_size=2, the provider's is 1 (set BuildSettings.tensor",
        ),
        (
            {"tensor_model_parallel_size": 2, "sequence_parallel": True},
            "sequence_parallel=True, the provider's is False (set BuildSettings.sequence_parallel",
        ),
        (
            {"pipeline_model_parallel_size": 4, "pipeline_dtype": torch.float32},
            "pipeline_model_parallel_size=4, the provider's is 1",
        ),
        ({"context_parallel_size": 2}, "context_parallel_size=2, the provider's is 1"),
        ({"params_dtype": torch.bfloat16}, "params_dtype=torch.bfloat16, the provider's is torch.float32"),
        ({"calculate_per_token_loss": False}, "calculate_per_token_loss=False, the provider's is True (the only value"),
    ],
)
def test_a_config_that_contradicts_the_settings(
    checkpoint: Path, family: str, one_process: Groups, changes: dict[str, Any], message: str
) -> None:
    provider = PROVIDERS[family](checkpoint, BuildSettings(), load_weights=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        provider(config=script_config(**changes), pg_collection=one_process.collection)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor": 2}, "the settings say tensor 2 but its process group has 1"),
        ({"pipeline": 2}, "the settings say pipeline 2 but its process group has 1"),
        (
            {"context": 2, "pipeline": 2},
            "pipeline 2 but its process group has 1; context 2 but its process group has 1",
        ),
        ({"virtual_pipeline": 2}, "virtual_pipeline 2 needs pipeline above 1"),
        ({"first_stage_layers": 1}, "first_stage_layers 1 needs pipeline above 1"),
        ({"sequence_parallel": True}, "sequence true needs tensor above 1"),
    ],
)
def test_settings_that_are_not_those_of_the_groups(
    checkpoint: Path, family: str, one_process: Groups, settings: dict[str, Any], message: str
) -> None:
    """One process has one rank of each: half a model is not built in silence, by the provider or by itself."""
    wrong = BuildSettings(**settings)
    with pytest.raises(ValueError, match=message):
        PROVIDERS[family](checkpoint, wrong)()
    with pytest.raises(ValueError, match=message):
        QwenVLModel(read_shape(checkpoint), wrong, pg_collection=one_process.collection)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"post_process": False}, "post_process=False: must be True on pipeline rank 0 of 1, chunk 0 of 1"),
        ({"pre_process": False}, "pre_process=False: must be True on pipeline rank 0 of 1"),
        ({"vp_stage": 1}, "vp_stage=1: must be 0 to 0 with virtual_pipeline 1"),
    ],
)
def test_a_chunk_of_another_rank(
    checkpoint: Path, family: str, one_process: Groups, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PROVIDERS[family](checkpoint, BuildSettings())(**asked)


def test_groups_that_lack_one(checkpoint: Path, family: str, one_process: Groups) -> None:
    with pytest.raises(ValueError, match="pg_collection: has no cp; make it with the groups tp, pp and cp"):
        PROVIDERS[family](checkpoint, BuildSettings())(
            pg_collection=ProcessGroupCollection(tp=one_process.tp, pp=one_process.pp)
        )


def test_another_family_is_refused(family: str, checkpoint: Path) -> None:
    other = next(name for name in PROVIDERS if name != family)
    message = f"model_type is '{family}', expected '{other}'; use model_providers.{family}.provider"
    with pytest.raises(ValueError, match=message):
        PROVIDERS[other](checkpoint, BuildSettings())
