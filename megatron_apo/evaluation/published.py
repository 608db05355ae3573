"""The papers' benchmarks: which task of lmms-eval each one is, and what was published, for a table beside ours.

Figures are per cent correct, copied from the papers' tables; none was measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_apo.evaluation.tables import aligned

# What lmms-eval's openai model writes in place of a response that it could not get.
_FAILURE = "[LMMS_EVAL_"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as a task of lmms-eval; ``metric`` is the key of its accuracy, a share in [0, 1]."""

    title: str
    task: str
    metric: str


# The variants that ask for <think> and <answer> and grade by rules, without another model as a judge.
BENCHMARKS: dict[str, Benchmark] = {
    "mathvista": Benchmark("MathVista", "mathvista_testmini_cot_reasoning", "acc_score"),
    "mathverse": Benchmark("MathVerse", "mathverse_testmini_reasoning", "acc_score"),
    "mmstar": Benchmark("MMStar", "mmstar_reasoning", "acc_score"),
    "mmmu": Benchmark("MMMU", "mmmu_val_reasoning", "acc_score"),
}

# arXiv 2506.21655, table 1.
PUBLISHED: dict[str, dict[str, float]] = {
    "Qwen2.5-VL-3B": {"mathvista": 57.8, "mathverse": 34.7, "mmstar": 54.1, "mmmu": 47.6},
    "View-R1-3B (APO)": {"mathvista": 66.2, "mathverse": 41.6, "mmstar": 61.3, "mmmu": 48.9},
    "LMM-R1-3B": {"mathvista": 63.2, "mathverse": 41.5, "mmstar": 58.0},
    "R1-VL-7B": {"mathvista": 63.5, "mathverse": 40.0, "mmstar": 60.0, "mmmu": 43.3},
    "R1-Onevision-7B": {"mathvista": 64.1, "mathverse": 46.4, "mmstar": 61.9, "mmmu": 44.4},
}


def read_results(directory: str | Path, tasks: Mapping[str, str]) -> dict[str, float]:
    """Accuracy by task in [0, 1] from the newest results that lmms-eval left under ``directory``.

    ``tasks``: metric by task. Raises ValueError when a task has no such metric, and when a response could not be had
    from the server: lmms-eval counts it as wrong.
    """
    files = sorted(Path(directory).rglob("*_results.json"))
    if not files:
        raise ValueError(f"{directory}: lmms-eval left no results there; look at what it printed")
    newest = files[-1]
    results = json.loads(newest.read_text(encoding="utf-8"))["results"]
    stamp = newest.name.removesuffix("_results.json")
    found = {}
    for task, metric in tasks.items():
        values = [value for key, value in results.get(task, {}).items() if key.split(",")[0] == metric]
        if len(values) != 1 or not isinstance(values[0], int | float):
            raise ValueError(f"{newest}: task {task} has no number {metric}, it has {sorted(results.get(task, {}))}")
        failed = _failures(newest.with_name(f"{stamp}_samples_{task}.jsonl"))
        if failed:
            raise ValueError(
                f"{newest}: {failed} responses of {task} could not be had from the server and were counted as wrong; "
                "look at its log, raise --timeout or lower --concurrency, and run again"
            )
        found[task] = float(values[0])
    return found


def _failures(path: Path) -> int:
    """How many samples hold lmms-eval's own words instead of a response; ValueError without the file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: lmms-eval left no samples ({error.strerror}); run it with --log_samples") from error
    return sum(_FAILURE in json.dumps(json.loads(line).get("filtered_resps")) for line in lines if line)


def benchmark_table(name: str, found: Mapping[str, float]) -> str:
    """``found`` (shares by benchmark) beside the published rows, in per cent."""
    chosen = [key for key in BENCHMARKS if key in found]
    lines = [("", *(BENCHMARKS[key].title for key in chosen))]
    lines.append((name, *(f"{100 * found[key]:.1f}" for key in chosen)))
    for model, figures in PUBLISHED.items():
        lines.append((f"{model}, published", *(_figure(figures.get(key)) for key in chosen)))
    return aligned(lines)


def plain_results(name: str, found: Mapping[str, float]) -> str:
    """Tasks that nothing was published of, in per cent."""
    return aligned([("", *found), (name, *(f"{100 * share:.1f}" for share in found.values()))])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def task_metrics(names: Sequence[str]) -> dict[str, str]:
    """Metric by task of the benchmarks ``names``; ValueError for one that is not known."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"--benchmarks {unknown[0]}: must be among {', '.join(BENCHMARKS)}")
    return {BENCHMARKS[name].task: BENCHMARKS[name].metric for name in names}
