"""Who trains on which sequences: few microbatches, images shared within them, ranks that finish together.

Data-parallel ranks wait for each other once, when the gradients of an update are added up: what counts is the sum of a
rank's microbatches, not whether the k-th ones of all ranks are alike. With pipeline stages the costliest microbatch of
a rank counts once more for every further stage, which stands idle for as long.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Bins = list[list[int]]

# Fill of the fullest microbatch over the mean that is tried: even ones first, then ones that share more images.
_SLACKS = (1.0, 1.01, 1.03, 1.1, 1.25, 1.6)
_GOOD_ENOUGH = 0.002  # of a rank's mean cost: no further exchanges between ranks
_MOST_EXCHANGES = 300
_MOST_SHAVES = 200  # exchanges that make a too tight packing fit, before it is given up
_MICROBATCHES = 12  # of a rank, whose sequences are looked at for an exchange
_CANDIDATES = 24  # exchanges of two sequences that are worked out exactly before the best is taken


@dataclass(frozen=True)
class _Sequences:
    """What is to be planned: tokens and cost of each sequence; its images, which cost once in each microbatch."""

    lengths: Sequence[int]
    costs: Sequence[float]
    images: Sequence[Mapping[Any, float]]  # hashable keys
    budget: int

    def tokens(self, members: Sequence[int]) -> int:
        return sum(self.lengths[index] for index in members)

    def cost(self, members: Sequence[int]) -> float:
        """Of one microbatch."""
        shown: dict[Hashable, float] = {}
        total = 0.0
        for index in members:
            total += self.costs[index]
            shown.update(self.images[index])
        return total + sum(shown.values())

    def longest_first(self, members: Sequence[int]) -> list[int]:
        return sorted(members, key=lambda index: (-self.lengths[index], index))


def plan_microbatches(
    lengths: Sequence[int],
    *,
    tokens_per_microbatch: int,
    data_parallel: int,
    costs: Sequence[float] | None = None,
    images: Sequence[Mapping[Any, float]] | None = None,
    microbatch_multiple: int = 1,
    pipeline: int = 1,
) -> list[list[list[int]]]:
    """Sequence indices by [data-parallel rank][microbatch]; every index once, every rank as many microbatches.

    ``lengths``: tokens of each sequence; a microbatch holds up to ``tokens_per_microbatch`` of them, and a longer
    sequence is alone in one. ``costs``: work of each sequence (default: its length). ``images``: the different images
    of each sequence with the work of encoding one, which a microbatch does once for all its sequences.
    ``microbatch_multiple`` divides the number of microbatches of a rank; ranks short of sequences get empty ones.

    First come as few microbatches as a packing is found for; then, among packings from even to full ones, the least
    time of the slowest rank, its microbatches' costs and ``pipeline`` - 1 times the largest. A rank's costliest
    microbatch comes first, where one too large for the memory fails at once. The plan depends on the arguments alone.
    """
    if tokens_per_microbatch < 1 or data_parallel < 1:
        raise ValueError(
            f"tokens_per_microbatch={tokens_per_microbatch}, data_parallel={data_parallel}: both must be at least 1"
        )
    work: Sequence[float] = lengths if costs is None else costs
    shown: Sequence[Mapping[Any, float]] = [{}] * len(lengths) if images is None else images
    assert len(work) == len(shown) == len(lengths), (len(work), len(shown), len(lengths))
    sequences = _Sequences(lengths, work, shown, tokens_per_microbatch)
    count = fewest_microbatches(lengths, tokens_per_microbatch, data_parallel, microbatch_multiple)
    while not (packings := _packings(sequences, count * data_parallel)):
        count += microbatch_multiple
    dealt = [_dealt(sequences, bins, data_parallel, count) for bins in packings]
    best = min(dealt, key=lambda ranks: max(_time(sequences, rank, pipeline) for rank in ranks))
    return [[sorted(members) for members in sorted(rank, key=lambda m: (-sequences.cost(m), m))] for rank in best]


def fewest_microbatches(lengths: Sequence[int], budget: int, data_parallel: int, multiple: int = 1) -> int:
    """Microbatches of each rank below which no packing exists; at least one."""
    alone = sum(length > budget for length in lengths)
    rest = sum(length for length in lengths if length <= budget)
    bins = alone + -(-rest // budget)
    return max(1, -(-bins // (data_parallel * multiple))) * multiple


def _time(sequences: _Sequences, rank: Bins, pipeline: int) -> float:
    costs = [sequences.cost(members) for members in rank]
    return sum(costs) + (pipeline - 1) * max(costs)


def _packings(sequences: _Sequences, count: int) -> list[Bins]:
    """Packings into ``count`` microbatches, evenest first; empty where none was found."""
    fitting = [length for length in sequences.lengths if length <= sequences.budget]
    alone = len(sequences.lengths) - len(fitting)
    mean = sum(fitting) / max(1, count - alone)
    capacities = {min(sequences.budget, max(int(mean * slack) + 1, *fitting, 1)) for slack in _SLACKS}
    found = [_packed(sequences, count, capacity) for capacity in sorted(capacities | {sequences.budget})]
    packings = [bins for bins in found if bins is not None]
    if not packings:  # nothing shared on purpose leaves the packing freest
        apart = _packed(sequences, count, sequences.budget, together=False)
        packings = [] if apart is None else [apart]
    return packings


@dataclass
class _Filling:
    """Microbatches being filled. ``free`` is sorted: (tokens still free, microbatch)."""

    bins: Bins
    free: list[tuple[int, int]]
    holders: dict[Hashable, list[int]] = field(default_factory=dict)
    room: dict[int, int] = field(default_factory=dict)

    def put(self, place: int, members: Sequence[int], tokens: int, images: Sequence[Hashable]) -> None:
        before = self.room[place]
        self.free.pop(bisect_left(self.free, (before, place)))
        self.room[place] = before - tokens
        insort(self.free, (before - tokens, place))
        self.bins[place].extend(members)
        for image in images:
            self.holders.setdefault(image, []).append(place)

    def tightest(self, tokens: int, images: Sequence[Hashable]) -> int | None:
        """The fullest microbatch with room for ``tokens``, one that has the images already if there is any."""
        holding = [place for image in images for place in self.holders.get(image, ()) if self.room[place] >= tokens]
        if holding:
            return min(holding, key=lambda place: (self.room[place], place))
        at = bisect_left(self.free, (tokens, -1))
        return self.free[at][1] if at < len(self.free) else None


def _packed(sequences: _Sequences, count: int, capacity: int, *, together: bool = True) -> Bins | None:
    """``count`` microbatches of at most ``capacity`` tokens, or None: best fit, largest first, whole groups at first.

    Sequences of the same images start ``together``, as one piece. A piece that fits nowhere fills the largest hole
    with as many of its sequences as fit, longest first, and what is left of it is a smaller piece.
    """
    alone = [index for index, length in enumerate(sequences.lengths) if length > sequences.budget]
    if len(alone) > count:
        return None
    places = range(len(alone), count)
    filling = _Filling([[index] for index in alone] + [[] for _ in places], [(capacity, place) for place in places])
    filling.room = {place: capacity for place in places}
    groups: dict[Hashable, list[int]] = {}
    for index, length in enumerate(sequences.lengths):
        if length <= sequences.budget:
            key: Hashable = tuple(sequences.images[index]) if together and sequences.images[index] else index
            groups.setdefault(key, []).append(index)
    heap = []
    for members in groups.values():
        ordered = sequences.longest_first(members)
        heap.append((-sequences.tokens(ordered), ordered))
    heapq.heapify(heap)
    while heap:
        size, members = heapq.heappop(heap)
        images = tuple(sequences.images[members[0]]) if together else ()
        place = filling.tightest(-size, images)
        if place is not None:
            filling.put(place, members, -size, images)
            continue
        hole, place = filling.free[-1] if filling.free else (0, -1)
        part = _fitting(sequences, members, hole) or members[-1:]  # nothing fits: too much for now
        if place < 0:
            return None
        filling.put(place, part, sequences.tokens(part), images)
        chosen = set(part)
        if rest := [index for index in members if index not in chosen]:
            heapq.heappush(heap, (-sequences.tokens(rest), rest))
    return filling.bins if _shaved(sequences, filling) else None


def _shaved(sequences: _Sequences, filling: _Filling) -> bool:
    """Exchanges sequences of too full microbatches for shorter ones of others until all fit; False where it fails."""
    room, bins = filling.room, filling.bins
    if sum(room.values()) < 0:
        return False
    left = _MOST_SHAVES
    for full in sorted(place for place in room if room[place] < 0):
        while room[full] < 0:
            # Every sequence of the others, and nothing at all from each of them: (microbatch, sequence or -1).
            others = [(place, j) for place in room if room[place] > 0 for j in (-1, *bins[place])]
            here = np.array([sequences.lengths[i] for i in bins[full]])
            there = np.array([sequences.lengths[j] if j >= 0 else 0 for _, j in others])
            freed = here[:, None] - there
            fits = (freed > 0) & (freed <= np.array([room[place] for place, _ in others]))
            left -= 1
            if left < 0 or not fits.any():
                return False
            gain = np.where(fits, np.minimum(freed, -room[full]), 0)
            best = int(np.where(gain == gain.max(), freed, np.iinfo(freed.dtype).max).argmin())
            i, (other, j) = bins[full][best // len(others)], others[best % len(others)]
            bins[full].remove(i)
            bins[other].append(i)
            if j >= 0:
                bins[other].remove(j)
                bins[full].append(j)
            room[full] += int(freed.flat[best])
            room[other] -= int(freed.flat[best])
    return True


def _fitting(sequences: _Sequences, members: Sequence[int], room: int) -> list[int]:
    part = []
    for index in members:
        if sequences.lengths[index] <= room:
            part.append(index)
            room -= sequences.lengths[index]
    return part


def _dealt(sequences: _Sequences, bins: Bins, ranks: int, count: int) -> list[Bins]:
    """``count`` microbatches to each rank: costliest first to the rank with least (LPT; Graham 1969, "Bounds on
    multiprocessing timing anomalies"), then exchanges between the costliest and the cheapest rank."""
    bins = [list(members) for members in bins]
    costs = [sequences.cost(members) for members in bins]
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for place in sorted(range(len(bins)), key=lambda p: (-costs[p], p)):
        rank = min((r for r in range(ranks) if len(dealt[r]) < count), key=lambda r: (loads[r], r))
        dealt[rank].append(place)
        loads[rank] += costs[place]
    mean = sum(loads) / ranks
    for _ in range(_MOST_EXCHANGES if ranks > 1 else 0):
        high = max(range(ranks), key=lambda r: (loads[r], -r))
        low = min(range(ranks), key=lambda r: (loads[r], r))
        if loads[high] - loads[low] <= _GOOD_ENOUGH * mean:
            break
        changed = _exchange_bins(dealt, costs, high, low, loads) or _exchange_sequences(
            sequences, bins, dealt[high], dealt[low], costs, loads[high] - loads[low]
        )
        if not changed:
            break
        for rank in (high, low):
            loads[rank] = sum(costs[place] for place in dealt[rank])
    return [[bins[place] for place in rank] for rank in dealt]


def _exchange_bins(dealt: list[list[int]], costs: Sequence[float], high: int, low: int, loads: Sequence[float]) -> bool:
    """Exchanges the two microbatches that bring the ranks closest together, if they come closer by a tenth."""
    gap = loads[high] - loads[low]
    pairs = [(abs(gap - 2 * (costs[a] - costs[b])), a, b) for a in dealt[high] for b in dealt[low]]
    left, a, b = min(pairs)
    if left > 0.9 * gap:
        return False
    dealt[high][dealt[high].index(a)], dealt[low][dealt[low].index(b)] = b, a
    return True


def _exchange_sequences(
    sequences: _Sequences, bins: Bins, high: Sequence[int], low: Sequence[int], costs: list[float], gap: float
) -> bool:
    """Moves a sequence from a microbatch of ``high`` to one of ``low``, or exchanges two, if that leaves the costlier
    of the two ranks cheaper. Images make the change of cost depend on both microbatches: the likeliest are worked out.
    """
    ours = [(a, i) for a in high[:_MICROBATCHES] for i in bins[a]]
    theirs = [(b, j) for b in low[:_MICROBATCHES] for j in (-1, *bins[b])]  # -1: nothing comes back
    if not ours:
        return False
    room = {b: sequences.budget - sequences.tokens(bins[b]) for b in (*high, *low)}
    longer = np.array([sequences.lengths[i] for _, i in ours])[:, None] - np.array(
        [sequences.lengths[j] if j >= 0 else 0 for _, j in theirs]
    )
    costlier = np.array([sequences.costs[i] for _, i in ours])[:, None] - np.array(
        [sequences.costs[j] if j >= 0 else 0.0 for _, j in theirs]
    )
    fits = (longer <= np.array([room[b] for b, _ in theirs])) & (-longer <= np.array([[room[a]] for a, _ in ours]))
    distance = np.where(fits & (costlier > 0), np.abs(gap - 2 * costlier), np.inf).ravel()
    likely = [place for place in np.argsort(distance, kind="stable")[:_CANDIDATES] if np.isfinite(distance[place])]
    best = None
    for place in likely:
        (a, i), (b, j) = ours[place // len(theirs)], theirs[place % len(theirs)]
        first = [index for index in bins[a] if index != i] + ([j] if j >= 0 else [])
        second = [index for index in bins[b] if index != j] + [i]
        cost_first, cost_second = sequences.cost(first), sequences.cost(second)
        # The costlier rank's load afterwards, from the load of the one that was cheaper before.
        after = max(gap + cost_first - costs[a], cost_second - costs[b])
        if after < 0.98 * gap and (best is None or after < best[0]):
            best = (after, a, b, first, second, cost_first, cost_second)
    if best is None:
        return False
    _, a, b, bins[a], bins[b], costs[a], costs[b] = best
    return True
