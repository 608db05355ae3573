"""From a step's samples to each data-parallel replica's work."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_apo.data.balancing import plan_microbatches
from megatron_apo.data.costs import CostModel, image_costs
from megatron_apo.records import ReplicaWork, TrainingSample

_TOKENS_ALONE = CostModel()


def distribute(
    samples: Sequence[TrainingSample],
    updates: Sequence[Sequence[int]],
    *,
    tokens_per_microbatch: int,
    data_parallel: int,
    scalars: dict[str, float],
    sequence_multiple: int = 1,
    microbatch_multiple: int = 1,
    pipeline: int = 1,
    costs: CostModel = _TOKENS_ALONE,
) -> list[ReplicaWork]:
    """One ``ReplicaWork`` per data-parallel rank: its samples, renumbered, in microbatches of each update.

    A sequence counts as the next multiple of ``sequence_multiple`` tokens. ``costs`` says what sequences and images
    cost; see ``plan_microbatches`` for ``microbatch_multiple`` and ``pipeline``. Updates of the same samples, a
    rollout's epochs, get the same microbatches, and one without samples gets none. Adds to ``scalars`` the response
    tokens of each update over all replicas, ``total_tokens/<update>``.
    """
    totals = {
        f"total_tokens/{number}": float(sum(len(samples[i].response_ids) for i in batch))
        for number, batch in enumerate(updates)
    }
    work = [costs.sequence(len(sample.prompt_ids), len(sample.response_ids)) for sample in samples]
    images = image_costs(samples, costs)
    plans: dict[tuple[int, ...], list[list[list[int]]]] = {
        batch: plan_microbatches(
            [-(-samples[i].length // sequence_multiple) * sequence_multiple for i in batch],
            tokens_per_microbatch=tokens_per_microbatch,
            data_parallel=data_parallel,
            costs=[work[i] for i in batch],
            images=[images[i] for i in batch],
            pipeline=pipeline,
            microbatch_multiple=microbatch_multiple,
        )
        if batch
        else [[] for _ in range(data_parallel)]
        for batch in dict.fromkeys(map(tuple, updates))  # all epochs have one plan
    }
    works = []
    for rank in range(data_parallel):
        place: dict[int, int] = {}  # a sample that several epochs use travels once
        cut = []
        for batch in updates:
            microbatches = []
            for members in plans[tuple(batch)][rank]:
                for index in (batch[member] for member in members):
                    place.setdefault(index, len(place))
                microbatches.append(tuple(place[batch[member]] for member in members))
            cut.append(tuple(microbatches))
        mine = tuple(samples[index] for index in place)
        works.append(ReplicaWork(mine, tuple(cut), {**scalars, **totals}, tuple(place)))
    return works
