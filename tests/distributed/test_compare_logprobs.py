"""tools/compare_logprobs.py on several ranks: every layout gives transformers' log-probabilities."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from examples.digits.make_policy import PolicySize, make_policy
from megatron_apo.conversion.command import main as convert
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint, record_rollouts

SAMPLES = 24
# name: (family, ranks, layout)
LAYOUTS = {
    "tp2_sequence": ("qwen2_5_vl", 2, ["--tensor", "2", "--sequence"]),
    "cp2_dp2": ("qwen2_5_vl", 4, ["--context", "2", "--tokens-per-microbatch", "200"]),
    "pp2": ("qwen2_5_vl", 2, ["--pipeline", "2", "--tokens-per-microbatch", "200"]),
    "qwen2_vl_tp2": ("qwen2_vl", 2, ["--tensor", "2"]),
    "pp2_vpp2_of_torch_dist": ("qwen2_5_vl", 2, ["--pipeline", "2", "--virtual-pipeline", "2"]),
}


def weights(root: Path, name: str, family: str) -> list[str]:
    """Megatron's own weights, where the layout is to read them from a checkpoint of its form."""
    return ["--megatron-weights", str(root / f"{family}_torch_dist")] if name.endswith("torch_dist") else []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, digits_task: Path) -> Path:
    root = tmp_path_factory.mktemp("comparisons")
    inputs = {}
    for family in ("qwen2_5_vl", "qwen2_vl"):
        untrained = make_policy(root / f"{family}_untrained", seed=0, size=PolicySize(layers=4), family=family)
        policy = randomised_checkpoint(untrained, root / family, seed=3)
        recorded = record_rollouts(policy, digits_task, root / f"{family}_rollouts", steps=1, prompts=6, group=4)
        inputs[family] = [str(policy), str(recorded)]
        assert convert(["hf-to-megatron", str(policy), str(root / f"{family}_torch_dist")]) == 0
    wanted = ["--backends", "transformers,megatron", "--samples", str(SAMPLES), "--limit", "1e-4"]
    run_cases(
        [
            Case(
                "tests.distributed.comparisons:command",
                ranks,
                str(root / name),
                {"arguments": [*inputs[family], *wanted, *layout, *weights(root, name, family)]},
            )
            for name, (family, ranks, layout) in LAYOUTS.items()
        ]
    )
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_transformers(root: Path, layout: str) -> None:
    summary = json.loads((root / layout / "summary.json").read_text())
    (pair,) = summary["pairs"]
    print(f"\n{layout}: {summary['megatron']}, largest difference {pair['maximum']:.1e}")
    assert 0 < pair["maximum"] <= 1e-4 and pair["within_limit"] is True
    with (root / layout / "tokens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == pair["tokens"] and len({row["sample"] for row in rows}) == SAMPLES
    assert len({row["transformers"] for row in rows}) > 0.9 * len(rows)  # no constant that would agree by itself
