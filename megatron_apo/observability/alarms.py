"""Alarms: a metric that stays beyond a limit for several steps warns, or stops the run.

Pure functions over a run's metrics: what rings after a step follows from the lines of ``metrics.jsonl`` up to it, so a
resumed run takes its alarms up where they were. Another metric gets an alarm by one line in ``WATCHED`` and one in
``config.AlarmLimits``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from megatron_apo.config import AlarmsConfig

PREFIX = "alarm/"
_STOPPED = PREFIX + "stop_"


@dataclass(frozen=True)
class Watched:
    """A metric that has an alarm: on which side of its limit it rings ("from 1": farther from 1), what to try then."""

    metric: str
    side: Literal["above", "below", "from 1"]
    advice: str

    def outward(self, value: float) -> float:
        """How far out ``value`` lies on the side that is watched; compared with a limit's own."""
        return {"above": value, "below": -value, "from 1": abs(value - 1)}[self.side]


WATCHED: dict[str, Watched] = {
    "entropy": Watched(
        "policy/entropy",
        "below",
        "the policy is nearly deterministic and explores nothing; raise objective.clip_high or "
        "objective.kl.coefficient, lower optimizer.learning_rate, or start again from an earlier checkpoint",
    ),
    "zero_variance_groups": Watched(
        "apo/zero_variance_groups",
        "above",
        "almost every group is all right or all wrong and teaches nothing; give harder or easier prompts, or raise "
        "sampling.group_size",
    ),
    "clip_fraction": Watched(
        "policy/clip_fraction",
        "above",
        "the policy moves too far within one rollout; lower optimizer.learning_rate, training.updates_per_rollout or "
        "training.epochs_per_rollout",
    ),
    "truncated": Watched(
        "rollout/truncated",
        "above",
        "responses are cut before they end; raise sampling.max_tokens, or shorten them with objective.stcr",
    ),
    "kl": Watched(
        "kl/raw",
        "above",
        "the policy has left the initial one; raise objective.kl.coefficient or lower optimizer.learning_rate, and "
        "read what it writes: a reward may pay for something else than was meant",
    ),
    "kl_old": Watched(
        "policy/kl_old",
        "above",
        "the updates of one rollout take the policy far from the one that sampled it; lower optimizer.learning_rate, "
        "training.updates_per_rollout or training.epochs_per_rollout",
    ),
    "logprob_difference": Watched(
        "sync/logprob_difference_mean",
        "above",
        "engine and trainer give the sampled tokens different log-probabilities; correct it with "
        "objective.mismatch.correction, or bring their precision closer (model.dtype); sync.logprob_gate stops the run",
    ),
    "logprob_difference_max": Watched(
        "sync/logprob_difference_max",
        "above",
        "engine and trainer differ widely on some token; correct it with objective.mismatch.correction, or bring their "
        "precision closer (model.dtype)",
    ),
    "weight_mean": Watched(
        "mismatch/weight_mean",
        "from 1",
        "the engine samples from another policy than the trainer's: the mean weight of its own samples would be 1; "
        "look for settings of sampling that only one of them knows, or bring their precision closer (model.dtype)",
    ),
    "effective_sample_size": Watched(
        "mismatch/effective_sample_size",
        "below",
        "engine and trainer disagree so much that a few tokens or responses carry the update; correct it with "
        "objective.mismatch.correction, or bring their precision closer (model.dtype, sync.logprob_gate)",
    ),
    "corrected": Watched(
        "mismatch/corrected_share",
        "above",
        "objective.mismatch.correction cuts more than stray weights; widen objective.mismatch.lower and .upper, use "
        "objective.mismatch.level=token, or bring the precision of engine and trainer closer",
    ),
}


class AlarmError(RuntimeError):
    """A metric stayed beyond a limit of ``alarms.stop``. A checkpoint holds the run as it stood then."""


@dataclass(frozen=True)
class Limit:
    """``alarms.<action>.<name>=value``."""

    name: str
    action: Literal["warn", "stop"]
    value: float

    def crossed(self, value: float) -> bool:
        """Whether ``value`` lies beyond the limit; on it is not beyond."""
        watched = WATCHED[self.name]
        return watched.outward(value) > (self.value if watched.side == "from 1" else watched.outward(self.value))


@dataclass(frozen=True)
class Event:
    """Something to say once: an alarm that starts, is over, or stops the run."""

    kind: Literal["start", "end", "stop"]
    name: str
    message: str


