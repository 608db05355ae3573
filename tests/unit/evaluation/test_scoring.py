"""Numbers of an evaluation, worked by hand."""

from __future__ import annotations

import pytest

from megatron_apo.evaluation.responses import answered_row
from megatron_apo.evaluation.scoring import (
    accuracies_by_category,
    bootstrap_interval,
    evaluate_rows,
    majority_correct,
    pass_at_k,
)
from megatron_apo.records import RolloutGroup
from tests.unit.evaluation.rows import group, row


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # 1 - C(2,2)/C(4,2) = 1 - 1/6
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 3, 2) == 1.0
    with pytest.raises(ValueError, match="k=5"):
        pass_at_k(4, 1, 5)


def test_evaluation_by_hand() -> None:
    result = evaluate_rows([row("a", "cw"), row("b", "cc"), row("c", "ne"), row("d", "ww", cut=True)])
    assert result.accuracy == pytest.approx(1.5 / 4)
    assert result.format == pytest.approx(7 / 8)
    assert (result.rows, result.responses, result.grader_errors) == (4, 8, 1)
    assert result.mean_length == pytest.approx(1.5)
    assert result.pass_at_k == {1: pytest.approx(1.5 / 4), 2: pytest.approx(2 / 4)}
    assert (result.no_answer, result.truncated) == (1 / 8, 2 / 8)
    assert (result.median_length, result.length_95) == (1.5, 2.0)
    assert result.mean_length_correct == pytest.approx(4 / 3)  # 1 of row a, 1 and 2 of row b
    assert result.mean_length_wrong == pytest.approx(8 / 5)
    low, high = result.accuracy_interval
    assert 0.0 <= low < result.accuracy < high <= 1.0
    assert result.pass_at_k_intervals[1] == result.accuracy_interval


def test_further_rewards_are_means_over_the_responses_that_have_them() -> None:
    rows = [row("a", "cw"), row("b", "ce")]
    for values, one in zip(((1.0, 2.0), (6.0, None)), rows, strict=True):
        for value, response in zip(values, one.responses, strict=True):
            if value is not None:
                response.parts["brevity"] = value
    result = evaluate_rows(rows)
    assert result.further_rewards == {"brevity": pytest.approx(3.0)}
    assert evaluate_rows([row("a", "cw")]).further_rewards == {}


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

    assert majority_correct(row("a", "ccw", [text("13"), text("13.0"), text("12")])) == 1.0
    assert majority_correct(row("a", "cww", [text("13"), text("12"), text("12")])) == 0.0
    assert majority_correct(row("a", "cww", [text("13"), text("12"), text("11")])) == pytest.approx(1 / 3)
    assert majority_correct(row("a", "cnn", [text("13"), "", ""])) == 1.0
    assert majority_correct(row("a", "nn", ["", ""])) == 0.0


def test_by_category() -> None:
    rows = [row("a", "cw", category="sum"), row("b", "cc", category="sum"), row("c", "ww", category="count")]
    rows.append(row("d", "cc"))
    assert accuracies_by_category(rows) == {"count": [0.0], "sum": [0.5, 1.0]}
    result = evaluate_rows(rows)
    assert result.by_category == {"count": 0.0, "sum": 0.75}
    assert result.category_rows == {"count": 1, "sum": 2}
    assert result.category_intervals == {"count": (0.0, 0.0), "sum": (0.5, 1.0)}


def test_lengths_of_no_response_are_none() -> None:
    assert evaluate_rows([row("a", "cc")]).mean_length_wrong is None
    assert evaluate_rows([row("a", "ww")]).mean_length_correct is None


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_rows([])
    unscored = group("a", "cw")
    with pytest.raises(ValueError, match="row 'a': 0 scores for 2"):
        answered_row(RolloutGroup(unscored.prompt, unscored.rollouts))
