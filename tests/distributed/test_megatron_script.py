"""The example script, which is not our trainer, learns with the unchanged providers, and alike in every layout."""

from __future__ import annotations

import json

import pytest

from examples.digits.make_policy import PolicySize, make_policy
from tests.distributed.launcher import Case, run_cases

TENSOR, CHUNKS = ["--tensor", "2", "--sequence-parallel"], ["--pipeline", "2", "--virtual-pipeline", "2"]
RUNS: dict[str, tuple[str, int, list[str]]] = {
    "qwen2_5_vl alone": ("qwen2_5_vl", 1, []),
    "qwen2_5_vl tensor": ("qwen2_5_vl", 2, TENSOR),
    "qwen2_5_vl chunks": ("qwen2_5_vl", 2, CHUNKS),
    "qwen2_vl pipeline": ("qwen2_vl", 2, ["--pipeline", "2"]),
}
STEPS = 3


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of each run, from its last rank."""
    work = tmp_path_factory.mktemp("script")
    size = PolicySize(layers=4, vision_hidden=128, vision_heads=4, vision_feed_forward=256)
    policies = {
        name: str(make_policy(work / name, seed=0, size=size, family=name)) for name in ("qwen2_5_vl", "qwen2_vl")
    }
    run_cases(
        [
            Case(
                "tests.distributed.megatron_script:losses",
                world,
                str(work / name),
                {"arguments": ["--model", policies[family], "--steps", str(STEPS), *arguments]},
            )
            for name, (family, world, arguments) in RUNS.items()
        ]
    )
    return {
        name: json.loads((work / name / f"losses-{world - 1}.json").read_text(encoding="utf-8"))
        for name, (_, world, _) in RUNS.items()
    }


def test_the_loss_falls(histories: dict[str, list[float]]) -> None:
    for name, history in histories.items():
        assert len(history) == STEPS and history[-1] < 0.8 * history[0], name


def test_layouts_agree(histories: dict[str, list[float]]) -> None:
    for name in ("qwen2_5_vl tensor", "qwen2_5_vl chunks"):
        assert histories[name] == pytest.approx(histories["qwen2_5_vl alone"], rel=2e-4), name
