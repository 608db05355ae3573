"""The padding of the vision FFN stays zero through training in every layout, and a checkpoint has one form in all.

Also what does not fit together: another width, other frozen parts, another dtype.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launcher import Case, run_cases
from tests.unit.conversion.random_checkpoint import random_checkpoint

TRAIN, LOAD, REFUSED, RESUME = (
    f"tests.distributed.supervised:{name}" for name in ("train_padded", "load_padded", "refused", "resume")
)
PLAN = [[[0, 1, 2], [3, 4, 5], [6, 7]]]
DECAY = ["--optimizer.weight_decay=0.1"]
TENSOR = {ranks: ["--parallel.tensor=" + str(ranks), *DECAY] for ranks in (1, 2, 4)}
# Rows and columns of padding in each of the three layers: 100 columns (192 of Qwen2-VL) of 64 become 128 (256).
PADDING = {"qwen2_5_vl": 3 * 28 * (2 * 65 + 64), "qwen2_vl": 3 * 64 * (65 + 64)}
TRAINED = [("qwen2_5_vl", 1), ("qwen2_5_vl", 2), ("qwen2_5_vl", 4), ("qwen2_vl", 4)]
PIPELINE = ["--parallel.pipeline=2", *DECAY]
OTHERS: dict[str, tuple[int, list[str], str]] = {
    "width": (1, ["--model.vision_ffn_multiple=8"], r"vision_model\.layers\.0\.mlp\.linear_fc\d\.\w+ has a vision FFN "
              r"of 128, this job builds one of 104 .* set model\.vision_ffn_multiple=128"),  # fmt: skip
    # The last stage has no vision tower: it hears of the first's refusal, or comes to it by itself.
    "width_pp2": (2, ["--parallel.pipeline=2", "--model.vision_ffn_multiple=8"], "a vision FFN of 128"),
    "frozen": (1, ["--model.freeze_vision=true"], r"model\.freeze_vision=True, saved with False"),
    "frozen_pp2": (2, ["--parallel.pipeline=2", "--model.freeze_language=true"], "freeze_language=True, saved with"),
    "dtype": (1, ["--model.dtype=bfloat16"], r"model\.dtype=bfloat16, saved with float32"),
    "sharded": (1, ["--parallel.distributed_optimizer=true"], "distributed_optimizer=True, saved with False"),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("padded")
    cases = []
    for family in PADDING:
        policy = str(random_checkpoint(root / family / "policy", family=family, scale=0.08))
        for ranks, overrides in TENSOR.items():
            if (family, ranks) not in TRAINED:
                continue
            arguments = {"checkpoint": policy, "overrides": overrides, "plan": PLAN}
            cases.append(Case(TRAIN, ranks, str(root / family / f"tp{ranks}"), arguments))
    source = {"checkpoint": str(root / "qwen2_5_vl/policy"), "source": str(root / "qwen2_5_vl/tp4")}
    for ranks in (1, 2):
        cases.append(Case(LOAD, ranks, str(root / f"tp4-tp{ranks}"), {**source, "overrides": TENSOR[ranks]}))
    cases.append(Case(LOAD, 2, str(root / "tp4-pp2"), {**source, "overrides": PIPELINE}))
    for name, (world, overrides, _) in OTHERS.items():
        cases.append(Case(REFUSED, world, str(root / name), {**source, "overrides": [*overrides, *DECAY]}))
    frozen = {"checkpoint": source["checkpoint"], "overrides": ["--model.freeze_vision=true", *DECAY]}
    cases.append(Case(RESUME, 1, str(root / "trained_frozen"), {**frozen, "plan": PLAN}))
    back = {"checkpoint": source["checkpoint"], "overrides": DECAY, "source": str(root / "trained_frozen")}
    cases.append(Case(REFUSED, 1, str(root / "thawed"), back))
    run_cases(cases)
    return root


@pytest.mark.parametrize(("family", "ranks"), TRAINED)
def test_padding_stays_zero_through_training(runs: Path, family: str, ranks: int) -> None:
    """Weights, gradients and both moments after two updates with weight decay; all ranks together hold all of it."""
    found = [json.loads(path.read_text()) for path in (runs / family / f"tp{ranks}").glob("padding_*.json")]
    assert len(found) == ranks
    assert sum(rank["padding"] for rank in found) == PADDING[family]
    assert sum(rank["not_zero"] for rank in found) == 0


@pytest.mark.parametrize("reader", ["tp1", "tp2", "pp2"])
def test_a_checkpoint_of_four_ranks_loads_bit_for_bit(runs: Path, reader: str) -> None:
    saved, found = (load_file(path / "state.safetensors") for path in (runs / "qwen2_5_vl/tp4", runs / f"tp4-{reader}"))
    assert set(found) == set(saved)
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor), name
    start = load_file(runs / "qwen2_5_vl/policy/model.safetensors")
    fc1 = "visual.blocks.0.mlp.gate_proj.weight"
    assert saved[f"weights {fc1}"].shape == start[fc1].shape == (100, 64)
    assert not torch.equal(saved[f"weights {fc1}"], start[fc1])


@pytest.mark.parametrize("other", OTHERS)
def test_what_does_not_fit_is_refused_before_loading(runs: Path, other: str) -> None:
    world, _, message = OTHERS[other]
    said = [(runs / other / f"refused_{rank}.txt").read_text() for rank in range(world)]
    assert all(re.search(message, text) for text in said), said


def test_frozen_parts_are_not_trained_from_a_checkpoint_without_their_moments(runs: Path) -> None:
    said = (runs / "thawed/refused_0.txt").read_text()
    assert "model.freeze_vision=False, saved with True" in said
    assert "megatron-to-hf" in said
