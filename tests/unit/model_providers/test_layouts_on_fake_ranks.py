"""Any rank of a large job built in one process: published sizes cut by TP and PP, and settings that are not the job's.

A module of its own: its groups take the place of those that ``one_process`` starts.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from model_providers.qwen_vl.layout import Layout, stage_layers
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.provider import model_provider_for
from model_providers.qwen_vl.shape import QwenVLShape, read_shape
from model_providers.qwen_vl.weight_map import WeightRow, to_megatron, weight_map
from tests.unit.model_providers.fake_ranks import fake_rank
from tests.unit.model_providers.reference import config

PUBLISHED = Path(__file__).resolve().parents[2] / "fixtures" / "published"


def on_meta(shape: QwenVLShape, settings: BuildSettings, groups: ProcessGroupCollection) -> QwenVLModel:
    with torch.device("meta"):
        return QwenVLModel(
            shape,
            settings,
            pg_collection=groups,
            pre_process=groups.pp.rank() == 0,
            post_process=groups.pp.rank() == settings.pipeline - 1,
        )


@cache
def shards(row: WeightRow, tensor: int) -> list[tuple[int, ...]]:
    """Shape of each tensor rank's part, by the weight map."""
    whole = [torch.empty(shape, device="meta") for shape in row.shapes]
    return [tuple(to_megatron(row, whole, rank, tensor).shape) for rank in range(tensor)]


def unnamed(row: WeightRow) -> WeightRow:
    """The same for every layer."""
    return replace(row, megatron="", hf=("",) * len(row.hf))


# name: (tensor, first_stage_layers); pipeline 4. The 7B has 28 heads, so no 8 tensor ranks; the 3B fewer key-value
# heads than ranks, a tied output on the last stage and a vision FFN that 8 does not divide.
CASES = {"qwen2_5_vl_3b": (8, 6), "qwen2_5_vl_7b": (4, 1), "qwen2_5_vl_72b": (8, 0)}


@pytest.mark.parametrize("name", CASES)
def test_published_sizes_on_every_rank(name: str) -> None:
    """All ranks together hold the model: once what is cut, ``tensor`` times what is not, and the padding."""
    tensor, first = CASES[name]
    shape, pipeline = read_shape(PUBLISHED / name / "flat"), 4
    settings = BuildSettings(
        dtype=torch.bfloat16, default_device=True, tensor=tensor, pipeline=pipeline, first_stage_layers=first
    )
    held: Counter[str] = Counter()
    stages: dict[str, set[int]] = {}
    for rank in range(tensor * pipeline):
        with fake_rank(rank, tensor * pipeline, tensor=tensor, pipeline=pipeline) as groups:
            assert (groups.tp.rank(), groups.pp.rank()) == (rank % tensor, rank // tensor)
            model = on_meta(shape, settings, groups)
        rows = model_rows(model)
        for key, parameter in global_parameters(model):
            assert tuple(parameter.shape) == shards(unnamed(rows[key]), tensor)[rank % tensor], key
            held[key] += parameter.numel()
            stages.setdefault(key, set()).add(rank // tensor)

    rows = {row.megatron: row for row in rows.values()}
    assert set(held) == set(rows)
    assert all(len(of) == 1 for of in stages.values())
    whole = {key: sum(map(math.prod, row.shapes)) for key, row in rows.items()}
    padding = {
        key: held[key] - whole[key] * (tensor if row.cut is None else 1)
        for key, row in rows.items()
        if row.vocabulary or row.padded_to
    }
    for key, row in rows.items():
        assert held[key] == whole[key] * (tensor if row.cut is None else 1) + padding.get(key, 0), key
    assert min(padding.values()) >= 0
    tied_copy = sum(whole[key] for key, row in rows.items() if not row.exported)
    replicated = sum(whole[key] * (tensor - 1) for key, row in rows.items() if row.cut is None)
    published = sum(math.prod(size) for row in weight_map(shape) if row.exported for size in row.shapes)
    assert held.total() == published + tied_copy + replicated + sum(padding.values())
    layers = Counter(
        next(iter(of)) for key, of in stages.items() if key.startswith("language_model.decoder.layers.")
        and key.endswith(".mlp.linear_fc2.weight")
    )  # fmt: skip
    dealt = stage_layers(Layout(tensor * pipeline, pipeline=pipeline, first_stage_layers=first), shape.layers)
    assert [layers[stage] for stage in range(pipeline)] == dealt
    print(f"\n{name}: {published:,} published, {replicated:,} replicated, {sum(padding.values()):,} padding")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config alone: 4 heads, 2 layers, vocabulary 301."""
    directory = tmp_path_factory.mktemp("small")
    config(tied=False).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("job", "settings", "messages"),
    [
        ({"tensor": 2}, {}, ["tensor 1 × pipeline 1", "the settings say tensor 1 but its process group has 2"]),
        ({"context": 2}, {}, ["the settings say context 1 but its process group has 2"]),
        ({"pipeline": 2}, {}, ["the settings say pipeline 1 but its process group has 2"]),
        ({"tensor": 2, "pipeline": 2}, {"tensor": 4}, ["tensor 4 but its process group has 2; pipeline 1 but"]),
        (
            {"tensor": 3},
            {"tensor": 3, "vision_ffn_multiple": 16},
            ["tensor 3 × pipeline 1 × context 1 × data 1 = world 3", "vision_ffn_multiple 16", "heads 4 is not a"],
        ),
        (
            {"tensor": 2, "pipeline": 2},
            {"tensor": 2, "pipeline": 2, "first_stage_layers": 2},
            ["tensor 2 × pipeline 2 × context 1 × data 2 = world 8", "layers 2 less first_stage_layers 2 = 0"],
        ),
    ],
)
def test_default_settings_in_a_job_of_many_ranks(
    small: Path, job: dict[str, int], settings: dict[str, int], messages: list[str]
) -> None:
    """The provider refuses before anything is built, and says every factor."""
    world = 8 if job == {"tensor": 2, "pipeline": 2} else math.prod(job.values())
    provider = model_provider_for(small, BuildSettings(**settings), model_type="qwen2_5_vl", load_weights=False)
    with fake_rank(0, world, **job) as groups, pytest.raises(ValueError) as error:
        provider(pre_process=True, post_process="pipeline" not in job, pg_collection=groups)
    for message in messages:
        assert message in str(error.value)


def test_each_stage_has_its_own_parts(small: Path) -> None:
    """The embedding and the tower on the first, the output on the last, and no other's ends by mistake."""
    provider = model_provider_for(small, BuildSettings(pipeline=2), model_type="qwen2_5_vl", load_weights=False)
    parts = []
    for rank in range(2):
        ends = {"pre_process": rank == 0, "post_process": rank == 1}
        with fake_rank(rank, 2, pipeline=2) as groups:
            model = provider(**ends, pg_collection=groups)
            parts.append({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            assert {name.split(".")[3] for name, _ in global_parameters(model) if "decoder.layers" in name} == {
                str(rank)
            }
            with pytest.raises(
                ValueError, match=f"pre_process={rank == 1}: must be {rank == 0} on pipeline rank {rank}"
            ):
                provider(**ends | {"pre_process": rank == 1}, pg_collection=groups)
    tower = {f"vision_model.{part}" for part in ("patch_embed", "layers", "merger")}
    assert parts[0] == tower | {"language_model.embedding", "language_model.decoder"}
    assert parts[1] == {"language_model.decoder", "language_model.output_layer"}
