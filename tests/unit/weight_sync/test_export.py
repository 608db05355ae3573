"""What one process exports is the checkpoint it was loaded from, name by name and bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_apo.parallel.groups import Groups
from megatron_apo.training.export import export_model
from megatron_apo.training.setup import TrainingState, build_training_state
from megatron_apo.weight_sync.export import export_tensors, main_gradients
from model_providers.qwen_vl.weight_map import hf_names, published_name
from tests.unit.model_providers.reference import build_model, make_checkpoint, transformers_model
from tests.unit.training.jobs import job_config


@pytest.fixture(scope="module", params=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), tied=request.param == "tied")


def state_of(checkpoint: Path, groups: Groups) -> TrainingState:
    return build_training_state(job_config(checkpoint), groups, updates=1, reference=False)


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {published_name(k): v for path in directory.glob("*.safetensors") for k, v in load_file(path).items()}


def test_equals_the_source_in_the_maps_order(checkpoint: Path, one_process: Groups) -> None:
    model = build_model(checkpoint, one_process)
    exported = list(export_tensors(model, one_process))
    source = stored(checkpoint)
    assert [name for name, _ in exported] == hf_names(model.shape)
    assert {name for name, _ in exported} == set(source)
    for name, tensor in exported:
        assert tensor.is_contiguous() and torch.equal(tensor, source[name]), name


def test_gradients_take_the_same_way(checkpoint: Path, one_process: Groups) -> None:
    """A gradient that numbers its entries lands where the weight's entries land."""
    model = build_model(checkpoint, one_process)
    for parameter in model.parameters():
        parameter.main_grad = parameter.detach() * 2  # type: ignore[attr-defined]
    source = stored(checkpoint)
    for name, gradient in export_tensors(model, one_process, main_gradients):
        assert torch.equal(gradient, source[name] * 2), name


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1 << 16])
def test_an_exported_model_loads_unchanged(
    checkpoint: Path, one_process: Groups, tmp_path: Path, shard_bytes: int
) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    target = tmp_path / "export"
    export_model(state_of(checkpoint, one_process), one_process, checkpoint, target, shard_bytes=shard_bytes)
    assert sorted(stored(target)) == sorted(stored(checkpoint))
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    index = target / "model.safetensors.index.json"
    assert index.is_file() == (shard_bytes == 1 << 16)
    if index.is_file():
        files = set(json.loads(index.read_text())["weight_map"].values())
        assert files == {path.name for path in target.glob("*.safetensors")} and len(files) > 2
    before, after = transformers_model(checkpoint), transformers_model(target)
    for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert not list(tmp_path.glob(".*"))


def test_an_export_replaces_the_one_before(checkpoint: Path, one_process: Groups, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model-00009-of-00009.safetensors").write_bytes(b"old")
    export_model(state_of(checkpoint, one_process), one_process, checkpoint, tmp_path / "export")
    assert [path.name for path in (tmp_path / "export").glob("*.safetensors")] == ["model.safetensors"]
