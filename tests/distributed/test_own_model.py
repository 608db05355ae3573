"""A script with a model of its own trains by APO through the adapter, and alike on one process and on two."""

from __future__ import annotations

import json

import pytest

from tests.distributed.launcher import Case, run_cases

STEPS = 4
RUNS: dict[str, tuple[int, list[str]]] = {
    "alone": (1, []),
    "data": (2, []),
    "tensor": (2, ["--tensor", "2"]),
    "gspo alone": (1, ["--objective.name=gspo"]),
    "gspo data": (2, ["--objective.name=gspo"]),
    "schedule": (1, ["--objective.name=grpo_d"]),
    "dropped": (1, ["--objective.name=dapo", "--steps", "150", "--learning-rate", "1e-2"]),
}


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """The metrics of every update of each run."""
    work = tmp_path_factory.mktemp("own_model")
    places = {name: work / name.replace(" ", "_") for name in RUNS}
    cases = []
    for name, (world, arguments) in RUNS.items():
        words = ["--steps", str(STEPS), *arguments]  # of two the last counts
        cases.append(Case("tests.distributed.megatron_script:metrics", world, str(places[name]), {"arguments": words}))
    run_cases(cases)
    return {name: json.loads((place / "metrics.json").read_text(encoding="utf-8")) for name, place in places.items()}


@pytest.mark.parametrize(("name", "alone"), [("data", "alone"), ("tensor", "alone"), ("gspo data", "gspo alone")])
def test_one_and_two_processes_agree(histories: dict[str, list[dict[str, float]]], name: str, alone: str) -> None:
    """Gradient norms too: Adam alone would not show a wrong scale."""
    assert len(histories[name]) == len(histories[alone]) == 2 * STEPS  # two updates a step
    for found, expected in zip(histories[name], histories[alone], strict=True):
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-6)


def test_the_schedule_ends_with_the_run(histories: dict[str, list[dict[str, float]]]) -> None:
    """GRPO-D over four steps of two updates, 0.3 of them falling: 0.04 in the first step, 0.10 in the last."""
    found = [update["kl/coefficient"] for update in histories["schedule"]]
    assert found == pytest.approx([0.04, 0.04, 0.06, 0.06, 0.08, 0.08, 0.10, 0.10])


def test_an_update_without_contrast_is_left_out(histories: dict[str, list[dict[str, float]]]) -> None:
    """DAPO drops groups whose answers earn the same: in the end there are fewer others than updates. It punishes long
    answers, too: nothing else makes a reward negative."""
    rewards = [update["reward"] for update in histories["dropped"]]
    assert STEPS < len(rewards) < 2 * 150
    assert rewards[0] < 0 < rewards[-1]


def test_it_learns(histories: dict[str, list[dict[str, float]]]) -> None:
    rewards = [update["reward"] for update in histories["alone"]]
    assert rewards[-1] > rewards[0] + 0.1, rewards
    assert histories["alone"][-1]["kl/raw"] > 0.1, "APO's reference is the initial policy"
    assert "kl/raw" not in histories["gspo alone"][0]
