"""Extraction of the answer and its comparison with the gold answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from megatron_apo.rewards.accuracy import GraderError, check_gold, extract_answer, grade

CORRECT = [
    # numbers, however they are written
    *(("13", "13"), ("13.0", "13"), ("13", "13.0"), ("$13$", "13"), ("13", "$13$"), ("7+6", "13"), ("(7 + 6)", "13")),
    *(
        ("The sum is 13", "13"),
        ("x = 13", "13"),
        ("7 + 6 = 13", "13"),
        ("\\boxed{13}", "13"),
        ("１３", "13"),
        ("**13**", "13"),
    ),
    *(
        ("1/2", "$\\frac{1}{2}$"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac{2}{4}", "1/2"),
        ("1 1/2", "3/2"),
        ("\\frac12", "0.5"),
    ),
    *(
        ("1,000", "1000"),
        ("1,000,000", "1000000"),
        ("1 000", "1000"),
        ("1.5e3", "1500"),
        ("5 \\times 10^{-7}", "0.0000005"),
    ),
    *(
        ("0.1+0.2", "0.3"),
        ("−5", "-5"),
        ("2**3", "8"),
        ("3×4", "12"),
        ("12÷4", "3"),
        ("3:4", "\\frac{3}{4}"),
        ("5 thousand", "5000"),
    ),
    *(
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("8^{1/2}", "2\\sqrt{2}"),
        ("12 π", "12\\pi"),
        ("0.333333", "1/3"),
        ("1.41421", "\\sqrt{2}"),
    ),
    # formulas, sets, tuples, intervals, matrices
    *(("$x^2+1$", "$1+x^2$"), ("x^2+1", "$1+x^2$"), ("(x+1)(x-1)", "x^2-1"), ("y=2x+1", "y=2x+1"), ("2x+1", "y=2x+1")),
    *(
        ("2x+4=2y", "y=x+2"),
        ("$\\{3,2,1\\}$", "$\\{1,2,3\\}$"),
        ("3, 2, 1", "\\{1, 2, 3\\}"),
        ("x=2 or x=3", "\\{2,3\\}"),
    ),
    *(
        ("(1, 2)", "$(1,2)$"),
        ("(1,2,3)", "(1,2,3)"),
        ("[1,2)", "[1,2)"),
        ("[0, 0.5]", "[0,1/2]"),
        ("(-\\infty, 3]", "(-\\infty,3]"),
    ),
    *(("(0,1)\\cup(2,3)", "(2,3)\\cup(0,1)"), ("(2,\\infty)", "x>2"), ("2<x", "x>2"), ("5 or -5", "\\pm 5")),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    # units, degrees, percent
    *(("30°", "30"), ("30", "30°"), ("$30^{\\circ}$", "30°"), ("30 degrees", "30^\\circ"), ("\\angle A = 30°", "30°")),
    *(
        ("5 cm", "5"),
        ("5", "5 cm"),
        ("50 mm", "5 cm"),
        ("0.05 m", "5cm"),
        ("5\\text{ cm}", "5 cm"),
        ("36 km/h", "10 m/s"),
    ),
    *(("12\\pi \\text{ cm}^2", "$12\\pi\\,\\mathrm{cm}^{2}$"), ("1 m^2", "10000 cm^2"), ("3 square meters", "3 m^2")),
    *(("$5", "5 dollars"), ("5 apples", "5"), ("5", "5 apples"), ("5 red apples", "5 apples"), ("9.8 m/s^2", "9.8")),
    *(("42%", "42\\%"), ("0.42", "42%"), ("42", "42%"), ("42%", "0.42"), ("42%", "42"), ("42 percent", "42%")),
    # option letters without a list of options, and plain words
    *(
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("\\boxed{B}", "B"),
        ("the answer is B", "B"),
        ("B. bar", "B"),
    ),
    *(
        ("Yes", "yes"),
        ("yes.", "Yes"),
        ("\\text{no}", "No"),
        ("Blue  dog", "blue dog"),
        ("AB=CD", "AB=CD"),
        ("是", "是"),
    ),
]

WRONG = [
    *(
        ("12", "13"),
        ("-13", "13"),
        ("13.1", "13"),
        ("1 3", "13"),
        ("1$3", "13"),
        ("1$'3", "13"),
        ("1\\$3 s", "13"),
        ("1 3", "3"),
        ("thirteen", "13"),
        ("((((", "13"),
        ("x", "13"),
    ),
    *(
        ("1, 2, 13", "13"),
        ("(1, 2)", "2"),
        ("\\{12, 13\\}", "13"),
        ("12 or 13", "13"),
        ("13 or 12", "13"),
        ("5,5", "5"),
    ),
    *(
        ("not 13", "13"),
        ("The sum is not 13", "13"),
        ("minus 13", "13"),
        ("13 is wrong", "13"),
        ("12 = 13", "13"),
        ("5", "5 thousand"),
    ),
    *(
        ("0.33", "1/3"),
        ("3.14", "\\pi"),
        ("0", "0.0000001"),
        ("0.0", "$10^{-7}$"),
        ("13.0000001", "13"),
        ("2", "2ab"),
        ("2ab", "2"),
    ),
    *(
        ("$\\{1,2\\}$", "$\\{1,2,3\\}$"),
        ("(1,2,3)", "\\{1,2,3\\}"),
        ("(2,1)", "(1,2)"),
        ("[1,2]", "[1,2)"),
        ("x\\geq2", "x>2"),
    ),
    *(
        ("$\\frac{2}{1}$", "$\\frac{1}{2}$"),
        ("y=2x+2", "y=2x+1"),
        ("x^2", "$x^2+1$"),
        ("y=5", "x=5"),
        ("[2,\\infty)", "x>2"),
    ),
    *(
        ("5 mm", "5 cm"),
        ("5 kg", "5 cm"),
        ("5 cm", "5 cm^2"),
        ("30 cm", "30°"),
        ("20 °F", "20°C"),
        ("5 apples", "5 oranges"),
    ),
    *(
        ("0.42%", "0.42"),
        ("42%", "4.2"),
        ("13%%", "13"),
        ("1'3", "13"),
        ('13"', "13"),
        ("13k", "13"),
        ("1\u200b3", "13"),
        ("٣", "3"),
    ),
    *(("nan", "13"), ("\\infty", "13"), ("\\frac{1}{0}", "13"), ("\\pm 5", "5"), ("(-1)!", "13"), ("5", "\\pm 5")),
    *(
        ("A", "B"),
        ("A B C D", "B"),
        ("ABCD", "B"),
        ("A or B", "B"),
        ("B and C", "B"),
        ("B or C", "B"),
        ("B. A", "B"),
        ("not B", "B"),
    ),
    *(("no", "yes"), ("yes and no", "yes"), ("yes, it is", "yes"), ("", "13"), ("?", "yes")),
]

OPTIONS = ("red cat", "blue dog", "30°", "$\\frac{1}{2}$", "five")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>7 + 6</think><answer>13</answer>", "13"),
        ("<answer> 13\n</answer>", "13"),
        ("so <answer>$\\frac{1}{2}$</answer> it is", "$\\frac{1}{2}$"),
        ("<answer>1\u200b3</answer>", "1\u200b3"),  # kept, so that it is seen, and refused
        ("<answer>13</answer><think>check</think>", "13"),
        ("13", None),
        ("", None),
        ("<answer></answer>", None),
        ("<answer>\u200b</answer>", None),
        ("<answer>12</answer><answer>13</answer>", None),
        ("<think><answer>12</answer></think><answer>13</answer>", None),
        ("<think>is it <answer>13</answer></think>", None),
        ("<think>is it <answer>13</answer>", None),
        ("is it <answer>13</answer></think>", None),  # the prompt opened the thinking
        ("<answer><think>12</think>13</answer>", None),
        ("<answer>13", None),
        ("</answer>13<answer>", None),
        ("<ans\u200bwer>13</answer>", None),
        ("<Answer>13</Answer>", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(("answer", "gold"), CORRECT)
def test_correct(answer: str, gold: str) -> None:
    assert grade(answer, gold) == "correct"


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_wrong(answer: str, gold: str) -> None:
    assert grade(answer, gold) == "wrong"


@pytest.mark.parametrize("gold", ["B", "(B)", "B. blue dog", "blue dog"])
def test_an_option_is_chosen_by_its_letter_or_its_text(gold: str) -> None:
    for answer in (
        "B",
        "b",
        "(B)",
        "B)",
        "B. blue dog",
        "B: Blue Dog",
        "blue dog",
        "Blue dog.",
        "the answer is (B)",
        "option B",
    ):
        assert grade(answer, gold, OPTIONS) == "correct", answer
    for answer in (
        "A",
        "E",
        "F",
        "B. red cat",
        "dog",
        "A B C D",
        "ABCDE",
        "A or B",
        "B and C",
        "red cat blue dog",
        "not B",
    ):
        assert grade(answer, gold, OPTIONS) == "wrong", answer


def test_options_are_compared_by_value_too_and_several_may_be_right() -> None:
    for answer, gold in (
        ("30 degrees", "C"),
        ("C. 30^\\circ", "C"),
        ("C", "30"),
        ("0.5", "D"),
        ("E", "five"),
        ("E", "E"),
    ):
        assert grade(answer, gold, OPTIONS) == "correct", (answer, gold)
    for answer in ("AC", "A, C", "C, A", "A and C"):
        assert grade(answer, "A, C", OPTIONS) == "correct", answer
    for answer in ("A", "C", "CA", "ABC", "AACC", "A, A, C", "A C"):
        assert grade(answer, "AC", OPTIONS) == "wrong", answer


def test_a_tolerance_is_for_measured_answers_alone() -> None:
    for answer, gold in (("5.1 cm", "5 cm"), ("4.9", "5 cm"), ("51 mm", "5 cm"), ("3.1", "3.14"), ("3.2", "$3.14$")):
        assert grade(answer, gold, tolerance=0.02) == "correct", (answer, gold)
        assert grade(answer, gold) == "wrong", (answer, gold)
    for answer, gold in (
        ("101", "100"),
        ("5.2 cm", "5 cm"),
        ("5.1 kg", "5 cm"),
        ("0.501", "1/2"),
        ("0.0001", "0.0 cm"),
    ):
        assert grade(answer, gold, tolerance=0.02) == "wrong", (answer, gold)


@pytest.mark.parametrize(
    "gold", ["", " ", "\u200b", "(((", "?", "\\int x dx", "9^{9^{9^9}}", "x" * 2000, "1/0", "1\x003"]
)
def test_unreadable_gold_is_refused_by_name(gold: str) -> None:
    with pytest.raises(ValueError, match="the grader reads no number") as caught:
        check_gold(gold)
    assert repr(gold[:80]) in str(caught.value)
    with pytest.raises(ValueError, match="the grader reads no number"):
        grade("13", gold)


@pytest.mark.parametrize(
    "gold", ["13", "$42$", "\\frac{1}{2}", "C", "$\\{1,2\\}$", "-3.5", "5 cm", "yes", "a blue dog"]
)
def test_readable_gold_passes(gold: str) -> None:
    check_gold(gold)


def test_a_failing_comparison_is_never_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify

    def fail(*_arguments: object, raise_on_error: bool = False, **_options: object) -> bool:
        if raise_on_error:
            raise TypeError("cannot compare")
        return False  # math-verify's default: a failure reads as a difference

    monkeypatch.setattr(math_verify, "verify", fail)
    with pytest.raises(GraderError, match="cannot compare"):
        grade("1+x^2", "x^2+1")


def test_verdicts_do_not_depend_on_the_thread() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(grade(*pair) for pair in CORRECT + WRONG))
    thread.start()
    thread.join(120)
    assert found == ["correct"] * len(CORRECT) + ["wrong"] * len(WRONG)


def test_verdicts_do_not_depend_on_the_process_or_its_hash_seed() -> None:
    code = (
        "from tests.unit.rewards.test_accuracy import CORRECT, WRONG, grade; import sys; "
        "sys.exit([grade(*p) for p in CORRECT + WRONG] != ['correct'] * len(CORRECT) + ['wrong'] * len(WRONG))"
    )
    # The seed of this process is another.
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "77"}, timeout=240, check=True)


def test_the_grader_loads_no_torch() -> None:
    code = "import sys, megatron_apo.rewards.worker as w; w.grade('1', '1'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
