"""Scoring: rollouts in, scores out; grading and the user's rewards in pools of processes that can be killed."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from megatron_apo.config import RewardConfig
from megatron_apo.records import Outcome, Rollout, RolloutGroup, Score
from megatron_apo.rewards.accuracy import extract_answer
from megatron_apo.rewards.choices import options_of
from megatron_apo.rewards.format import format_reward
from megatron_apo.rewards.grader_process import RewardError, worker_command
from megatron_apo.rewards.guards import MAX_CHARACTERS
from megatron_apo.rewards.overlong import OverlongPunishment
from megatron_apo.rewards.process_pool import NotReadyError, ProcessPool
from megatron_apo.rewards.user_rewards import UserReward, find_user_rewards

__all__ = ["REWARDS", "Asked", "GraderPool", "RewardError", "Scorer", "Verdict", "check_user_rewards"]

CACHE_ENTRIES = 65536

# name of the part -> (response text, graded outcome) -> the part, 0 or 1. The weights are the config's fields of the
# same names.
REWARDS: dict[str, Callable[[str, Outcome], float]] = {
    "accuracy": lambda _text, outcome: float(outcome == "correct"),
    "format": lambda text, _outcome: float(format_reward(text)),
}


@dataclass(frozen=True)
class Asked:
    """What there is to grade: an extracted answer, the row's gold answer and its options, if it has any."""

    answer: str
    gold: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the grader said; ``detail`` tells why it could not judge."""

    outcome: Outcome
    detail: str = ""


class GraderPool:
    """Grades answers in ``workers`` processes, each answer within ``timeout_seconds``.

    A process that takes longer, or dies, is replaced; its answer is a grader error. Verdicts are remembered
    (``CACHE_ENTRIES`` of them, least recently used dropped first), errors are not: a busy machine may have caused
    them. ``command`` replaces the grader's command line.
    """

    def __init__(
        self,
        workers: int,
        timeout_seconds: float,
        *,
        memory_mib: int = RewardConfig.memory_mib,
        tolerance: float = 0.0,
        command: Sequence[str] | None = None,
    ):
        if workers < 1:
            raise ValueError(f"rewards.workers={workers}: at least one grader process is needed")
        if timeout_seconds <= 0:
            raise ValueError(f"rewards.timeout_seconds={timeout_seconds}: must be above 0")
        self._tolerance = tolerance
        command = list(command) if command is not None else worker_command(timeout_seconds, memory_mib)
        self._processes = ProcessPool(command, workers, timeout_seconds)
        self._cache: OrderedDict[Asked, Verdict] = OrderedDict()

    def grade(self, asked: Iterable[Asked]) -> dict[Asked, Verdict]:
        """A verdict for everything that is asked; raises RewardError when no grader can be started."""
        verdicts: dict[Asked, Verdict] = {}
        waiting: list[Asked] = []
        for item in dict.fromkeys(asked):
            if len(item.answer) > MAX_CHARACTERS:  # the grader would say the same; no need to send it there
                verdicts[item] = Verdict("wrong", f"{len(item.answer)} characters")
            elif item in self._cache:
                self._cache.move_to_end(item)
                verdicts[item] = self._cache[item]
            else:
                waiting.append(item)
        requests = [
            {"answer": item.answer, "gold": item.gold, "options": item.options, "tolerance": self._tolerance}
            for item in waiting
        ]
        for item, reply in zip(waiting, self._processes.run(requests), strict=True):
            if "error" in reply:
                verdicts[item] = Verdict("grader_error", reply["error"])
            else:
                verdicts[item] = Verdict(reply["outcome"], reply["detail"])
            self._remember(item, verdicts[item])
        return verdicts

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        self._processes.close()

    def _remember(self, item: Asked, verdict: Verdict) -> None:
        if verdict.outcome == "grader_error":
            return
        self._cache[item] = verdict
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)


class Scorer:
    """Scores groups of rollouts: each part of ``REWARDS`` as 0 or 1, the user's as they come, their weighted sum, and
    correctness.

    ``overlong`` adds a part of its own, -1 to 0, of responses near the cap.

    A response that the grader could not judge, or that one of the user's rewards failed on, has outcome
    "grader_error" and is not ``valid``: it is left out of its group, never paid. Processes start with the first answer
    to grade. Use it as a context manager, or close it.
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
        self.first_error = ""  # of all responses that could not be judged, the first, with its reason
        self._pool = GraderPool(
            config.workers,
            config.timeout_seconds,
            memory_mib=config.memory_mib,
            tolerance=config.tolerance,
            command=grader_command,
        )
        self.user_rewards = _user_rewards(config)
        self._user_pool = _user_pool(config, self.user_rewards) if self.user_rewards else None

    def score(self, groups: Sequence[RolloutGroup], earlier: Sequence[RolloutGroup] = ()) -> list[RolloutGroup]:
        """The same groups with ``scores`` filled, one per rollout, in order.

        Raises RewardError when more than ``rewards.max_error_rate`` of the responses could not be judged, those of the
        scored groups ``earlier`` in the same step counted too: a refill may be a few responses.
        """
        asked = [self._asked(group) for group in groups]
        graded = self._pool.grade(item for of_group in asked for item in of_group if item is not None)
        verdicts = [[Verdict("no_answer") if item is None else graded[item] for item in of_group] for of_group in asked]
        parts = self._user_parts(groups, asked, verdicts)
        scored = []
        errors: list[str] = []
        for group, of_group, verdicts_of_group, parts_of_group in zip(groups, asked, verdicts, parts, strict=True):
            scores = []
            for rollout, item, verdict, part in zip(
                group.rollouts, of_group, verdicts_of_group, parts_of_group, strict=True
            ):
                if isinstance(part, str):  # one of the user's rewards failed
                    verdict, part = Verdict("grader_error", part), {}
                score = self._score(rollout, verdict.outcome, part)
                if not math.isfinite(score.total):
                    why = f"the parts {score.parts} make the total {score.total}; lower the weights of rewards.user"
                    verdict = Verdict("grader_error", why)
                    score = self._score(rollout, verdict.outcome, {})
                if verdict.outcome == "grader_error":
                    answer = "" if item is None else item.answer
                    errors.append(f"row {group.prompt.id!r}, answer {answer[:80]!r}: {verdict.detail}")
                scores.append(score)
            scored.append(replace(group, scores=tuple(scores)))
        self.first_error = self.first_error or next(iter(errors), "")
        before = sum(not score.valid for group in earlier for score in group.scores)
        self._check_error_rate(errors, before, sum(len(group.rollouts) for group in (*earlier, *groups)))
        return scored

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        self._pool.close()
        if self._user_pool is not None:
            self._user_pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _asked(self, group: RolloutGroup) -> list[Asked | None]:
        """The answer of each response with what it is graded against; None for a response without one."""
        prompt = group.prompt
        options = options_of(prompt.question, prompt.choices)
        answers = [extract_answer(rollout.text) for rollout in group.rollouts]
        return [None if answer is None else Asked(answer, prompt.gold, options) for answer in answers]

    def _user_parts(
        self,
        groups: Sequence[RolloutGroup],
        asked: Sequence[Sequence[Asked | None]],
        verdicts: Sequence[Sequence[Verdict]],
    ) -> list[list[dict[str, float] | str]]:
        """What the user's rewards say of every response: their values by name, or why one of them has none.

        A response that could not be graded is not shown to them: it counts nowhere.
        """
        parts: list[list[dict[str, float] | str]] = [[{} for _ in group.rollouts] for group in groups]
        if self._user_pool is None:
            return parts
        places = [
            (p, g, reward)
            for p, group in enumerate(groups)
            for g in range(len(group.rollouts))
            if verdicts[p][g].outcome != "grader_error"
            for reward in self.user_rewards
        ]
        requests = [
            {"reward": reward.source, "arguments": _arguments(groups[p], g, asked[p][g], verdicts[p][g])}
            for p, g, reward in places
        ]
        for (p, g, reward), reply in zip(places, self._user_pool.run(requests), strict=True):
            found = parts[p][g]
            if "error" in reply:
                parts[p][g] = f"rewards.user={reward.source}: {reply['error']}"
            elif isinstance(found, dict):
                found[reward.name] = reply["value"]
        return parts

    def _score(self, rollout: Rollout, outcome: Outcome, user_parts: dict[str, float]) -> Score:
        parts = {name: reward(rollout.text, outcome) for name, reward in REWARDS.items()}
        weights = {**self._weights, **{reward.name: reward.weight for reward in self.user_rewards}}
        parts |= user_parts
        try:
            total = math.fsum(weights[name] * part for name, part in parts.items())
        except (OverflowError, ValueError):  # the sum of finite ones is too large; infinities of both signs
            total = math.nan
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


