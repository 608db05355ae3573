"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): groups that teach nothing are replaced by newly drawn ones.

What a refill draws is a function of the seed, the step, the round and what the rounds before it brought, so a resumed
run draws it again without any state of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_apo.records import RolloutGroup


def refill_size(contrast: Sequence[bool], wanted: int) -> int:
    """Prompts of the next round: as many as are missing to ``wanted`` groups with contrast, over their share so far.

    At most ``wanted``; 0 when nothing is missing.
    """
    found, drawn = sum(contrast), len(contrast)
    if found >= wanted:
        return 0
    return min(wanted, -(-(wanted - found) * drawn // found)) if found else wanted


def mark_dropped(groups: Sequence[RolloutGroup], contrast: Sequence[bool], *, wanted: int) -> list[RolloutGroup]:
    """The groups, those that are not trained on marked as dropped: at most ``wanted`` stay, in the order drawn."""
    stays = set([place for place, has in enumerate(contrast) if has][:wanted])
    return [
        replace(group, dropped="" if place in stays else "surplus" if contrast[place] else "no_contrast")
        for place, group in enumerate(groups)
    ]


def refill_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """``rollout/rounds`` (the first draw included), ``rollout/groups_drawn`` and ``rollout/groups_dropped``."""
    return {
        "rollout/rounds": float(1 + max(group.round for group in groups)),
        "rollout/groups_drawn": float(len(groups)),
        "rollout/groups_dropped": float(sum(group.dropped != "" for group in groups)),
    }
