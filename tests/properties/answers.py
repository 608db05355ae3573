"""Hostile answers and their mutations through the real grader processes: ``python -m tests.properties.answers``.

Prints every answer that took longer than its limit, cost a process, or was paid; a summary; with ``--table`` the
adversarial table of docs/rewards.md instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_apo.rewards.pool import Asked, GraderPool
from tests.properties.hostile import GOLDS, HOSTILE, mutations

LIMIT_SECONDS = 2.0

# What a response may try with its tags: (what, response, gold answer, outcome).
RESPONSES: list[tuple[str, str, str, str]] = [
    ("no answer block", "<think>a</think> 13", "13", "no_answer"),
    ("two answer blocks", "<answer>12</answer> <answer>13</answer>", "13", "no_answer"),
    ("the same answer twice", "<answer>13</answer> <answer>13</answer>", "13", "no_answer"),
    ("an answer inside the reasoning", "<think>so <answer>13</answer></think>", "13", "no_answer"),
    ("an answer in reasoning that the prompt opened", "so <answer>13</answer></think>", "13", "no_answer"),
    ("an answer in reasoning that never ends", "<think>so <answer>13</answer>", "13", "no_answer"),
    ("an empty answer", "<think>a</think><answer> </answer>", "13", "no_answer"),
    ("an answer nobody can see", "<think>a</think><answer>\u200b</answer>", "13", "no_answer"),
    ("tags inside the answer", "<answer><think>12</think>13</answer>", "13", "no_answer"),
    ("a tag with a hidden character", "<ans\u200bwer>13</answer>", "13", "no_answer"),
    ("tags in capitals", "<ANSWER>13</ANSWER>", "13", "no_answer"),
    ("an answer without an end", "<think>a</think><answer>13", "13", "no_answer"),
    ("a hidden character in the answer", "<answer>1\u200b3</answer>", "13", "wrong"),
    ("several letters", "<answer>A B C D</answer>", "B", "wrong"),
    ("a letter or another", "<answer>A or B</answer>", "B", "wrong"),
    ("a letter with another option's text", "<answer>B. A</answer>", "B", "wrong"),
    ("several numbers", "<answer>12 or 13</answer>", "13", "wrong"),
    ("a number denied", "<answer>not 13</answer>", "13", "wrong"),
    ("a false equation that ends well", "<answer>12 = 13</answer>", "13", "wrong"),
    ("another unit", "<answer>5 mm</answer>", "5 cm", "wrong"),
]


@dataclass
class Tally:
    """What a sweep saw: verdicts by outcome, what was paid (answer, gold answer), and the answer that took longest for
    all gold answers together."""

    outcomes: Counter[str] = field(default_factory=Counter)
    paid: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: str = ""


def sweep(
    answers: Sequence[str], golds: Sequence[str], *, may_be_right: bool = False, tally: Tally | None = None
) -> list[str]:
    """Grades every answer against every gold answer in one process; a line for each that is not as it should be."""
    pool = GraderPool(1, LIMIT_SECONDS)
    pool.grade([Asked("1", "1")])
    tally = Tally() if tally is None else tally
    wrong = []
    for answer in answers:
        asked = [Asked(answer, gold) for gold in golds]
        started = time.perf_counter()
        verdicts = pool.grade(asked)
        seconds = time.perf_counter() - started
        for item, verdict in verdicts.items():
            tally.outcomes[verdict.outcome] += 1
            if verdict.outcome == "correct":
                tally.paid.append((item.answer, item.gold))
            paid = verdict.outcome == "correct" and not may_be_right
            if verdict.outcome == "grader_error" or paid:
                wrong.append(f"{verdict.outcome} {verdict.detail}: {item.answer[:80]!r} for {item.gold!r}")
        if seconds > tally.seconds:
            tally.seconds, tally.slowest = seconds, answer
        if seconds > LIMIT_SECONDS * len(golds):
            wrong.append(f"slow: {answer[:80]!r}")
    pool.close()
    return wrong


def table() -> str:
    """The adversarial table: input class, an example, the outcome."""
    rows = ["| input class | for example | outcome |", "|---|---|---|"]
    rows += [f"| {name} | `{_shown(text)}` | `{outcome}` |" for name, text, _, outcome in RESPONSES]
    rows += [f"| {name} ({len(answers)}) | `{_shown(answers[0])}` | `wrong` |" for name, answers in HOSTILE.items()]
    return "\n".join(rows)


def _shown(text: str) -> str:
    shown = text.encode("unicode_escape").decode().replace("\\\\", "\\").replace("|", "\\|")
    return shown if len(shown) <= 60 else f"{shown[:50]} …"


def main() -> None:
    """The whole list against every gold answer, then ``--mutations`` random changes of it; status 1 for findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of docs/rewards.md and nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    answers = [answer for group in HOSTILE.values() for answer in group]
    listed, mutated = Tally(), Tally()
    findings = sweep(answers, GOLDS, tally=listed)
    findings += sweep(mutations(arguments.mutations, arguments.seed), GOLDS, may_be_right=True, tally=mutated)
    print("\n".join(findings))
    for name, tally in (("listed", listed), ("mutations", mutated)):
        told = ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.most_common())
        print(f"{name}: {told}; slowest {tally.seconds:.2f} s for all gold answers: {tally.slowest[:80]!r}")
        for answer, gold in tally.paid:
            print(f"  paid: {answer[:80]!r} for {gold!r}")
    print(
        f"{len(answers)} hostile answers and {arguments.mutations} mutations (seed {arguments.seed}), each for "
        f"{len(GOLDS)} gold answers: {len(findings)} findings"
    )
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