def check_user_rewards(config: RewardConfig) -> None:
    """Loads the functions of ``rewards.user`` once, in a process as they will run in.

    ValueError for one that cannot be found or loaded: told before anything else is, not with the first responses.
    """
    rewards = _user_rewards(config)
    if not rewards:
        return
    processes = _user_pool(config, rewards)
    try:
        processes.start()
    except NotReadyError as error:
        said, names = error.why, ", ".join(reward.source for reward in rewards)
        named = said if said.startswith("rewards.user=") else f"rewards.user={names}: cannot be loaded; {said}"
        raise ValueError(f"{named}; correct it, or leave it out. To see more: {error.command}") from error
    finally:
        processes.close()


def _user_rewards(config: RewardConfig) -> list[UserReward]:
    return find_user_rewards(config.user, taken=(*REWARDS, "overlong", "total", "grader_error"))


def _user_pool(config: RewardConfig, rewards: Sequence[UserReward]) -> ProcessPool:
    sources = [(reward.source, reward.sha256) for reward in rewards]
    command = worker_command(config.timeout_seconds, config.memory_mib, sources)
    return ProcessPool(command, config.workers, config.timeout_seconds)


def _arguments(group: RolloutGroup, index: int, asked: Asked | None, verdict: Verdict) -> dict[str, object]:
    """What a reward of the user's may ask for (``user_rewards.ARGUMENTS``)."""
    prompt, rollout = group.prompt, group.rollouts[index]
    return {
        "response": rollout.text,
        "answer": None if asked is None else asked.answer,
        "gold": prompt.gold,
        "question": prompt.question,
        "outcome": verdict.outcome,
        "row_id": prompt.id,
        "category": prompt.category,
        "tokens": len(rollout.token_ids),
        "finish_reason": rollout.finish_reason,
    }
