"""Hugging Face -> Megatron -> Hugging Face is bit-exact, and damaged checkpoints are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.loading import CheckpointReader, load_hf_checkpoint
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import FAMILIES, read_shape
from model_providers.qwen_vl.weight_map import WeightRow, hf_names, published_name, to_hf, to_megatron, weight_map
from tests.unit.model_providers.reference import build_model, make_checkpoint

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.mark.parametrize("ranks", [1, 2, 4])  # four: twice as many as key-value heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_exact(tmp_path: Path, family: str, is_tied: bool, dtype: torch.dtype, ranks: int) -> None:
    directory = make_checkpoint(tmp_path, tied=is_tied, dtype=dtype, family=family)
    reader, shape = CheckpointReader(directory), read_shape(directory)
    assert shape.vocab % 2 == 1  # several ranks: the tables are padded
    back: Weights = {}
    for row in weight_map(shape, vision_ffn_multiple=16):
        shards = [to_megatron(row, [reader.read(name) for name in row.hf], rank, ranks) for rank in range(ranks)]
        if row.vocabulary:
            assert shards[0].shape[0] == -(-shape.vocab // ranks)
        if "vision_model" in row.megatron and "linear_fc2.weight" in row.megatron and "merger" not in row.megatron:
            assert shards[0].shape[1] == -(-shape.vision.ffn // 16) * 16 // ranks
        if row.exported:
            back |= dict(to_hf(row, shards))
    stored = {published_name(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    assert set(back) == set(stored) == set(hf_names(shape))
    for name, tensor in stored.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name


def test_qkv_goes_to_its_group() -> None:
    """Two groups of two query heads of size one: Megatron's order is q q k v per group."""
    row = WeightRow("m", ("q", "k", "v"), ((4,), (2,), (2,)), "qkv", 0, 2)
    parts = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0]), torch.tensor([100.0, 200.0])]
    assert to_megatron(row, parts, 0, 1).tolist() == [1, 2, 10, 100, 3, 4, 20, 200]
    assert to_megatron(row, parts, 1, 2).tolist() == [3, 4, 20, 200]


def test_padding_is_zeros_at_the_end_of_the_cut_dimension() -> None:
    """Three wide, padded to eight and to four: gate and up each, and the columns of what reads them."""
    fc1 = WeightRow("m", ("gate", "up"), ((3,), (3,)), "gate_up", 0, padded_to=8)
    parts = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])]
    shards = [to_megatron(fc1, parts, rank, 2) for rank in range(2)]
    assert [shard.tolist() for shard in shards] == [[1, 2, 3, 0, 10, 20, 30, 0], [0] * 8]
    assert [part.tolist() for _, part in to_hf(fc1, shards)] == [[1, 2, 3], [10, 20, 30]]
    fc2 = WeightRow("m", ("down",), ((2, 3),), cut=1, padded_to=4)
    down = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    shards = [to_megatron(fc2, [down], rank, 2) for rank in range(2)]
    assert [shard.tolist() for shard in shards] == [[[1, 2], [4, 5]], [[3, 0], [6, 0]]]
    assert torch.equal(to_hf(fc2, shards)[0][1], down)


def test_gate_and_up_are_cut_each() -> None:
    row = WeightRow("m", ("gate", "up"), ((4,), (4,)), "gate_up", 0)
    parts = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])]
    assert to_megatron(row, parts, 1, 2).tolist() == [3, 4, 30, 40]


def test_every_parameter_has_its_row(untied: Path, tied: Path, tmp_path: Path, one_process: Groups) -> None:
    """Both directions: no parameter without a row, no row without a parameter (a tied output table has none)."""
    for directory in (untied, tied, make_checkpoint(tmp_path, tied=False, family="qwen2_vl")):
        model = build_model(directory, one_process)
        rows = weight_map(model.shape)
        names = {name for name, _ in model.named_parameters()}
        assert names == {row.megatron for row in rows if row.exported}
        assert len({row.megatron for row in rows}) == len(rows)


def rewritten(source: Path, target: Path, change: Callable[[Weights], Weights]) -> Path:
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return target


