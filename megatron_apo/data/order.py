"""Which prompts each step takes: a function of seed and step alone, so a resumed run needs no state of it."""

from __future__ import annotations

import math
import random
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

_UNITS = 1000  # weights count to a thousandth


class PromptStream:
    """Every prompt once an epoch of its source, each epoch in an order of its own.

    A source is a run of prompts: ``sizes`` of them follow each other, as data files do. Without ``weights`` they are
    one source, in which every prompt is as likely as any other. With them, source k gives ``weights[k]`` of each
    ``sum(weights)`` prompts, whatever its size: exactly in every round of the (whole) weights, and of any first n
    prompts to within two.

    The order of a source is the concatenation of its epochs' orders, so a step that crosses an epoch's end may see a
    prompt a second time. Raises ValueError for nothing to draw from.
    """

    def __init__(
        self,
        sizes: int | Sequence[int],
        prompts_per_step: int,
        seed: int,
        shuffle: bool = True,
        weights: Sequence[float] = (),
    ) -> None:
        sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        self._sizes = sizes if weights else [sum(sizes)]
        for name, value in (("prompts_count", min(self._sizes)), ("prompts_per_step", prompts_per_step)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1, of every file that has a weight")
        assert not weights or len(weights) == len(sizes), (sizes, weights)
        self._first = [sum(self._sizes[:source]) for source in range(len(self._sizes))]
        self._round, self._quota = _rounds([round(weight * _UNITS) for weight in weights] or [1])
        self._before = _counts_before(self._round, len(self._sizes))
        self._per_step = prompts_per_step
        self._seed = seed
        self._shuffle = shuffle
        self._orders: OrderedDict[tuple[int, int], array[int]] = OrderedDict()

    def indices(self, step: int) -> list[int]:
        """Prompt indices of step ``step`` (from 0), from the step alone."""
        start = step * self._per_step
        return [self._index(at) for at in range(start, start + self._per_step)]

    def spare(self, step: int) -> Iterator[int]:
        """The prompts that step ``step`` does not take, in an order of the step's own: what refills draw from.

        Of several sources they come in the same proportions, until one has no more. Nothing is made before the first
        is asked for.
        """
        taken = self.indices(step)
        left = [self._spare_of(source, step, taken) for source in range(len(self._sizes))]
        if len(left) == 1:
            yield from left[0]
            return
        at, ended = (step + 1) * self._per_step, set[int]()
        while len(ended) < len(left):
            source = self._round[at % len(self._round)]
            index = next(left[source], None)
            if index is None:
                ended.add(source)
            else:
                yield index
            at += 1

    def _spare_of(self, source: int, step: int, taken: Sequence[int]) -> Iterator[int]:
        first, size = self._first[source], self._sizes[source]
        last = next((index for index in reversed(taken) if first <= index < first + size), first)
        order: Iterable[int] = (first + (last - first + 1 + place) % size for place in range(size))
        if self._shuffle:
            order = array("q", order)
            self._seeded(source, f"spare/{step}").shuffle(order)
        gone = set(taken)
        return (index for index in order if index not in gone)

    def _index(self, at: int) -> int:
        """The prompt at place ``at`` of the whole order."""
        rounds, place = divmod(at, len(self._round))
        source = self._round[place]
        epoch, drawn = divmod(rounds * self._quota[source] + self._before[place], self._sizes[source])
        return self._first[source] + self._order(source, epoch)[drawn]

    def _order(self, source: int, epoch: int) -> array[int]:
        if (source, epoch) not in self._orders:
            order = array("q", range(self._sizes[source]))
            if self._shuffle:
                self._seeded(source, str(epoch)).shuffle(order)
            self._orders[source, epoch] = order
            while len(self._orders) > 2 * len(self._sizes):  # a step seldom spans more
                self._orders.popitem(last=False)
        return self._orders[source, epoch]

    def _seeded(self, source: int, what: str) -> random.Random:
        """A text as seed is hashed, the same everywhere. The first source has the seeds of one that is alone."""
        return random.Random(f"{self._seed}/source {source}/{what}" if source else f"{self._seed}/{what}")


def _rounds(units: Sequence[int]) -> tuple[list[int], list[int]]:
    """(the sources of one round in order, how often each occurs): the one most behind its share comes next."""
    quota = [unit // reduce(math.gcd, units) for unit in units]
    total, drawn, order = sum(quota), [0] * len(quota), []
    for place in range(1, total + 1):
        source = max(range(len(quota)), key=lambda k: (quota[k] * place - drawn[k] * total, -k))
        drawn[source] += 1
        order.append(source)
    return order, quota


def _counts_before(order: Sequence[int], sources: int) -> list[int]:
    """How often the source at each place of a round came before it in that round."""
    counts, before = [0] * sources, []
    for source in order:
        before.append(counts[source])
        counts[source] += 1
    return before
