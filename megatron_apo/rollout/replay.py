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
    The recorded prompts are used. The scores, and what was dropped for them, are left out: all is judged again. Raises
    ValueError for a directory without rollouts.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = directory
        self._steps = recorded_steps(directory)
        if not self._steps:
            raise ValueError(f"rollout.replay={directory}: no step_*.jsonl there; give a run's rollouts/ directory")

    def rollouts(self, step: int, prompts: Sequence[Prompt], number: int = 0) -> list[RolloutGroup]:
        """The recorded groups of round ``number`` of ``step``; ValueError when that step was not recorded."""
        if step not in self._steps:
            raise ValueError(
                f"rollout.replay={self._directory}: step {step} is not recorded (there are {self._steps[0]} to "
                f"{self._steps[-1]}); lower run.steps"
            )
        groups = read_step(self._directory, step)
        return [replace(group, scores=(), dropped="") for group in groups if group.round == number]
