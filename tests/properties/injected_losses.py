"""Wrong scales put in on purpose, each once made by somebody: the property of losses has to fail with each of them.

A rank applies one to its own process before it builds anything; nothing is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from megatron_apo.parallel import sequences
from megatron_apo.parallel.groups import Groups
from megatron_apo.records import Microbatch
from megatron_apo.training import forward_step
from tests.properties import loss_ranks
from tests.properties.draws import draw_case


def _scaled(factor: Callable[[Groups, int], float]) -> Callable[[int], None]:
    """Every microbatch's loss times a factor of the layout and the number of microbatches."""

    def put_in(microbatches: int) -> None:
        whole = forward_step._training_loss

        def scaled(output: torch.Tensor, *, groups: Groups, **known: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
            total, count, sums = whole(output, groups=groups, **known)
            return total * factor(groups, microbatches), count, sums

        forward_step._training_loss = scaled

    return put_in


def _reweighted(weight: Callable[[Microbatch, torch.Tensor, int], torch.Tensor]) -> Callable[[int], None]:
    def put_in(microbatches: int) -> None:
        whole = forward_step._training_loss

        def changed(output: torch.Tensor, *, batch: Microbatch, **known: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
            rows = batch.response_mask_T
            weights = torch.where(rows, weight(batch, rows, microbatches), 0.0)
            return whole(output, batch=replace(batch, policy_weights_T=weights), **known)

        forward_step._training_loss = changed

    return put_in


def sums_of_this_rank_alone(_: int) -> None:
    """Sequence sums without the other context ranks' tokens."""
    whole = sequences.sequence_sums
    forward_step.sequence_sums = lambda batch, cp_group: whole(batch, None)


BUGS: dict[str, Callable[[int], None]] = {
    "times the data ranks": _scaled(lambda groups, _: float(groups.data_size)),
    "times the microbatches": _scaled(lambda _, microbatches: float(microbatches)),
    "mean of means": _reweighted(
        lambda batch, rows, microbatches: torch.full(rows.shape, 1.0 / (max(int(rows.sum()), 1) * microbatches))
    ),
    "sequence sums of this rank alone": sums_of_this_rank_alone,
}


def check_with_bug(directory: Any, *, bug: str, **arguments: Any) -> None:
    """``loss_ranks.check`` with ``bug`` put in."""
    BUGS[bug](len(draw_case(**arguments).microbatches[0]))
    loss_ranks.check(directory, **arguments)
