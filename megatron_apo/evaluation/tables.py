"""``evaluations.json`` of a run directory, and the same as a plain-text table.

The file is one object by label ("before", "after", or a benchmark's name), each an ``Evaluation`` field by field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
        return {label: _evaluation(entry) for label, entry in json.loads(path.read_text()).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an evaluations file ({error!r}); evaluate again to write it anew") from error


def plain_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The evaluations under one another, for a terminal."""
    header = ("", "accuracy", "95 % interval", "format", "length", "rows", "responses")
    lines = [header]
    for label, one in evaluations.items():
        low, high = one.accuracy_interval
        lines.append(
            (
                label,
                f"{one.accuracy:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{one.format:.3f}",
                f"{one.mean_length:.1f}",
                str(one.rows),
                str(one.responses),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _evaluation(entry: dict[str, Any]) -> Evaluation:
    low, high = entry["accuracy_interval"]
    pass_at_k = {int(k): float(share) for k, share in entry.get("pass_at_k", {}).items()}
    return Evaluation(**{**entry, "accuracy_interval": (float(low), float(high)), "pass_at_k": pass_at_k})
