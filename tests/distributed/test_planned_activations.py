"""The planner's activations, vision and logits against what a real microbatch saves and allocates, layout by layout."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.config import ParallelConfig
from megatron_apo.planning.layouts import RECOMPUTE, Layout, Request, weigh
from megatron_apo.planning.sizes import size_of
from tests.distributed.launcher import Case, run_cases
from tests.distributed.measured_memory import CHUNK, PATCHES, SHAPES, TOKENS

# name: (ranks, shape, dtype, layout)
CASES: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "one process": (1, "wide_ffn", "bfloat16", {}),
    "one process, Qwen2-VL": (1, "wide_attention", "float32", {}),
    "TP 2, sequence parallelism": (2, "wide_ffn", "float32", {"tensor": 2, "sequence": True}),
    "TP 4, sequence parallelism, Qwen2-VL": (4, "wide_attention", "bfloat16", {"tensor": 4, "sequence": True}),
    "TP 2, sequence parallelism, Qwen2-VL": (2, "wide_attention", "bfloat16", {"tensor": 2, "sequence": True}),
    "CP 2": (2, "wide_ffn", "bfloat16", {"context": 2}),
    "TP 2, sequence parallelism, CP 2": (4, "wide_ffn", "bfloat16", {"tensor": 2, "sequence": True, "context": 2}),
}
BOUND = 0.15


def planned(name: str, recompute: str) -> int:
    """Bytes of activations, vision and logits that the planner gives this case."""
    ranks, shape, dtype, layout = CASES[name]
    request = Request(
        size_of(SHAPES[shape]),
        gpus=ranks,
        memory_gib=1024.0,
        tokens=TOKENS,
        patches=PATCHES,
        microbatches=1,
        dtype=dtype,
        chunk=CHUNK,
    )
    memory = weigh(request, Layout(ParallelConfig(**layout), recompute)).memory
    return memory["activations"] + memory["vision"] + memory["logits"]


def measure(root: Path) -> dict[str, dict[str, dict[str, int]]]:
    """By case and recompute setting: the most that a rank saves ("saved") and allocates ("peak")."""
    cases = [
        Case(
            "tests.distributed.measured_memory:measure", ranks, str(root / name), dict(shape=s, dtype=d, layout=layout)
        )
        for name, (ranks, s, d, layout) in CASES.items()
    ]
    run_cases(cases)
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, (ranks, *_) in CASES.items():
        of_ranks = [json.loads(path.read_text()) for path in sorted((root / name).glob("rank_*.json"))]
        assert len(of_ranks) == ranks
        found[name] = {
            recompute: {kind: max(rank[recompute][kind] for rank in of_ranks) for kind in ("saved", "peak")}
            for recompute in RECOMPUTE
        }
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, int]]]:
    return measure(tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("name", CASES)
def test_what_is_planned_is_within_15_percent_of_what_is_allocated(
    name: str, recompute: str, measured: dict[str, dict[str, dict[str, int]]]
) -> None:
    peak = measured[name][recompute]["peak"]
    assert abs(planned(name, recompute) - peak) <= BOUND * peak


def main() -> None:
    """Prints the table of docs/planning.md."""
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory))
    print("| layout | recompute | saved MiB | peak MiB | planned MiB | planned / peak |\n|---|---|---|---|---|---|")
    for name, settings in found.items():
        for recompute, of in settings.items():
            plan = planned(name, recompute)
            shown = (of["saved"] / 2**20, of["peak"] / 2**20, plan / 2**20, plan / of["peak"])
            print(f"| {name} | {recompute} | {shown[0]:.1f} | {shown[1]:.1f} | {shown[2]:.1f} | {shown[3]:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
