"""The planner's activations, vision and logits against what a real microbatch saves and allocates, layout by layout."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.config import ParallelConfig
from megatron_apo.planning import activations
from megatron_apo.planning.activations import Budget
from megatron_apo.planning.layouts import RECOMPUTE, Layout, Request, weigh
from megatron_apo.planning.sizes import size_of
from tests.distributed.launcher import Case, run_cases
from tests.distributed.measured_memory import CHUNK, SHAPES, sizes

TP2, TP4 = {"tensor": 2, "sequence": True}, {"tensor": 4, "sequence": True}
# name: (ranks, shape, microbatch, dtype, layout); a "mixed" one has sequences and images of different sizes
CASES: dict[str, tuple[int, str, str, str, dict[str, Any]]] = {
    "one process": (1, "wide_ffn", "alike", "bfloat16", {}),
    "one process, mixed": (1, "wide_attention", "mixed", "float32", {}),
    "TP 2": (2, "wide_ffn", "alike", "float32", TP2),
    "TP 2, mixed": (2, "wide_attention", "mixed", "bfloat16", TP2),
    "TP 4, more than key-value heads, mixed": (4, "wide_ffn", "mixed", "bfloat16", TP4),
    "CP 2, mixed": (2, "wide_ffn", "mixed", "bfloat16", {"context": 2}),
    "TP 2, CP 2, mixed": (4, "wide_ffn", "mixed", "bfloat16", TP2 | {"context": 2}),
}
BOUND = 0.1  # asked for is 0.15; these bytes are the same in every run


def planned(name: str, recompute: str) -> int:
    """Bytes of activations, vision and logits that the planner gives this case."""
    ranks, shape, batch, dtype, layout = CASES[name]
    tokens, patches = sizes(batch)
    request = Request(
        size_of(SHAPES[shape]),
        gpus=ranks,
        memory_gib=1024.0,
        tokens=tokens,
        patches=patches,
        microbatches=1,
        dtype=dtype,
        chunk=CHUNK,
    )
    memory = weigh(request, Layout(ParallelConfig(**layout), recompute)).memory
    return memory["activations"] + memory["vision"] + memory["logits"]


def measure(root: Path) -> dict[str, dict[str, dict[str, int]]]:
    """By case and recompute setting: the most that a rank saves ("saved") and allocates ("peak")."""
    cases = []
    for name, (ranks, shape, batch, dtype, layout) in CASES.items():
        arguments = dict(shape=shape, batch=batch, dtype=dtype, layout=layout)
        cases.append(Case("tests.distributed.measured_memory:measure", ranks, str(root / name), arguments))
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
def test_what_is_planned_is_close_to_what_is_allocated(
    name: str, recompute: str, measured: dict[str, dict[str, dict[str, int]]]
) -> None:
    peak = measured[name][recompute]["peak"]
    assert abs(planned(name, recompute) - peak) <= BOUND * peak


def test_more_ranks_than_key_value_heads_keep_the_gathered_product(
    measured: dict[str, dict[str, dict[str, int]]],
) -> None:
    """Selective recomputation makes each rank keep more there than none does; elsewhere about as much, or less."""
    name = "TP 4, more than key-value heads, mixed"
    ranks, shape, batch, dtype, layout = CASES[name]
    size, budget = size_of(SHAPES[shape]), Budget(*sizes(batch), dtype)
    none, selective = (
        activations.language_layers(size, budget, size.layers, recompute=recompute, **layout)
        + activations.vision_tower(size, budget, recompute=recompute, **layout)
        for recompute in ("none", "selective")
    )
    assert selective - none == pytest.approx(
        measured[name]["selective"]["saved"] - measured[name]["none"]["saved"], rel=0.2
    )


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
