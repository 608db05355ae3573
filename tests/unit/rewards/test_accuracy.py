"""Extraction of the answer and its comparison with the gold answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_apo.rewards.accuracy import GraderError, check_gold, extract_answer, grade


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>7 + 6</think><answer>13</answer>", "13"),
        ("<answer> 13\n</answer>", "13"),
        ("so <answer>$\\frac{1}{2}$</answer> it is", "$\\frac{1}{2}$"),
        ("<answer>1\u200b3</answer>", "13"),
        ("13", None),
        ("", None),
        ("<answer></answer>", None),
        ("<answer>\u200b</answer>", None),
        ("<answer>12</answer><answer>13</answer>", None),
        ("<think><answer>12</answer></think><answer>13</answer>", None),
        ("<think>is it <answer>13</answer></think>", None),
        ("<think>is it <answer>13</answer>", None),
        ("<answer>13", None),
        ("</answer>13<answer>", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("13", "13"),
        ("13.0", "13"),
        ("13", "13.0"),
        ("$13$", "13"),
        ("13", "$13$"),
        ("7+6", "13"),
        ("The sum is 13", "13"),
        ("1/2", "$\\frac{1}{2}$"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac{2}{4}", "1/2"),
        ("\\boxed{13}", "13"),
        ("$x^2+1$", "$1+x^2$"),
        ("x^2+1", "$1+x^2$"),
        ("$\\{3,2,1\\}$", "$\\{1,2,3\\}$"),
        ("\\{3, 2, 1\\}", "\\{1, 2, 3\\}"),
        ("(1, 2)", "$(1,2)$"),
        ("B", "B"),
        ("b", "B"),
        ("1,000", "1000"),
        ("(7 + 6)", "13"),
        ("1,000,000", "1000000"),
        ("42%", "42\\%"),
    ],
)
def test_correct(answer: str, gold: str) -> None:
    assert grade(answer, gold) == "correct"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("12", "13"),
        ("-13", "13"),
        ("13.1", "13"),
        ("1 3", "13"),
        ("1, 2, 13", "13"),
        ("(1, 2)", "2"),
        ("\\{12, 13\\}", "13"),
        ("thirteen", "13"),
        ("$\\{1,2\\}$", "$\\{1,2,3\\}$"),
        ("$\\frac{2}{1}$", "$\\frac{1}{2}$"),
        ("A", "B"),
        ("((((", "13"),
        ("x", "13"),
    ],
)
def test_wrong(answer: str, gold: str) -> None:
    assert grade(answer, gold) == "wrong"


@pytest.mark.parametrize("gold", ["", " ", "yes", "no idea", "\u200b", "((("])
def test_unparsable_gold_is_refused_by_name(gold: str) -> None:
    with pytest.raises(ValueError, match="math-verify reads no number") as caught:
        check_gold(gold)
    assert repr(gold) in str(caught.value)
    with pytest.raises(ValueError, match="math-verify reads no number"):
        grade("13", gold)


@pytest.mark.parametrize("gold", ["13", "$42$", "\\frac{1}{2}", "C", "$\\{1,2\\}$", "-3.5"])
def test_parsable_gold_passes(gold: str) -> None:
    check_gold(gold)


def test_a_failing_comparison_is_never_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify

    def fail(*_arguments: object, raise_on_error: bool = False, **_options: object) -> bool:
        if raise_on_error:
            raise TypeError("cannot compare")
        return False  # math-verify's default: a failure reads as a difference

    monkeypatch.setattr(math_verify, "verify", fail)
    with pytest.raises(GraderError, match="cannot compare"):
        grade("13", "13")


def test_the_grader_loads_no_torch() -> None:
    code = "import sys, megatron_apo.rewards.worker as w; w.grade('1', '1'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
