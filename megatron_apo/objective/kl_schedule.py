"""Schedules of the KL coefficient; plain numbers, no tensors."""

from __future__ import annotations


def grpo_d_coefficient(step: int, *, total_steps: int, exploration_steps: int, minimum: float, maximum: float) -> float:
    """GRPO-D's coefficient at ``step`` in 0 ... total_steps (OThink-MR1, arXiv:2503.16081, eq. 3).

    With w = exploration_steps and middle = (minimum + maximum) / 2:

        middle - (middle - minimum) * step / w                                step <= w
        minimum + (maximum - minimum) * (step - w) / (total_steps - w)        step > w

    It falls from the middle to the minimum, then rises to the maximum. (The paper's prose says that it starts small and
    grows; this is its equation.) With w = 0 it rises from the minimum. A run's steps count from 1 here: w of them fall,
    the last of them at the minimum, and the run's last is at the maximum. Raises ValueError for a step outside the
    schedule, exploration steps outside the total and a minimum above the maximum.
    """
    if not 0 <= exploration_steps <= total_steps:
        raise ValueError(f"exploration_steps={exploration_steps}: must lie between 0 and total_steps={total_steps}")
    if minimum > maximum:
        raise ValueError(f"minimum={minimum}: must not exceed maximum={maximum}")
    if not 0 <= step <= total_steps:
        raise ValueError(f"step={step}: must lie between 0 and total_steps={total_steps}")
    if step <= exploration_steps and exploration_steps > 0:
        middle = (minimum + maximum) / 2
        return middle - (middle - minimum) * step / exploration_steps
    if step == exploration_steps:  # both 0, and perhaps the total too
        return minimum
    return minimum + (maximum - minimum) * (step - exploration_steps) / (total_steps - exploration_steps)
