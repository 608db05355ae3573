"""Which prompts a step takes: every one once an epoch, files mixed by weight, from the step alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pytest

from megatron_apo.data.order import PromptStream


def test_stream_visits_every_prompt_once_an_epoch_from_the_step_alone() -> None:
    stream = PromptStream(5, 2, seed=3)
    taken = [index for step in range(5) for index in stream.indices(step)]
    assert sorted(taken[:5]) == sorted(taken[5:]) == [0, 1, 2, 3, 4]
    assert taken[:5] != taken[5:]  # each epoch has its own order
    again = PromptStream(5, 2, seed=3)
    assert again.indices(4) == taken[8:10] and again.indices(0) == taken[:2]
    assert [PromptStream(5, 5, seed=s).indices(0) for s in range(4)] != [taken[:5]] * 4
    assert PromptStream(5, 4, seed=0, shuffle=False).indices(1) == [4, 0, 1, 2]
    assert PromptStream(2, 5, seed=0, shuffle=False).indices(0) == [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="prompts_count=0"):
        PromptStream(0, 1, seed=0)


def test_refills_draw_from_what_a_step_does_not_take() -> None:
    stream = PromptStream(7, 3, seed=3)
    for step in range(5):
        assert sorted({*stream.indices(step), *stream.spare(step)}) == list(range(7))
        assert not set(stream.indices(step)) & set(stream.spare(step))
        assert list(stream.spare(step)) == list(PromptStream(7, 3, seed=3).spare(step))
    assert len({tuple(PromptStream(9, 1, seed=3).spare(step)) for step in range(5)}) == 5
    assert list(PromptStream(5, 2, seed=0, shuffle=False).spare(1)) == [4, 0, 1]
    assert list(PromptStream(2, 5, seed=0).spare(0)) == []


def test_the_order_of_a_seed_stays_what_it_was() -> None:
    """A run that is resumed after an update of this package goes on in its order."""
    stream = PromptStream(7, 3, seed=0)
    assert stream.indices(0) == [0, 6, 1] and stream.indices(2) == [2, 2, 0] and list(stream.spare(1)) == [1, 6, 0, 2]


@pytest.mark.parametrize(
    ("seed", "sizes", "weights", "shuffle"),
    [(4, (40, 9, 3), (3, 1, 0.5), True), (4, (40, 9, 3), (3, 1, 0.5), False), (9, (31,), (), True)],
)
def test_what_is_left_comes_as_it_did_in_a_list(
    seed: int, sizes: Sequence[int], weights: Sequence[float], shuffle: bool
) -> None:
    """The order written out: all prompts of a source shuffled, the taken ones left out, the sources in turn."""
    stream = PromptStream(sizes, 4, seed=seed, shuffle=shuffle, weights=weights)
    for step in range(12):
        taken, left, first = stream.indices(step), [], 0
        for source, size in enumerate(sizes):
            last = next((index for index in reversed(taken) if first <= index < first + size), first)
            order = [first + (last - first + 1 + place) % size for place in range(size)]
            if shuffle:
                name = f"{seed}/source {source}/spare/{step}" if source else f"{seed}/spare/{step}"
                random.Random(name).shuffle(order)
            left.append([index for index in order if index not in taken])
            first += size
        spare, at = [], (step + 1) * 4
        while any(left):
            source = stream._round[at % len(stream._round)]
            if left[source]:
                spare.append(left[source].pop(0))
            at += 1
        assert list(stream.spare(step)) == spare


def test_what_is_left_is_not_made_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = PromptStream(1_000_000, 4, seed=0)
    stream.indices(0)
    monkeypatch.setattr(random.Random, "shuffle", None)
    left = stream.spare(0)
    with pytest.raises(TypeError):
        next(left)
    unshuffled = PromptStream(10**12, 4, seed=0, shuffle=False)
    monkeypatch.setattr(unshuffled, "indices", lambda step: [0, 1, 2, 3])
    assert list(islice(unshuffled.spare(0), 3)) == [4, 5, 6]


def test_files_without_weights_are_one() -> None:
    for step in range(4):
        assert PromptStream((3, 4), 3, seed=1).indices(step) == PromptStream(7, 3, seed=1).indices(step)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [((10, 100), (3, 1)), ((5, 5, 5), (1, 1, 1)), ((7, 30, 11), (0.7, 0.2, 0.1)), ((4, 9, 2, 6), (1, 2.5, 0.125, 40))],
)
def test_weights_are_kept_at_every_moment(sizes: Sequence[int], weights: Sequence[float]) -> None:
    stream = PromptStream(sizes, 1, seed=0, weights=weights)
    total, drawn = sum(weights), Counter[int]()
    ends = [sum(sizes[: source + 1]) for source in range(len(sizes))]
    for step in range(2000):
        (index,) = stream.indices(step)
        drawn[next(source for source, end in enumerate(ends) if index < end)] += 1
        for source, weight in enumerate(weights):
            assert abs(drawn[source] - (step + 1) * weight / total) < 1
    many = PromptStream((5,) * 8, 1, seed=0, weights=(3, 50, 3, 1, 1, 10, 50, 1))
    counts = Counter[int]()
    for step in range(300):
        counts[many.indices(step)[0] // 5] += 1
        assert abs(counts[1] - (step + 1) * 50 / 119) < 2 and abs(counts[3] - (step + 1) / 119) < 2
    one_round = PromptStream((10, 100), 8, seed=0, weights=(3, 1))
    assert all(sum(index < 10 for index in one_round.indices(step)) == 6 for step in range(50))


def test_each_file_goes_through_epochs_of_its_own() -> None:
    sizes = (5, 20)
    stream = PromptStream(sizes, 4, seed=2, weights=(1, 1))
    taken = [index for step in range(20) for index in stream.indices(step)]
    for first, size in ((0, 5), (5, 20)):
        own = [index for index in taken if first <= index < first + size]
        epochs = [own[start : start + size] for start in range(0, len(own), size)]
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 1
    assert [index for index in taken if index < 5][:5] == [index for index in PromptStream(5, 5, seed=2).indices(0)]


def test_a_resumed_order_is_that_of_the_whole_run() -> None:
    def stream() -> PromptStream:
        return PromptStream((50, 7, 31), 6, seed=9, weights=(5, 1, 2))

    whole = stream()
    order = [whole.indices(step) for step in range(60)]
    spare = [list(whole.spare(step)) for step in range(60)]
    for step in (0, 1, 17, 59):
        assert stream().indices(step) == order[step] and list(stream().spare(step)) == spare[step]
    assert PromptStream((50, 7, 31), 6, seed=8, weights=(5, 1, 2)).indices(0) != order[0]


def test_refills_keep_the_weights() -> None:
    stream = PromptStream((40, 40), 8, seed=4, weights=(3, 1))
    for step in range(10):
        taken, spare = stream.indices(step), list(stream.spare(step))
        assert sorted({*taken, *spare}) == list(range(80)) and not set(taken) & set(spare)
        assert len(set(spare)) == len(spare)
        assert sum(index < 40 for index in spare[:24]) == 18


def test_a_file_without_good_rows_is_told() -> None:
    with pytest.raises(ValueError, match="must be at least 1, of every file that has a weight"):
        PromptStream((5, 0), 2, seed=0, weights=(1, 1))
    assert PromptStream((5, 0), 5, seed=0, shuffle=False).indices(0) == [0, 1, 2, 3, 4]
