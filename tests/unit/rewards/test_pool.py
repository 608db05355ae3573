"""Scores of whole groups, the cache, and graders that hang, die and fail."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_apo.config import RewardConfig
from megatron_apo.records import Prompt, Rollout, RolloutGroup
from megatron_apo.rewards import process_pool
from megatron_apo.rewards.grader_process import GraderProcess, worker_command
from megatron_apo.rewards.pool import Asked, GraderPool, RewardError, Scorer
from megatron_apo.rewards.process_pool import BATCH, ProcessPool

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


def asked(*answers: str) -> list[Asked]:
    return [Asked(answer, "1") for answer in answers]


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


def test_a_hanging_grader_is_killed_and_replaced() -> None:
    pool = GraderPool(1, 0.5, command=COMMAND)
    (before,) = pool.grade(asked("correct")).values()
    started = time.perf_counter()
    hung, judged = pool.grade(asked("hang", "wrong")).values()
    assert 0.5 <= time.perf_counter() - started < 30
    assert hung.outcome == "grader_error"
    assert "no reply after 0.5 s" in hung.detail
    assert judged.outcome == "wrong"
    with pytest.raises(ProcessLookupError):  # the hanging process is gone, not abandoned
        os.kill(int(before.detail), 0)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(judged.detail), 0)


def test_a_dead_grader_is_replaced() -> None:
    pool = GraderPool(2, 5.0, command=COMMAND)
    died, *judged = pool.grade(asked("die", "correct a", "correct b")).values()
    pool.close()
    assert died.outcome == "grader_error"
    assert "exit code 7" in died.detail
    assert [verdict.outcome for verdict in judged] == ["correct", "correct"]


def test_of_a_batch_only_the_request_in_hand_is_to_blame() -> None:
    pool = ProcessPool(COMMAND, 1, 0.5)
    answers = ["correct"] * BATCH + ["hang"] + ["wrong"] * BATCH + ["die"] + ["correct"] * BATCH
    replies = pool.run([{"answer": answer} for answer in answers])
    pool.close()
    expected = ["grader_error" if answer in ("hang", "die") else answer for answer in answers]
    assert [reply.get("outcome", "grader_error") for reply in replies] == expected


def test_a_frozen_grader_that_reads_nothing_blocks_nobody() -> None:
    pool = ProcessPool(COMMAND, 1, 1.0)
    (first,) = pool.run([{"answer": "correct"}])
    os.kill(int(first["detail"]), signal.SIGSTOP)
    replies = pool.run([{"answer": "wrong", "more": "x" * 1_000_000}] * 2)  # much more than a pipe holds
    pool.close()
    assert "no reply after 1 s" in replies[0]["error"]
    assert replies[1]["outcome"] == "wrong"


def test_a_grader_that_dies_idle_costs_no_answer() -> None:
    pool = ProcessPool(COMMAND, 1, 5.0)
    (first,) = pool.run([{"answer": "correct"}])
    os.kill(int(first["detail"]), signal.SIGKILL)
    time.sleep(0.2)
    assert pool.run([{"answer": "wrong"}])[0]["outcome"] == "wrong"
    pool.close()


def test_after_a_loss_processes_are_kept_in_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    start = process_pool.GraderProcess
    monkeypatch.setattr(process_pool, "GraderProcess", lambda command: (started.append(command), start(command))[1])
    pool = ProcessPool(COMMAND, 2, 0.3)
    pool.run([{"answer": "correct"}] * 2)
    assert len(started) == 1  # little to do, and nothing lost
    pool.run([{"answer": "hang"}])
    pool.run([{"answer": "correct"}])
    assert len(started) == 4  # its replacement and one in reserve for each of the two workers
    pool.close()


def test_verdicts_are_remembered_and_errors_asked_again() -> None:
    pool = GraderPool(1, 5.0, command=COMMAND)
    first = pool.grade(asked("correct", "die"))  # then a new process serves
    again = pool.grade(asked("correct", "wrong", "die"))
    pool.close()
    correct, wrong, die = asked("correct", "wrong", "die")
    assert again[correct] is first[correct]
    assert again[wrong].detail != first[correct].detail
    assert again[die] is not first[die]


def test_the_same_answer_to_another_gold_or_other_options_is_another_question() -> None:
    pool = GraderPool(1, 30.0)
    answers = [Asked("B", "B"), Asked("B", "C"), Asked("B", "bar", ("foo", "bar")), Asked("B", "bar", ("bar", "foo"))]
    verdicts = pool.grade(answers)
    pool.close()
    assert [verdicts[answer].outcome for answer in answers] == ["correct", "wrong", "correct", "wrong"]


def test_scores_are_the_same_from_the_main_thread_and_another(scorer: Scorer) -> None:
    groups = [group("\\frac{3}{7}", response("3/7"), response("\\frac{6}{14}"), response("9^9^9^9"), "3/7")]
    found: list[object] = []
    with Scorer(RewardConfig()) as other:
        thread = threading.Thread(target=lambda: found.append(other.score(groups)))
        thread.start()
        thread.join(60)
    assert [score.outcome for score in found[0][0].scores] == ["correct", "correct", "wrong", "no_answer"]  # type: ignore[index]
    assert [score.outcome for score in scorer.score(groups)[0].scores] == ["correct", "correct", "wrong", "no_answer"]


def test_options_come_from_the_row_and_from_its_question(scorer: Scorer) -> None:
    texts = (response("B"), response("blue dog"), response("A"), response("A B"))
    listed = "Which? (A) red cat (B) blue dog"
    for question, choices in ((listed, ()), ("Which?", ("red cat", "blue dog"))):
        prompt = replace(group("B").prompt, question=question, choices=choices)
        (scored,) = scorer.score([RolloutGroup(prompt, group("B", *texts).rollouts)])
        assert [score.outcome for score in scored.scores] == ["correct", "correct", "wrong", "wrong"]


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
    process = GraderProcess(worker_command(10.0, 3000))
    assert b"ready" in os.read(process.fileno(), 100)
    limits = Path(f"/proc/{process.process.pid}/limits").read_text()
    environment = Path(f"/proc/{process.process.pid}/environ").read_bytes()
    process.kill()
    address_space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert str(3000 * 2**20) in address_space
    assert b"PATH=" in environment and b"secret" not in environment


def test_the_grader_ends_with_its_parent() -> None:
    process = GraderProcess(worker_command(10.0, 4096))
    assert process.process.stdin is not None
    process.process.stdin.close()  # what the kernel does when the parent dies
    assert process.process.wait(timeout=30) == 0
    process.kill()


def test_a_grader_that_cannot_start_says_how_to_see_why() -> None:
    pool = GraderPool(1, 5.0, command=[sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RewardError, match=r"not ready: .*exit code 3.*; run it by hand"):
        pool.grade(asked("13"))


@pytest.mark.parametrize(("workers", "seconds", "key"), [(0, 1.0, "rewards.workers=0"), (1, 0.0, "timeout_seconds=0")])
def test_impossible_settings(workers: int, seconds: float, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        GraderPool(workers, seconds)
