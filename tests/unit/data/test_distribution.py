"""Every replica's work together is the step: each sample once per epoch, equally many microbatches, one total."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_apo.data import distribution
from megatron_apo.data.distribution import distribute
from megatron_apo.records import ReplicaWork, TrainingSample

SAMPLES = [
    TrainingSample(prompt_ids=(number,) * 3, response_ids=(5,) * (1 + number % 4), images=(), advantage=float(number))
    for number in range(11)
]
UPDATES = [range(0, 5), range(5, 11)]


def advantages(work: ReplicaWork, update: int) -> list[float]:
    return [work.samples[i].advantage for batch in work.updates[update] for i in batch]


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_every_sample_once_per_update(replicas: int) -> None:
    works = distribute(SAMPLES, UPDATES, tokens_per_microbatch=12, data_parallel=replicas, scalars={"x": 2.0})
    for number, batch in enumerate(UPDATES):
        found = Counter(value for work in works for value in advantages(work, number))
        assert found == Counter(float(i) for i in batch)
        assert len({len(work.updates[number]) for work in works}) == 1
        for work in works:
            for microbatch in work.updates[number]:
                assert sum(work.samples[i].length for i in microbatch) <= 12


@pytest.mark.parametrize(("multiple", "microbatches"), [(1, 1), (4, 2)])
def test_a_sequence_counts_with_its_padding(multiple: int, microbatches: int) -> None:
    """Two of 6 tokens fit into 12; padded to 8 each, as two context ranks ask for, they do not."""
    pair = [SAMPLES[2], SAMPLES[6]]
    assert [sample.length for sample in pair] == [6, 6]
    (work,) = distribute(
        pair, [[0, 1]], tokens_per_microbatch=12, data_parallel=1, scalars={}, sequence_multiple=multiple
    )
    assert len(work.updates[0]) == microbatches


def test_totals_are_of_all_replicas() -> None:
    """Response tokens 1 2 3 4 1 and 2 3 4 1 2 3."""
    works = distribute(SAMPLES, UPDATES, tokens_per_microbatch=100, data_parallel=2, scalars={"kl_coefficient": 0.5})
    for work in works:
        assert work.scalars == {"kl_coefficient": 0.5, "total_tokens/0": 11.0, "total_tokens/1": 15.0}


def test_a_sample_of_several_epochs_travels_once_to_each_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same microbatches each time, which are planned once."""
    plan, planned = distribution.plan_microbatches, []
    monkeypatch.setattr(distribution, "plan_microbatches", lambda *a, **k: planned.append(a) or plan(*a, **k))
    epochs = [*UPDATES, *UPDATES]
    works = distribute(SAMPLES, epochs, tokens_per_microbatch=12, data_parallel=2, scalars={})
    assert len(planned) == len(UPDATES)
    for work in works:
        assert work.updates[:2] == work.updates[2:]
        values = [sample.advantage for sample in work.samples]
        assert len(values) == len(set(values))
        assert advantages(work, 0) == advantages(work, 2) and advantages(work, 1) == advantages(work, 3)
    assert sum(len(work.samples) for work in works) == len(SAMPLES)


def test_an_update_without_samples_has_no_microbatch_on_any_replica() -> None:
    works = distribute(SAMPLES, [[], [0, 1], []], tokens_per_microbatch=10, data_parallel=3, scalars={})
    assert [[len(update) for update in work.updates] for work in works] == [[0, 1, 0]] * 3
    assert works[0].scalars == {"total_tokens/0": 0.0, "total_tokens/1": 3.0, "total_tokens/2": 0.0}


def test_a_replica_without_samples_has_empty_microbatches() -> None:
    works = distribute(SAMPLES[:1], [[0]], tokens_per_microbatch=10, data_parallel=2, scalars={})
    assert [work.updates for work in works] == [(((0,),),), (((),),)]
    assert works[1].samples == ()
