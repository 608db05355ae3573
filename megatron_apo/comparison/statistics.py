"""How far two backends are apart, in numbers.

Shape suffixes: N scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch

from megatron_apo.objective.kl import kl_divergence


@dataclass(frozen=True)
class PairStatistics:
    """Differences of two backends' log-probabilities, in nats.

    ``mean``, ``percentile_99`` and ``maximum`` are of |first - second|. ``kl`` is the k1 estimate of KL(first, second),
    the mean of first - second: an estimate only where the first model drew the tokens. ``correlation`` is Pearson's,
    NaN where one side is constant. ``worst`` is the index of the token of the maximum, or of the first difference that
    is not a number; then ``maximum`` is NaN too.
    """

    first: str
    second: str
    tokens: int
    mean: float
    percentile_99: float
    maximum: float
    kl: float
    correlation: float
    worst: int

    @property
    def name(self) -> str:
        return f"{self.first} - {self.second}"

    def within(self, limit: float) -> bool:
        """Whether no token is further apart than ``limit``; False where one of them is not a number."""
        return self.maximum <= limit


def pair_statistics(first: str, first_N: torch.Tensor, second: str, second_N: torch.Tensor) -> PairStatistics:
    """Statistics of two backends' log-probabilities [N] of the same tokens, N >= 1, computed in float64."""
    first_N, second_N = first_N.double(), second_N.double()
    assert first_N.shape == second_N.shape and first_N.ndim == 1 and len(first_N), (first_N.shape, second_N.shape)
    distance_N = (first_N - second_N).abs()
    strange = distance_N.isnan().nonzero()
    worst = int(strange[0]) if len(strange) else int(distance_N.argmax())
    return PairStatistics(
        first=first,
        second=second,
        tokens=len(distance_N),
        mean=float(distance_N.mean()),
        percentile_99=math.nan if len(strange) else float(_percentile(distance_N, 0.99)),
        maximum=float(distance_N[worst]),
        kl=float(kl_divergence(first_N, second_N, estimator="k1").mean()),
        correlation=_correlation(first_N, second_N),
        worst=worst,
    )


def all_pairs(scores: Mapping[str, torch.Tensor]) -> list[PairStatistics]:
    """Statistics of every two backends, in the order in which ``scores`` names them."""
    return [pair_statistics(one, scores[one], other, scores[other]) for one, other in combinations(scores, 2)]


def _percentile(values_N: torch.Tensor, share: float) -> torch.Tensor:
    """The smallest value that at least ``share`` of all values do not exceed (torch.quantile stops at 16 million)."""
    rank = math.ceil(share * len(values_N))
    return values_N.kthvalue(max(1, rank)).values


def _correlation(first_N: torch.Tensor, second_N: torch.Tensor) -> float:
    one, other = first_N - first_N.mean(), second_N - second_N.mean()
    scale = float(one.norm() * other.norm())
    return float(one @ other) / scale if scale > 0 else math.nan
