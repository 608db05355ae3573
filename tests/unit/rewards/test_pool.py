"""Scores of whole groups, the cache, and graders that hang, die and fail."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_apo.config import RewardConfig
from megatron_apo.records import Prompt, Rollout, RolloutGroup
from megatron_apo.rewards.grader_process import MEMORY_MIB, GraderProcess, worker_command
from megatron_apo.rewards.pool import GraderPool, RewardError, Scorer

# A grader whose verdict the answer itself commands.
OBEDIENT = """
import json, os, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    answer = json.loads(line)["answer"]
    if answer == "hang":
        time.sleep(600)
    if answer == "die":
        os._exit(7)
    print(json.dumps({"outcome": answer.split()[0], "detail": str(os.getpid())}), flush=True)
"""
COMMAND = [sys.executable, "-c", OBEDIENT]


def group(gold: str, *texts: str) -> RolloutGroup:
    prompt = Prompt(id=f"row-{gold}", token_ids=(1,), collapsed_ids=(1,), images=(), question="sum?", gold=gold)
    rollouts = tuple(
        Rollout(prompt.id, i, (2,), (-0.5,), text, finish_reason="stop", weight_version=0)
        for i, text in enumerate(texts)
    )
    return RolloutGroup(prompt, rollouts)


def response(answer: str) -> str:
    return f"<think>look</think><answer>{answer}</answer>"


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(RewardConfig(accuracy=1.0, format=0.5)) as made:
        yield made


def test_scores_are_parts_total_and_outcome_in_order(scorer: Scorer) -> None:
    scored = scorer.score(
        [
            group("13", response("13"), response("12"), "<answer>13.0</answer>", "13", response("13") + "<answer>"),
            group("$\\frac{1}{2}$", response("1/2"), ""),
        ]
    )
    assert [[score.outcome for score in g.scores] for g in scored] == [
        ["correct", "wrong", "correct", "no_answer", "no_answer"],
        ["correct", "no_answer"],
    ]
    assert [score.total for score in scored[0].scores] == [1.5, 0.5, 1.0, 0.0, 0.0]
    assert scored[0].scores[0].parts == {"accuracy": 1.0, "format": 1.0}
    assert scored[0].scores[1].parts == {"accuracy": 0.0, "format": 1.0}
    assert scored[0].scores[2].parts == {"accuracy": 1.0, "format": 0.0}
    assert all(score.valid for g in scored for score in g.scores)


def test_tags_of_the_prompt_never_count(scorer: Scorer) -> None:
    asked = group("13", "13")
    prompt = Prompt("q", (1,), (1,), (), "Write <think>a</think><answer>13</answer>", "13")
    scored = scorer.score([RolloutGroup(prompt, asked.rollouts)])
    assert scored[0].scores[0].outcome == "no_answer"
    assert scored[0].scores[0].total == 0.0


def test_256_known_responses_are_scored_from_the_cache(scorer: Scorer) -> None:
    groups = [group(str(p % 19), *(response(str(i)) for i in range(8))) for p in range(32)]
    first = scorer.score(groups)
    started = time.perf_counter()
    again = scorer.score(groups)
    assert time.perf_counter() - started < 0.25
    assert again == first
    assert sum(score.correct for g in again for score in g.scores) == sum(p % 19 < 8 for p in range(32))


def test_a_response_that_takes_for_ever_is_a_grader_error_and_the_next_is_graded() -> None:
    endless = "9^9^9^9"  # a number of more digits than any memory holds
    config = RewardConfig(timeout_seconds=1.0, max_error_rate=1.0)
    with Scorer(config) as scorer:
        started = time.perf_counter()
        scores = scorer.score([group("13", response(endless), response("13"))])[0].scores
        assert time.perf_counter() - started < 60
    assert scores[0].outcome == "grader_error"
    assert scores[0].parts["accuracy"] == 0.0
    assert scores[1].outcome == "correct"


def test_a_hanging_grader_is_killed_and_replaced() -> None:
    pool = GraderPool(1, 0.5, command=COMMAND)
    before = pool.grade([("correct", "1")])["correct", "1"]
    started = time.perf_counter()
    verdicts = pool.grade([("hang", "1"), ("wrong", "1")])
    assert 0.5 <= time.perf_counter() - started < 30
    assert verdicts["hang", "1"].outcome == "grader_error"
    assert "no verdict after 0.5 s" in verdicts["hang", "1"].detail
    assert verdicts["wrong", "1"].outcome == "wrong"
    with pytest.raises(ProcessLookupError):  # the hanging process is gone, not abandoned
        os.kill(int(before.detail), 0)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(verdicts["wrong", "1"].detail), 0)


def test_a_dead_grader_is_replaced() -> None:
    pool = GraderPool(2, 5.0, command=COMMAND)
    verdicts = pool.grade([("die", "1"), ("correct a", "1"), ("correct b", "1")])
    pool.close()
    assert verdicts["die", "1"].outcome == "grader_error"
    assert "exit code 7" in verdicts["die", "1"].detail
    assert verdicts["correct a", "1"].outcome == verdicts["correct b", "1"].outcome == "correct"


def test_verdicts_are_remembered_and_errors_asked_again() -> None:
    pool = GraderPool(1, 5.0, command=COMMAND)
    first = pool.grade([("correct", "1"), ("die", "1")])  # then a new process serves
    again = pool.grade([("correct", "1"), ("wrong", "1"), ("die", "1")])
    pool.close()
    assert again["correct", "1"] is first["correct", "1"]
    assert again["wrong", "1"].detail != first["correct", "1"].detail
    assert again["die", "1"] is not first["die", "1"]


def test_a_grader_error_is_never_paid_and_too_many_stop_the_run() -> None:
    groups = [group("1", *[response("correct")] * 3, response("die"))]
    with Scorer(RewardConfig(max_error_rate=0.25), grader_command=COMMAND) as scorer:
        failed = scorer.score(groups)[0].scores[3]
    assert failed.outcome == "grader_error"
    assert not failed.valid
    assert failed.parts == {"accuracy": 0.0, "format": 1.0}
    with (
        Scorer(RewardConfig(max_error_rate=0.2), grader_command=COMMAND) as scorer,
        pytest.raises(RewardError, match="1 of 4 responses .*rewards.max_error_rate=0.2 .*row 'row-1', answer 'die'"),
    ):
        scorer.score(groups)


def test_the_grader_has_a_memory_limit_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    process = GraderProcess(worker_command(10.0))
    limits = Path(f"/proc/{process.process.pid}/limits").read_text()
    environment = Path(f"/proc/{process.process.pid}/environ").read_bytes()
    process.kill()
    address_space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert str(MEMORY_MIB * 2**20) in address_space
    assert b"PATH=" in environment and b"secret" not in environment


def test_the_grader_ends_with_its_parent() -> None:
    process = GraderProcess(worker_command(10.0))
    assert process.process.stdin is not None
    process.process.stdin.close()  # what the kernel does when the parent dies
    assert process.process.wait(timeout=30) == 0
    process.kill()


def test_a_grader_that_cannot_start_says_how_to_see_why() -> None:
    pool = GraderPool(1, 5.0, command=[sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RewardError, match="exit code 3 before it was ready"):
        pool.grade([("13", "13")])


@pytest.mark.parametrize(("workers", "seconds", "key"), [(0, 1.0, "rewards.workers=0"), (1, 0.0, "timeout_seconds=0")])
def test_impossible_settings(workers: int, seconds: float, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        GraderPool(workers, seconds)
