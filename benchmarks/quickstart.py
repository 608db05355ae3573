"""The quickstart against its own limits: ratios of 1 or less keep them.

    python benchmarks/quickstart.py                      runs it in a temporary directory (minutes)
    python benchmarks/quickstart.py --directory DIR      reads the figures of a quickstart that has run

Printed: seconds of the whole quickstart from an installed environment (limit 600), median seconds of a step of 256
responses with the weight sync and its verification (1.2), peak memory of the largest process (4 GB), seconds of
``python -m megatron_apo --help`` (0.5). Quote them with the machine's load in mind.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LIMITS = {"quickstart seconds": 600.0, "median step seconds": 1.2, "peak memory GB": 4.0, "help seconds": 0.5}


def run_quickstart(directory: Path) -> dict[str, float]:
    """Runs all stages in ``directory``; wall-clock seconds and the largest process's peak resident memory."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "examples/digits/quickstart.py", "--directory", str(directory)], cwd=REPOSITORY, check=True
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    return {"quickstart seconds": seconds, "peak memory GB": peak}


def read_steps(directory: Path) -> dict[str, float]:
    """Median seconds of an APO step and of its parts, from ``metrics.jsonl``."""
    lines = (directory / "apo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    names = {"median step seconds": "time/step"} | {
        f"  of it {part}": f"time/{part}" for part in ("rollout", "score", "shape", "update", "sync")
    }
    return {label: statistics.median(step[name] for step in steps) for label, name in names.items()}


def time_help(runs: int = 5) -> float:
    """Median seconds of the command line's help."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "megatron_apo", "--help"], cwd=REPOSITORY, check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Prints each figure, its limit and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="of a finished quickstart; default: run one now")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures: dict[str, float] = {}
        directory = options.directory or Path(temporary) / "quickstart"
        if options.directory is None:
            figures |= run_quickstart(directory)
        figures |= read_steps(directory) | {"help seconds": time_help()}
    for label, value in figures.items():
        limit = LIMITS.get(label)
        print(f"{label:24} {value:8.3f}" + (f"   limit {limit:g}   ratio {value / limit:.2f}" if limit else ""))


if __name__ == "__main__":
    main()
