"""``evaluations.json`` of a run directory, and the same as a plain-text table.

The file is one object by label ("before", "after", or a benchmark's name), each an ``Evaluation`` field by field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_apo.evaluation.scoring import Evaluation

FILE_NAME = "evaluations.json"


def write_evaluations(run_dir: str | Path, evaluations: Mapping[str, Evaluation]) -> Path:
    """Adds ``evaluations`` to the run's file; a label already there is replaced, the others stay."""
    path = Path(run_dir) / FILE_NAME
    merged = {**read_evaluations(run_dir), **evaluations}
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps({label: asdict(one) for label, one in merged.items()}, indent=2) + "\n")
    os.replace(temporary, path)  # a reader sees the old file or the new one, never half of one
    return path


def read_evaluations(run_dir: str | Path) -> dict[str, Evaluation]:
    """The run's evaluations by label, empty when it has none; ValueError when the file cannot be understood."""
    path = Path(run_dir) / FILE_NAME
    if not path.exists():
        return {}
    try:
        return {label: evaluation_of(entry) for label, entry in json.loads(path.read_text()).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an evaluations file ({error!r}); evaluate again to write it anew") from error


def plain_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The evaluations under one another, for a terminal."""
    lines = [("", "accuracy", "95 % interval", "format", "length", "rows", "responses")]
    for label, one in evaluations.items():
        numbers = (f"{one.format:.3f}", f"{one.mean_length:.1f}", str(one.rows), str(one.responses))
        lines.append((label, f"{one.accuracy:.3f}", _interval(one.accuracy_interval), *numbers))
    return aligned(lines)


def detail_table(label: str, one: Evaluation) -> str:
    """Everything one evaluation says, for a terminal: by k and by category, with intervals, and what went wrong."""
    lines = [(label, "accuracy", "95 % interval", "rows"), _line("all", one.accuracy, one.accuracy_interval, one.rows)]
    samples = one.responses // one.rows
    if samples > 1:
        lines += [_line(f"pass@{k}", one.pass_at_k[k], one.pass_at_k_intervals.get(k), one.rows) for k in one.pass_at_k]
        lines.append(_line(f"majority of {samples}", one.majority, one.majority_interval, one.rows))
    lines += [
        _line(category, share, one.category_intervals.get(category), one.category_rows.get(category))
        for category, share in one.by_category.items()
    ]
    shares = (("format", one.format), ("no answer", one.no_answer), ("cut off", one.truncated))
    told = [f"{name} {share:.3f}" for name, share in shares]
    told.append(f"grader errors {one.grader_errors} of {one.responses}")
    rewards = ", ".join(f"{name} {value:.3f}" for name, value in one.further_rewards.items())
    return (
        f"{aligned(lines)}\nresponses: {', '.join(told)}\n"
        + (f"further rewards, mean: {rewards}\n" if rewards else "")
        + f"tokens of a response: {_lengths(one)}"
    )


def model_name(path: str | Path) -> str:
    """What a checkpoint's directory is called; a run's ``export`` by the run."""
    path = Path(path).resolve()
    return path.parent.name if path.name == "export" else path.name


def _line(name: str, share: float, interval: tuple[float, float] | None, rows: int | None) -> tuple[str, ...]:
    return name, f"{share:.3f}", _interval(interval) if interval else "", "" if rows is None else str(rows)


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _lengths(one: Evaluation) -> str:
    lengths = (
        ("mean", one.mean_length),
        ("of correct ones", one.mean_length_correct),
        ("of the others", one.mean_length_wrong),
        ("median", one.median_length),
        ("95 % are at most", one.length_95),
    )
    return ", ".join(f"{name} {value:.1f}" for name, value in lengths if value is not None)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells as columns, the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def evaluation_of(entry: dict[str, Any]) -> Evaluation:
    """The inverse of ``dataclasses.asdict`` after JSON; raises what a malformed entry raises."""
    read = dict(entry)
    read["accuracy_interval"] = _pair(read["accuracy_interval"])
    if read.get("majority_interval") is not None:
        read["majority_interval"] = _pair(read["majority_interval"])
    read["pass_at_k"] = {int(k): float(share) for k, share in read.get("pass_at_k", {}).items()}
    read["pass_at_k_intervals"] = {int(k): _pair(one) for k, one in read.get("pass_at_k_intervals", {}).items()}
    read["category_intervals"] = {name: _pair(one) for name, one in read.get("category_intervals", {}).items()}
    return Evaluation(**read)


def _pair(interval: Sequence[float]) -> tuple[float, float]:
    low, high = interval
    return float(low), float(high)
