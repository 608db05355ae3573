"""What a comparison found: a table for the terminal, a line per token on disk, a summary for programs.

Shape suffixes: N scored tokens.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_apo.comparison.inputs import Scored, token_places
from megatron_apo.comparison.statistics import PairStatistics, all_pairs

TOKENS, SUMMARY, PICTURE = "tokens.csv", "summary.json", "differences.png"


@dataclass(frozen=True)
class Comparison:
    """``scores``: log-probabilities [N] by backend, all of the tokens of ``samples`` in order.

    ``token_text`` gives an id's text; ``about`` says in words what was compared.
    """

    samples: Sequence[Scored]
    scores: dict[str, torch.Tensor]
    token_text: Callable[[int], str]
    about: dict[str, str]

    def pairs(self) -> list[PairStatistics]:
        """Statistics of every two backends."""
        return all_pairs(self.scores)

    def token(self, index: int) -> tuple[Scored, int, int]:
        """(sample, position in its response, token id) of token ``index``."""
        sample, position = token_places(self.samples)[index]
        return self.samples[sample], position, self.samples[sample].response_ids[position]

    def text(self, token: int) -> str:
        """A token's text on one line: control characters and quotes escaped as in JSON."""
        return json.dumps(self.token_text(token), ensure_ascii=False)[1:-1]

    def worst(self, pair: PairStatistics) -> str:
        """The token that ``pair`` differs most about, with both values."""
        sample, position, token = self.token(pair.worst)
        values = ", ".join(f"{name} {float(self.scores[name][pair.worst]):.7f}" for name in (pair.first, pair.second))
        return f"sample {sample.id!r}, response token {position} (id {token}, '{self.text(token)}'): {values}"


def table(comparison: Comparison, limit: float | None) -> str:
    """One line per pair, then each pair's worst token and, with a limit, what exceeds it."""
    pairs = comparison.pairs()
    width = max(len("pair"), *(len(pair.name) for pair in pairs))
    titles = ("tokens", "mean |d|", "p99 |d|", "max |d|", "KL (k1)", "correlation")
    lines = [f"{'pair':<{width}}" + "".join(f"  {title:>11}" for title in titles)]
    for pair in pairs:
        numbers = (pair.mean, pair.percentile_99, pair.maximum)
        shown = "".join(f"  {number:>11.2e}" for number in numbers)
        lines.append(f"{pair.name:<{width}}  {pair.tokens:>11}{shown}  {pair.kl:>+11.2e}  {pair.correlation:>11.8f}")
    lines.append("")
    lines += [f"largest difference, {pair.name}: {comparison.worst(pair)}" for pair in pairs]
    if limit is not None:
        beyond = [pair for pair in pairs if not pair.within(limit)]
        lines += [f"{pair.name}: {pair.maximum:.2e} exceeds the limit of {limit:g}" for pair in beyond]
        if not beyond:
            lines.append(f"every difference is within the limit of {limit:g}")
    return "\n".join(lines)


def write_tokens(comparison: Comparison, path: Path) -> None:
    """A CSV line per token: sample, position, token_id, token, then each backend's log-probability.

    Numbers read back to the last bit; control characters of a token's text are escaped as in JSON.
    """
    values = [scores.tolist() for scores in comparison.scores.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "position", "token_id", "token", *comparison.scores])
        for index, (number, position) in enumerate(token_places(comparison.samples)):
            sample = comparison.samples[number]
            token = sample.response_ids[position]
            numbers = (repr(column[index]) for column in values)
            writer.writerow([sample.id, position, token, comparison.text(token), *numbers])


def write_summary(comparison: Comparison, path: Path, limit: float | None) -> None:
    """What was compared, and the statistics of every pair with its worst token; null for a number that is none."""
    pairs = []
    for pair in comparison.pairs():
        sample, position, token = comparison.token(pair.worst)
        worst: dict[str, Any] = {"sample": sample.id, "position": position, "token_id": token}
        worst |= {name: float(comparison.scores[name][pair.worst]) for name in (pair.first, pair.second)}
        found = {name: value for name, value in asdict(pair).items() if name != "worst"} | {"worst": worst}
        found["within_limit"] = None if limit is None else pair.within(limit)
        pairs.append(found)
    summary = {**comparison.about, "samples": len(comparison.samples), "limit": limit, "pairs": pairs}
    path.write_text(
        json.dumps(_finite(summary), indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
