"""When the loop saves, and what it leaves when it is told to stop; the steps themselves are made up."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_apo import loop
from megatron_apo.config import Config, RunConfig
from megatron_apo.loop import LoopParts, StepOutcome, run_loop
from megatron_apo.objective.samples import ShapedStep
from megatron_apo.parallel.groups import Groups

Saved = list[tuple[int, int, bool]]


class Log:
    """Asks for a stop after step ``last`` (0: never)."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.log = self
        self.steps: list[int] = []

    def record(self, step: int, *_: Any) -> str:
        self.steps.append(step)
        return "enough" if step == self.last else ""


@pytest.mark.parametrize(
    ("stop", "saved"),
    [
        (0, [(2, 12, False), (4, 14, False), (5, 15, False)]),
        (3, [(2, 12, False), (3, 13, True)]),
        (4, [(2, 12, False), (4, 14, True)]),  # due anyway, and yet nothing older may go
        (5, [(2, 12, False), (4, 14, False), (5, 15, True)]),
    ],
)
def test_a_stop_is_saved_when_it_comes_and_removes_nothing(
    stop: int, saved: Saved, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps, every second is saved; weight version 10 at the start."""
    monkeypatch.setattr(loop, "run_step", lambda *_: StepOutcome({}, [], ShapedStep((), (), (), {})))
    found: Saved = []

    def save(step: int, version: int, *, keep_all: bool = False) -> None:
        found.append((step, version, keep_all))

    log, nothing = Log(stop), dict[str, float]
    config = Config(run=RunConfig(steps=5, save_every=2))
    trainer: Any = None
    controller: Any = log
    parts = LoopParts(config, one_process, trainer, controller, lambda _: nothing(), save, lambda _: nothing())
    assert run_loop(parts, first_step=1, version=10) == ("enough" if stop else "")
    assert found == saved
    assert log.steps == list(range(1, (stop or 5) + 1))
