"""Scoring: rollouts in, scores out; the grading in a pool of processes that can be killed."""

from __future__ import annotations

import selectors
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import cast

from megatron_apo.config import RewardConfig
from megatron_apo.records import Outcome, Rollout, RolloutGroup, Score
from megatron_apo.rewards.accuracy import extract_answer
from megatron_apo.rewards.format import format_reward
from megatron_apo.rewards.grader_process import GraderProcess, RewardError, worker_command
from megatron_apo.rewards.overlong import OverlongPunishment

__all__ = ["REWARDS", "GraderPool", "RewardError", "Scorer", "Verdict"]

CACHE_ENTRIES = 65536

# name of the part -> (response text, graded outcome) -> the part, 0 or 1. The weights are the config's fields of the
# same names.
REWARDS: dict[str, Callable[[str, Outcome], float]] = {
    "accuracy": lambda _text, outcome: float(outcome == "correct"),
    "format": lambda text, _outcome: float(format_reward(text)),
}


@dataclass(frozen=True)
class Verdict:
    """What the grader said of one (answer, gold); ``detail`` tells why it could not judge."""

    outcome: Outcome
    detail: str = ""


class GraderPool:
    """Grades (answer, gold) pairs in ``workers`` processes, each answer within ``timeout_seconds``.

    A process that takes longer, or dies, is replaced; its answer is a grader error. Judged pairs are remembered
    (``CACHE_ENTRIES`` of them, least recently used dropped first), errors are not: a busy machine may have caused
    them. ``command`` replaces the grader's command line.
    """

    def __init__(self, workers: int, timeout_seconds: float, *, command: Sequence[str] | None = None):
        if workers < 1:
            raise ValueError(f"rewards.workers={workers}: at least one grader process is needed")
        if timeout_seconds <= 0:
            raise ValueError(f"rewards.timeout_seconds={timeout_seconds}: must be above 0")
        self._workers = workers
        self._timeout_seconds = timeout_seconds
        self._command = list(command) if command is not None else worker_command(timeout_seconds)
        self._processes: list[GraderProcess] = []
        self._cache: OrderedDict[tuple[str, str], Verdict] = OrderedDict()

    def grade(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Verdict]:
        """A verdict for every distinct (answer, gold); raises RewardError when no grader can be started."""
        verdicts: dict[tuple[str, str], Verdict] = {}
        waiting: deque[tuple[str, str]] = deque()
        for pair in dict.fromkeys(pairs):
            if pair in self._cache:
                self._cache.move_to_end(pair)
                verdicts[pair] = self._cache[pair]
            else:
                waiting.append(pair)
        if waiting:
            self._grade_in_processes(waiting, verdicts)
        return verdicts

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        for process in self._processes:
            process.kill()
        self._processes.clear()

    def _grade_in_processes(self, waiting: deque[tuple[str, str]], verdicts: dict[tuple[str, str], Verdict]) -> None:
        """Hands out one answer at a time to each process until all have a verdict."""
        busy: list[GraderProcess] = []
        idle = list(self._processes)
        try:
            while waiting or busy:
                while waiting and len(busy) < self._workers:
                    process = idle.pop() if idle else self._start()
                    busy.append(process)
                    if not process.ask(waiting[0], self._timeout_seconds):
                        # It died while idle: the answer is not to blame and goes to the next process.
                        self._drop(process, busy)
                        continue
                    waiting.popleft()
                for process, verdict in self._wait(busy):
                    assert process.pending is not None
                    verdicts[process.pending] = verdict
                    self._remember(process.pending, verdict)
                    process.pending = None
                    if process in self._processes:
                        busy.remove(process)
                        idle.append(process)
                busy = [process for process in busy if process in self._processes]
        finally:
            for process in busy:  # only after an exception: their replies would answer the next call's questions
                self._drop(process, busy.copy())

    def _wait(self, busy: list[GraderProcess]) -> list[tuple[GraderProcess, Verdict]]:
        """Blocks until a reply, a death or the first deadline; kills what is past its time."""
        finished: list[tuple[GraderProcess, Verdict]] = []
        with selectors.DefaultSelector() as selector:
            for process in busy:
                selector.register(process, selectors.EVENT_READ)
            first = min(process.deadline for process in busy)
            for key, _ in selector.select(max(0.0, first - time.monotonic())):
                process = cast(GraderProcess, key.fileobj)
                try:
                    reply = process.read_reply()
                except EOFError:
                    self._drop(process, [])
                    code = process.process.returncode
                    finished.append((process, Verdict("grader_error", f"the grader process ended (exit code {code})")))
                    continue
                if reply is not None:
                    finished.append((process, Verdict(cast(Outcome, reply["outcome"]), str(reply["detail"]))))
        answered = {id(process) for process, _ in finished}
        for process in busy:
            if id(process) not in answered and time.monotonic() >= process.deadline:
                self._drop(process, [])
                finished.append((process, Verdict("grader_error", f"no verdict after {self._timeout_seconds:g} s")))
        return finished

    def _start(self) -> GraderProcess:
        process = GraderProcess(self._command)
        self._processes.append(process)
        return process

    def _drop(self, process: GraderProcess, busy: list[GraderProcess]) -> None:
        process.kill()
        if process in self._processes:
            self._processes.remove(process)
        if process in busy:
            busy.remove(process)

    def _remember(self, pair: tuple[str, str], verdict: Verdict) -> None:
        if verdict.outcome == "grader_error":
            return
        self._cache[pair] = verdict
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)


