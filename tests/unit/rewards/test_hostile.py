"""Hostile answers: wrong, fast, and nothing of them run. The whole list: ``tests/properties/answers``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_apo.rewards.accuracy import check_gold, extract_answer, grade
from megatron_apo.rewards.guards import formula_refusal, text_refusal
from tests.properties.answers import RESPONSES, sweep, table
from tests.properties.hostile import GOLDS, HOSTILE, mutations

QUICK = [answer for answers in HOSTILE.values() for answer in answers[::6]]

# Prints what an audit hook saw of compiling, files, processes and connections during a second round of grading: what
# libraries import late has been imported in the first.
AUDIT = r"""
import json, sys
from megatron_apo.rewards import accuracy, formulas, reading
from tests.properties.hostile import HOSTILE, mutations
answers = [*HOSTILE["code"], *(a for group in HOSTILE.values() for a in group[::15]), *mutations(30, seed=3)]
seen, watching = [], False
WATCHED = ("compile", "exec", "open", "import", "subprocess.", "os.", "socket.", "ctypes.", "pickle.", "code.")

def hook(event, arguments):
    if watching and event.startswith(WATCHED):
        seen.append(f"{event} {arguments!r:.200}")

def grade_all():
    for cached in (accuracy._read_gold, formulas.parse_formula, reading.read_quantity):
        cached.cache_clear()
    for answer in answers:
        for gold in ("13", "(a+b)(c+d)", r"\{1,2,3\}"):
            try:
                accuracy.grade(answer, gold)
            except accuracy.GraderError:
                continue

grade_all()
sys.addaudithook(hook)
watching = True
grade_all()
graded = list(seen)
eval("1 + 1")
watching = False
print(json.dumps([graded, len(seen) - len(graded)]))
"""


def test_there_are_three_hundred_hostile_answers_and_more() -> None:
    answers = [answer for group in HOSTILE.values() for answer in group]
    assert len(set(answers)) >= 300
    for gold in GOLDS:
        check_gold(gold)


def test_hostile_answers_are_wrong_within_two_seconds_and_lose_no_worker() -> None:
    assert sweep(QUICK, GOLDS[:6:5] + GOLDS[10:]) == []


def test_mutations_of_them_hang_nothing_either() -> None:
    assert sweep(mutations(60, seed=11), GOLDS[:1], may_be_right=True) == []


def test_most_hostile_answers_are_judged_in_five_milliseconds() -> None:
    for answer in ("x+1", "7+6", "[1, 2)", "13 cm"):
        grade(answer, "13")
    seconds = []
    for answer in (answer for group in HOSTILE.values() for answer in group):
        started = time.process_time()
        assert grade(answer, "13") == "wrong"
        seconds.append(time.process_time() - started)
    assert sorted(seconds)[len(seconds) * 4 // 5] < 0.005
    assert max(seconds) < 2


def test_nothing_of_a_model_text_is_compiled_opened_or_run() -> None:
    done = subprocess.run([sys.executable, "-c", AUDIT], capture_output=True, text=True, timeout=120, check=True)

    graded, of_the_eval = json.loads(done.stdout)
    assert graded == []
    assert of_the_eval > 0  # the hook does see an eval


@pytest.mark.parametrize("attack", ["eval('1')", "exec('1')", "compile('1', 'x', 'eval')", "os.system('true')"])
def test_a_grader_process_that_would_run_text_fails_instead(attack: str) -> None:
    code = f"import os\nfrom megatron_apo.rewards.worker import forbid_running_text\nforbid_running_text()\n{attack}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "is not allowed while an answer is graded" in done.stderr


@pytest.mark.parametrize(
    "formula", ["x^2+1", "\\frac{1}{2}", "e^{-x^{2}}", "10^{-7}", "(x+1)^{3}", "5!", "\\binom{5}{2}", "2^{10}"]
)
def test_what_an_answer_needs_is_not_refused(formula: str) -> None:
    assert text_refusal(formula) == "" and formula_refusal(formula) == ""


def test_the_table_in_the_documentation_is_the_tested_one() -> None:
    documented = Path(__file__).parents[3] / "docs" / "rewards.md"
    assert table() in documented.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "text", "gold", "outcome"), RESPONSES, ids=[name for name, *_ in RESPONSES])
def test_responses_that_try_to_be_paid_twice_or_for_nothing(name: str, text: str, gold: str, outcome: str) -> None:
    answer = extract_answer(text)
    assert ("no_answer" if answer is None else grade(answer, gold)) == outcome
