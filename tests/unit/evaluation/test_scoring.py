"""Numbers of an evaluation, worked by hand."""

from __future__ import annotations

import pytest

from megatron_apo.evaluation.scoring import (
    accuracy_by_category,
    bootstrap_interval,
    evaluate_groups,
    majority_correct,
    pass_at_k,
)
from megatron_apo.records import Outcome, Prompt, Rollout, RolloutGroup, Score


def group(name: str, outcomes: str, answers: list[str] | None = None, category: str = "") -> RolloutGroup:
    """``outcomes``: c correct, w wrong, n no answer, e grader error; response i is i + 1 tokens long."""
    kinds: dict[str, Outcome] = {"c": "correct", "w": "wrong", "n": "no_answer", "e": "grader_error"}
    prompt = Prompt(name, (1,), (1,), (), "?", "13", category=category)
    answers = answers or ["<answer>13</answer>"] * len(outcomes)
    rollouts = tuple(
        Rollout(name, i, (2,) * (i + 1), (0.0,) * (i + 1), text, "stop", 0) for i, text in enumerate(answers)
    )
    scores = tuple(Score(1.0, {"accuracy": float(o == "c"), "format": float(o != "n")}, kinds[o]) for o in outcomes)
    return RolloutGroup(prompt, rollouts, scores)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # 1 - C(2,2)/C(4,2) = 1 - 1/6
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 3, 2) == 1.0
    with pytest.raises(ValueError, match="k=5"):
        pass_at_k(4, 1, 5)


def test_evaluation_by_hand() -> None:
    result = evaluate_groups([group("a", "cw"), group("b", "cc"), group("c", "ne"), group("d", "ww")])
    assert result.accuracy == pytest.approx(1.5 / 4)
    assert result.format == pytest.approx(7 / 8)
    assert (result.rows, result.responses, result.grader_errors) == (4, 8, 1)
    assert result.mean_length == pytest.approx(1.5)
    assert result.pass_at_k == {1: pytest.approx(1.5 / 4), 2: pytest.approx(2 / 4)}
    low, high = result.accuracy_interval
    assert 0.0 <= low < result.accuracy < high <= 1.0


def test_bootstrap_is_seeded_and_close_to_the_normal_interval() -> None:
    values = [1.0] * 60 + [0.0] * 40
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    low, high = bootstrap_interval(values, seed=3)
    # standard error sqrt(0.6 * 0.4 / 100) = 0.049; 1.96 of them to either side is 0.504 to 0.696
    assert low == pytest.approx(0.504, abs=0.02)
    assert high == pytest.approx(0.696, abs=0.02)
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0)


def test_majority() -> None:
    def text(answer: str) -> str:
        return f"<answer>{answer}</answer>"

    assert majority_correct(group("a", "ccw", [text("13"), text("13.0"), text("12")])) == 1.0
    assert majority_correct(group("a", "cww", [text("13"), text("12"), text("12")])) == 0.0
    assert majority_correct(group("a", "cww", [text("13"), text("12"), text("11")])) == pytest.approx(1 / 3)
    assert majority_correct(group("a", "cnn", [text("13"), "", ""])) == 1.0
    assert majority_correct(group("a", "nn", ["", ""])) == 0.0


def test_by_category() -> None:
    groups = [group("a", "cw", category="sum"), group("b", "cc", category="sum"), group("c", "ww", category="count")]
    assert accuracy_by_category([*groups, group("d", "cc")]) == {"count": 0.0, "sum": 0.75}


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_groups([])
    unscored = group("a", "cw")
    with pytest.raises(ValueError, match="row 'a': 0 scores for 2"):
        evaluate_groups([RolloutGroup(unscored.prompt, unscored.rollouts)])
