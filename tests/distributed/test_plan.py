"""The planner's bytes of weights, gradients and optimizer equal what is really built, on one, two and four ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.config import ParallelConfig
from megatron_apo.layout import layout_of
from megatron_apo.planning.sizes import find_model
from megatron_apo.planning.state import stage_parameters, state_bytes
from model_providers.qwen_vl.layout import stage_layers
from tests.distributed.launcher import Case, run_cases
from tests.unit.model_providers.reference import make_checkpoint

# name: arguments of make_checkpoint; "quickstart" is the tiny policy: 4 heads in its tower, 2 key-value heads
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "untied": {"tied": False},
    "three_layers": {"tied": False, "layers": 3},
    "qwen2_vl": {"tied": False, "family": "qwen2_vl"},
}


@dataclass(frozen=True)
class Built:
    """What is built: on how many ranks, of which model, and how."""

    ranks: int
    model: str
    dtype: str
    parallel: ParallelConfig
    frozen: tuple[str, ...] = ()

    def overrides(self, directory: Path) -> list[str]:
        """The same as settings."""
        chosen = {
            f"parallel.{name}": str(getattr(self.parallel, name)).lower()
            for name in ("tensor", "pipeline", "context", "first_stage_layers", "sequence", "distributed_optimizer")
        }
        chosen |= {"model.path": str(directory), "model.dtype": self.dtype}
        chosen |= {f"model.freeze_{part}": "true" for part in self.frozen}
        return [f"--{name}={value}" for name, value in chosen.items()]


def _layout(*sizes: int, sharded: bool = False, **more: Any) -> ParallelConfig:
    tensor, pipeline, context = sizes
    return ParallelConfig(tensor, pipeline, context=context, distributed_optimizer=sharded, **more)


CASES = {
    "one": Built(1, "tied", "float32", _layout(1, 1, 1)),
    "one_bf16": Built(1, "untied", "bfloat16", _layout(1, 1, 1, sharded=True)),
    "tensor": Built(2, "tied", "bfloat16", _layout(2, 1, 1)),
    "pipeline": Built(2, "untied", "bfloat16", _layout(1, 2, 1)),
    "data": Built(2, "tied", "bfloat16", _layout(1, 1, 1, sharded=True)),
    "data_four": Built(4, "untied", "float32", _layout(1, 1, 1, sharded=True)),
    "all": Built(4, "tied", "bfloat16", _layout(2, 2, 1)),
    "shared_embedding": Built(4, "tied", "bfloat16", _layout(1, 2, 1, sharded=True)),
    "context": Built(4, "tied", "bfloat16", _layout(1, 1, 2, sharded=True)),
    "qwen2_vl": Built(2, "qwen2_vl", "bfloat16", _layout(2, 1, 1, sequence=True)),
    "qwen2_vl_data": Built(2, "qwen2_vl", "float32", _layout(1, 1, 1, sharded=True)),
    "more_ranks_than_kv_heads": Built(4, "quickstart", "bfloat16", _layout(4, 1, 1)),
    "uneven_stages": Built(2, "three_layers", "bfloat16", _layout(1, 2, 1, first_stage_layers=1)),
    "frozen_vision": Built(2, "untied", "bfloat16", _layout(1, 1, 1, sharded=True), ("vision",)),
    "frozen_merger": Built(2, "qwen2_vl", "bfloat16", _layout(1, 1, 1, sharded=True), ("merger",)),
    "frozen_language": Built(2, "tied", "bfloat16", _layout(1, 1, 1, sharded=True), ("language",)),
    "frozen_language_stage": Built(2, "untied", "bfloat16", _layout(1, 2, 1), ("language",)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: make_checkpoint(root / name, **arguments) for name, arguments in MODELS.items()}
    return made | {"quickstart": tiny_policy}


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    root = tmp_path_factory.mktemp("plan")
    run_cases(
        [
            Case(
                "tests.distributed.planned:weigh",
                built.ranks,
                str(root / name),
                {"overrides": built.overrides(models[built.model])},
            )
            for name, built in CASES.items()
        ]
    )
    return root


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_every_rank_are_those_that_were_built(weighed: Path, models: dict[str, Path], name: str) -> None:
    built = CASES[name]
    parallel, model = built.parallel, find_model(str(models[built.model]))
    layers = stage_layers(layout_of(parallel, built.ranks), model.layers)
    found = [json.loads(path.read_text()) for path in sorted((weighed / name).glob("rank_*.json"))]
    assert len(found) == built.ranks
    for rank in found:
        stage = rank["pipeline_rank"]
        held = stage_parameters(
            model,
            tensor=parallel.tensor,
            first=stage == 0,
            last=stage == parallel.pipeline - 1,
            layers=layers[stage],
        )
        planned = state_bytes(
            held,
            dtype=built.dtype,
            data=built.ranks // (parallel.tensor * parallel.pipeline),
            distributed=parallel.distributed_optimizer,
            rank=rank["sharing_rank"],
            frozen=built.frozen,
        )
        assert (planned.weights, planned.gradients, planned.optimizer) == (
            rank["weights"],
            rank["gradients"],
            rank["optimizer"],
        )


def test_the_quickstart_model_has_fewer_key_value_heads_than_ranks(models: dict[str, Path]) -> None:
    built = CASES["more_ranks_than_kv_heads"]
    assert find_model(str(models[built.model])).kv_heads < built.parallel.tensor