@dataclass(frozen=True)
class Alarms:
    """What rings, and how many steps in a row have said otherwise. ``steps`` of them turn an alarm on or off."""

    limits: tuple[Limit, ...]
    steps: int
    ringing: frozenset[Limit] = frozenset()
    otherwise: Mapping[Limit, int] = field(default_factory=dict)

    def after(self, metrics: Mapping[str, Any]) -> tuple[Alarms, list[Event]]:
        """The alarms after one more step, and what there is to say; a metric absent or not finite has no say."""
        ringing, otherwise, events = set(self.ringing), dict(self.otherwise), []
        for limit in self.limits:
            value = metrics.get(WATCHED[limit.name].metric)
            if value is None or not math.isfinite(value):
                continue
            if limit.crossed(value) == (limit in ringing):
                otherwise[limit] = 0
                continue
            otherwise[limit] = otherwise.get(limit, 0) + 1
            if otherwise[limit] == self.steps:
                otherwise[limit] = 0
                events.append(self._event(limit, value, over=limit in ringing))
                ringing ^= {limit}
        return replace(self, ringing=frozenset(ringing), otherwise=otherwise), events

    def metrics(self) -> dict[str, float]:
        """``alarm/<name>`` of each alarm that may warn, 1 while it rings and else 0; ``alarm/active``: their sum."""
        found = {PREFIX + one.name: float(one in self.ringing) for one in self.limits if one.action == "warn"}
        return found | {f"{PREFIX}active": sum(found.values())} if found else {}

    def _event(self, limit: Limit, value: float, *, over: bool) -> Event:
        watched, row = WATCHED[limit.name], f"{self.steps} step{'s' if self.steps > 1 else ''} in a row"
        setting = f"alarms.{limit.action}.{limit.name}={limit.value:g}"
        if over:
            return Event("end", limit.name, f"alarm {limit.name} is over: {watched.metric} is {value:.4g} ({setting})")
        side = "farther from 1 than" if watched.side == "from 1" else watched.side
        message = f"alarm {limit.name}: {watched.metric} is {value:.4g}, {side} {setting} for {row}: "
        return Event("start" if limit.action == "warn" else "stop", limit.name, message + watched.advice)


def stop_metrics(events: Iterable[Event]) -> dict[str, float]:
    """``alarm/stop_<name>``, 1, of each alarm that stops the run after this step."""
    return {_STOPPED + event.name: 1.0 for event in events if event.kind == "stop"}


def build_alarms(config: AlarmsConfig, rows: Iterable[Mapping[str, Any]] = ()) -> Alarms:
    """The alarms that ``config`` asks for, as they stand after the steps of ``rows`` (lines of ``metrics.jsonl``)."""
    warn = (Limit(name, "warn", value) for name, value in asdict(config.warn).items() if value)
    stop = (Limit(name, "stop", value) for name, value in asdict(config.stop).items() if value)
    alarms = Alarms((*warn, *stop), config.steps)
    for row in rows:
        alarms, _ = alarms.after(row)
    # A stop limit that the steps before a resume had crossed (it may have been lowered since) stops at the next one.
    crossed = {limit: config.steps - 1 for limit in alarms.ringing if limit.action == "stop"}
    return replace(alarms, ringing=alarms.ringing - crossed.keys(), otherwise={**alarms.otherwise, **crossed})


@dataclass(frozen=True)
class Ring:
    """One time that an alarm rang: from ``first`` to ``last``, with the value farthest out.

    ``stopped``: it stopped the run after ``first``, which is ``last`` then.
    """

    name: str
    first: int
    last: int
    worst: float | None
    stopped: bool = False


def rings(rows: Sequence[Mapping[str, Any]]) -> list[Ring]:
    """When each alarm rang, from the ``alarm/…`` metrics of ``metrics.jsonl``, in the order of their starts."""
    found: list[Ring] = []
    for name, watched in WATCHED.items():
        current: Ring | None = None
        for row in rows:
            if row.get(_STOPPED + name):
                found.append(Ring(name, row["step"], row["step"], row.get(watched.metric), stopped=True))
            if row.get(PREFIX + name):
                values = [
                    one for one in (current.worst if current else None, row.get(watched.metric)) if one is not None
                ]
                worst = max(values, key=watched.outward) if values else None
                current = Ring(name, current.first if current else row["step"], row["step"], worst)
            elif current:
                found.append(current)
                current = None
        if current:
            found.append(current)
    return sorted(found, key=lambda ring: (ring.first, ring.stopped))
