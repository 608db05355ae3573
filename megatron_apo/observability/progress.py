"""The numbers a person watches while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from megatron_apo.observability.alarms import PREFIX

# metric -> (label, format); shown in this order when present.
WATCHED: dict[str, tuple[str, str]] = {
    "loss/total": ("loss", ".4f"),
    "reward/total": ("reward", ".3f"),
    "reward/accuracy": ("acc", ".3f"),
    "evaluation/accuracy": ("val", ".3f"),
    "evaluation/loss": ("val loss", ".4f"),
    "evaluation/token_accuracy": ("val tokens", ".3f"),
    "rollout/response_length": ("len", ".1f"),
    "kl/raw": ("kl", ".4f"),
    "policy/entropy": ("ent", ".3f"),
    "time/step": ("s/step", ".2f"),
}


class Progress:
    """A bar on a terminal; elsewhere (a file, a pipe) one line now and then, without control characters.

    ``total`` counts steps, ``initial`` those done before a resume. Off a terminal a line comes every ``every_steps``
    steps or ``every_seconds``, whichever is sooner, and for the first and the last step.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        label: str = "train",
        enabled: bool = True,
        stream: TextIO | None = None,
        every_steps: int = 10,
        every_seconds: float = 15.0,
    ):
        self._stream = stream if stream is not None else sys.stderr
        self._total = total
        self._first = initial + 1
        self._label = label
        self._enabled = enabled
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._last_line = time.monotonic()
        self._last_step = initial
        self._bar = None
        if enabled and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, desc=label, file=self._stream, dynamic_ncols=True, smoothing=0.1
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows that ``step`` (1-based) is done, with what it measured."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(watched_line(metrics) + phases_line(metrics), refresh=False)
            self._bar.update(step - self._last_step)
        elif (
            step in (self._first, self._total)
            or step % self._every_steps == 0
            or time.monotonic() - self._last_line >= self._every_seconds
        ):
            self.message(f"{self._label} {step}/{self._total}  {watched_line(metrics)}{phases_line(metrics)}")
        self._last_step = step

    def message(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)
            self._last_line = time.monotonic()

    def close(self) -> None:
        """Leaves the bar as it stands; safe to call twice."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def watched_line(metrics: Mapping[str, float]) -> str:
    """``reward 1.234 acc 0.567 …``: the watched metrics that are present, and the alarms that ring."""
    shown = [f"{label} {metrics[name]:{spec}}" for name, (label, spec) in WATCHED.items() if name in metrics]
    alarms = [name.removeprefix(PREFIX) for name, on in metrics.items() if name.startswith(PREFIX) and on]
    alarms = [name for name in alarms if name != "active" and not name.startswith("stop_")]
    return " ".join([*shown, f"ALARM {', '.join(alarms)}"] if alarms else shown)


def phases_line(metrics: Mapping[str, float]) -> str:
    """`` (rollout 0.41, update 0.52)``: seconds of each phase, longest first, of those that take at least 1 %."""
    total = metrics.get("time/step", 0.0)
    phases = {
        name.removeprefix("time/"): seconds
        for name, seconds in metrics.items()
        if name.startswith("time/") and name != "time/step" and seconds >= 0.01 * total
    }
    if not phases:
        return ""
    return " (" + ", ".join(f"{n} {s:.2f}" for n, s in sorted(phases.items(), key=lambda item: -item[1])) + ")"