def in_memory_name(published: str) -> str:
    if published.startswith("visual."):
        return f"model.{published}"
    return published.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("rename", [published_name, lambda name: in_memory_name(published_name(name))])
def test_generations_of_names(untied: Path, tmp_path: Path, one_process: Groups, rename: Callable[[str], str]) -> None:
    renamed = rewritten(untied, tmp_path / "renamed", lambda weights: {rename(k): v for k, v in weights.items()})
    expected, found = build_model(untied, one_process), build_model(renamed, one_process)
    for (name, one), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(one, other), name


def stored_name(directory: Path, published: str) -> str:
    with_spelling = {published_name(name): name for name in load_file(directory / "model.safetensors")}
    return with_spelling[published]


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def test_a_missing_tensor_is_named(untied: Path, tmp_path: Path, one_process: Groups) -> None:
    name = stored_name(untied, Q_PROJ)
    broken = rewritten(untied, tmp_path / "m", lambda w: {k: v for k, v in w.items() if k != name})
    with pytest.raises(ValueError, match=rf"{Q_PROJ}.* is missing"):
        build_model(broken, one_process)


def test_a_misshapen_tensor_is_named(untied: Path, tmp_path: Path, one_process: Groups) -> None:
    name = stored_name(untied, Q_PROJ)
    broken = rewritten(untied, tmp_path / "m", lambda w: {**w, name: torch.zeros(128, 64)})
    with pytest.raises(ValueError, match=rf"{Q_PROJ}: shape \(128, 64\), expected \(128, 128\)"):
        build_model(broken, one_process)


def test_an_unknown_tensor_is_named(untied: Path, tmp_path: Path, one_process: Groups) -> None:
    broken = rewritten(untied, tmp_path / "m", lambda w: {**w, "model.layers.7.norm.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"does not have: model\.layers\.7\.norm\.weight"):
        build_model(broken, one_process)


def test_a_truncated_file_is_named(untied: Path, tmp_path: Path, one_process: Groups) -> None:
    shutil.copytree(untied, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        build_model(tmp_path / "m", one_process)


def test_a_missing_shard_is_named(untied: Path, tmp_path: Path) -> None:
    shutil.copytree(untied, tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors: named by .* but missing"):
        CheckpointReader(tmp_path / "m")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"weight_map": 3}', b'\xff{"weight_map": {}}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: holds no readable weight_map .*; copy"):
        CheckpointReader(tmp_path)


def test_two_shards_are_read(untied: Path, tmp_path: Path, one_process: Groups) -> None:
    shutil.copytree(untied, tmp_path / "m")
    weights = load_file(untied / "model.safetensors")
    names = sorted(weights)
    parts = {"one.safetensors": names[:20], "two.safetensors": names[20:]}
    (tmp_path / "m" / "model.safetensors").unlink()
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, tmp_path / "m" / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    expected, found = build_model(untied, one_process), build_model(tmp_path / "m", one_process)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_no_weights_at_all(untied: Path, tmp_path: Path) -> None:
    shutil.copy(untied / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no \*\.safetensors file there"):
        CheckpointReader(tmp_path)


def test_tied_models_ignore_a_second_copy(tied: Path, tmp_path: Path, one_process: Groups) -> None:
    """Some tied checkpoints carry lm_head.weight as well."""
    table = stored_name(tied, "model.embed_tokens.weight")
    twice = rewritten(tied, tmp_path / "m", lambda w: {**w, "lm_head.weight": w[table].clone()})
    expected, found = build_model(tied, one_process), build_model(twice, one_process)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_bfloat16_parameters_from_a_float32_file(untied: Path, one_process: Groups) -> None:
    model = QwenVLModel(read_shape(untied), BuildSettings(dtype=torch.bfloat16), pg_collection=one_process.collection)
    load_hf_checkpoint(model, untied, tensor_rank=0, tensor_size=1)
    norm = CheckpointReader(untied).read("model.norm.weight")
    assert torch.equal(model.language_model.decoder.final_layernorm.weight, norm.to(torch.bfloat16))
