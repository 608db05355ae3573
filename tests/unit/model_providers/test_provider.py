"""Megatron's conventional callable gives the model with its weights, of the family that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from model_providers.qwen2_5_vl import provider as of_qwen2_5_vl
from model_providers.qwen2_vl import provider as of_qwen2_vl
from model_providers.qwen_vl.megatron_config import BuildSettings
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


def test_a_stage_without_ends_has_layers_alone(family: str, checkpoint: Path, one_process: Groups) -> None:
    model = PROVIDERS[family](checkpoint, BuildSettings(), load_weights=False)(pre_process=False, post_process=False)
    names = {name.rsplit(".layers.", 1)[0] for name, _ in model.named_parameters()}
    assert names == {"language_model.decoder"}


def test_another_family_is_refused(family: str, checkpoint: Path) -> None:
    other = next(name for name in PROVIDERS if name != family)
    message = f"model_type is '{family}', expected '{other}'; use model_providers.{family}.provider"
    with pytest.raises(ValueError, match=message):
        PROVIDERS[other](checkpoint, BuildSettings())
