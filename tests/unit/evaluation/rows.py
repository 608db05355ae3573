"""Rows with made responses, for the tests of what is computed from them."""

from __future__ import annotations

from megatron_apo.evaluation.responses import AnsweredRow, answered_row
from megatron_apo.records import Outcome, Prompt, Rollout, RolloutGroup, Score

_OUTCOMES: dict[str, Outcome] = {"c": "correct", "w": "wrong", "n": "no_answer", "e": "grader_error"}


def group(
    name: str, outcomes: str, answers: list[str] | None = None, *, category: str = "", cut: bool = False
) -> RolloutGroup:
    """``outcomes``: c correct, w wrong, n no answer, e grader error; response i is i + 1 tokens long."""
    prompt = Prompt(name, (1,), (1,), (), "?", "13", category=category)
    answers = answers or ["<answer>13</answer>"] * len(outcomes)
    rollouts = tuple(
        Rollout(name, i, (2,) * (i + 1), (0.0,) * (i + 1), text, "length" if cut else "stop", 0)
        for i, text in enumerate(answers)
    )
    scores = tuple(Score(1.0, {"accuracy": float(o == "c"), "format": float(o != "n")}, _OUTCOMES[o]) for o in outcomes)
    return RolloutGroup(prompt, rollouts, scores)


def row(
    name: str, outcomes: str, answers: list[str] | None = None, *, category: str = "", cut: bool = False
) -> AnsweredRow:
    """``group`` as an evaluation keeps it."""
    return answered_row(group(name, outcomes, answers, category=category, cut=cut))
