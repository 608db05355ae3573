"""Seconds by phase of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Wall-clock seconds of each phase since the last ``collect``.

    ``with timer.phase("rollout"): …`` may be entered several times in a step; the times add up. On an accelerator
    the caller synchronises first where a phase's kernels must be counted in it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what runs inside towards ``time/<name>``, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def collect(self) -> dict[str, float]:
        """``time/<phase>`` of each phase and ``time/step``, all since the last call, in seconds; starts anew."""
        now = time.perf_counter()
        seconds = {f"time/{name}": value for name, value in self._seconds.items()}
        seconds["time/step"] = now - self._started
        self._seconds = {}
        self._started = now
        return seconds