class Scorer:
    """Scores groups of rollouts: each part of ``REWARDS`` as 0 or 1, their weighted sum, and correctness.

    ``overlong`` adds a part of its own, -1 to 0, of responses near the cap.

    A response that the grader could not judge has accuracy 0, outcome "grader_error" and is not ``valid``: it is left
    out of its group, never paid. Grader processes start with the first answer to grade. Use it as a context manager,
    or close it.
    """

    def __init__(
        self,
        config: RewardConfig,
        *,
        overlong: OverlongPunishment | None = None,
        grader_command: Sequence[str] | None = None,
    ):
        self._overlong = overlong
        self._weights = {name: float(getattr(config, name)) for name in REWARDS}
        self._max_error_rate = config.max_error_rate
        self._pool = GraderPool(config.workers, config.timeout_seconds, command=grader_command)

    def score(self, groups: Sequence[RolloutGroup], earlier: Sequence[RolloutGroup] = ()) -> list[RolloutGroup]:
        """The same groups with ``scores`` filled, one per rollout, in order.

        Raises RewardError when more than ``rewards.max_error_rate`` of the responses could not be judged, those of the
        scored groups ``earlier`` in the same step counted too: a refill may be a few responses.
        """
        answers = [[extract_answer(rollout.text) for rollout in group.rollouts] for group in groups]
        verdicts = self._pool.grade(
            (answer, group.prompt.gold)
            for group, of_group in zip(groups, answers, strict=True)
            for answer in of_group
            if answer is not None
        )
        errors: list[str] = []
        scored = []
        for group, of_group in zip(groups, answers, strict=True):
            scores = []
            for rollout, answer in zip(group.rollouts, of_group, strict=True):
                verdict = Verdict("no_answer") if answer is None else verdicts[answer, group.prompt.gold]
                if verdict.outcome == "grader_error":
                    errors.append(f"row {group.prompt.id!r}, answer {(answer or '')[:80]!r}: {verdict.detail}")
                scores.append(self._score(rollout, verdict.outcome))
            scored.append(replace(group, scores=tuple(scores)))
        before = sum(not score.valid for group in earlier for score in group.scores)
        self._check_error_rate(errors, before, sum(len(group.rollouts) for group in (*earlier, *groups)))
        return scored

    def close(self) -> None:
        """Ends the grader processes; safe to call twice."""
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _score(self, rollout: Rollout, outcome: Outcome) -> Score:
        parts = {name: reward(rollout.text, outcome) for name, reward in REWARDS.items()}
        total = sum(self._weights[name] * part for name, part in parts.items())
        if self._overlong is not None:
            parts["overlong"] = self._overlong.part(len(rollout.token_ids))
            total += self._overlong.weight * parts["overlong"]
        return Score(total=total, parts=parts, outcome=outcome)

    def _check_error_rate(self, errors: list[str], before: int, responses: int) -> None:
        if errors and before + len(errors) > self._max_error_rate * responses:
            raise RewardError(
                f"{before + len(errors)} of {responses} responses could not be graded, more than "
                f"rewards.max_error_rate={self._max_error_rate:g} allows; for example {errors[0]}. Look at that row; "
                "raise rewards.timeout_seconds if the machine is slow"
            )
