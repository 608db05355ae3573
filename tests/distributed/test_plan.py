"""The planner's bytes of weights, gradients and optimizer equal what is really built, on one, two and four ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_apo.planning.sizes import find_model
from megatron_apo.planning.state import stage_parameters, state_bytes
from tests.distributed.launcher import Case, run_cases
from tests.unit.model_providers.reference import make_checkpoint

# name: (ranks, tensor, pipeline, dtype, distributed optimizer, tied); "frozen": the tower without its merger
CASES = {
    "one": (1, 1, 1, "float32", False, True),
    "one_bf16": (1, 1, 1, "bfloat16", True, False),
    "tensor": (2, 2, 1, "bfloat16", False, True),
    "pipeline": (2, 1, 2, "bfloat16", False, False),
    "data": (2, 1, 1, "bfloat16", True, True),
    "data_four": (4, 1, 1, "float32", True, False),
    "all": (4, 2, 2, "bfloat16", False, True),
    "frozen": (2, 1, 1, "bfloat16", True, False),
    "shared_embedding": (4, 1, 2, "bfloat16", True, True),
}


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    for tied in (True, False):
        make_checkpoint(root / f"policy_{tied}", tied=tied, dtype=torch.float32)
    cases = []
    for name, (ranks, tensor, pipeline, dtype, distributed, tied) in CASES.items():
        overrides = [
            f"--model.path={root / f'policy_{tied}'}",
            f"--model.dtype={dtype}",
            f"--parallel.tensor={tensor}",
            f"--parallel.pipeline={pipeline}",
            f"--parallel.distributed_optimizer={str(distributed).lower()}",
            f"--model.freeze_vision={str(name == 'frozen').lower()}",
        ]
        cases.append(Case("tests.distributed.planned:weigh", ranks, str(root / name), {"overrides": overrides}))
    run_cases(cases)
    return root


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_every_rank_are_those_that_were_built(weighed: Path, name: str) -> None:
    ranks, tensor, pipeline, dtype, distributed, tied = CASES[name]
    model = find_model(str(weighed / f"policy_{tied}"))
    found = [json.loads(path.read_text()) for path in sorted((weighed / name).glob("rank_*.json"))]
    assert len(found) == ranks
    for rank in found:
        stage = rank["pipeline_rank"]
        held = stage_parameters(
            model, tensor=tensor, first=stage == 0, last=stage == pipeline - 1, layers=model.layers // pipeline
        )
        data = ranks // tensor // pipeline
        planned = state_bytes(
            held,
            dtype=dtype,
            data=data,
            distributed=distributed,
            rank=rank["data_rank"],
            frozen=("vision",) if name == "frozen" else (),
        )
        assert (planned.weights, planned.gradients, planned.optimizer) == (
            rank["weights"],
            rank["gradients"],
            rank["optimizer"],
        )
