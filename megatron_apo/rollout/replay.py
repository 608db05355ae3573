"""Recorded rollouts in place of an engine: ``rollout.replay: DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_apo.records import Prompt, RolloutGroup
from megatron_apo.rollout.record_files import read_step, recorded_steps


class ReplayRollouts:
    """The rollouts of another run, step by step, from its ``rollouts/`` directory.

    Live sampling cannot be compared across layouts (a difference of 1e-7 flips a token); the same recorded tokens can.
    The recorded prompts are used, and the scores are left out: they are graded again. Raises ValueError for a
    directory without rollouts.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = directory
        self._steps = recorded_steps(directory)
        if not self._steps:
            raise ValueError(f"rollout.replay={directory}: no step_*.jsonl there; give a run's rollouts/ directory")

    def rollouts(self, step: int, prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """The recorded groups of ``step``; ValueError when that step was not recorded."""
        if step not in self._steps:
            raise ValueError(
                f"rollout.replay={self._directory}: step {step} is not recorded (there are {self._steps[0]} to "
                f"{self._steps[-1]}); lower run.steps"
            )
        return [replace(group, scores=()) for group in read_step(self._directory, step)]
