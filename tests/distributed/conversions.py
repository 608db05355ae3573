"""What the ranks of the conversion tests run: the tool's own command line, and loading while memory is watched."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig  # noqa: F401 - imported once here, inherited by every rank

from megatron_apo.conversion import convert, verify  # noqa: F401 - likewise
from megatron_apo.conversion.command import main
from megatron_apo.conversion.convert import Layout, build_empty, hf_to_megatron, job, job_config
from model_providers.qwen_vl.loading import load_hf_checkpoint


def command(directory: Path, *, arguments: list[str], status: int = 0) -> None:
    """Runs tools/convert_checkpoint.py's command line on this rank."""
    torch.set_num_threads(1)
    found = main(arguments)
    assert found == status, (arguments, found)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _growth(what: Callable[[], object]) -> int:
    """How far this process's anonymous memory rises above what it is now while ``what`` runs."""
    before, peak, stop = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, _anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        what()
    finally:
        stop.set()
        thread.join()
    return max(peak, _anonymous() - before)


def loading_memory(directory: Path, *, source: str) -> None:
    """Writes loading_RANK.json: bytes of this rank's weights, and of anonymous memory that loading them took."""
    torch.set_num_threads(1)
    config = job_config(Path(source), torch.bfloat16, Layout(int(os.environ["WORLD_SIZE"])))
    with job(config) as groups:
        with torch.device("meta"):
            model = build_empty(config, Path(source), groups)

        def load() -> None:
            model.to_empty(device="cpu")
            load_hf_checkpoint(model, source, tensor_rank=groups.tensor_rank, tensor_size=groups.tensor_size)

        shard = sum(parameter.nbytes for parameter in model.parameters())
        found = {"shard": shard, "taken": _growth(load)}
        (directory / f"loading_{groups.rank}.json").write_text(json.dumps(found))


def converting_memory(directory: Path, *, source: str) -> None:
    """Writes converting_RANK.json: bytes of anonymous memory that a conversion to Megatron's form took."""
    torch.set_num_threads(1)
    layout = Layout(int(os.environ["WORLD_SIZE"]))
    taken = _growth(lambda: hf_to_megatron(Path(source), directory / "megatron", layout=layout))
    (directory / f"converting_{os.environ['RANK']}.json").write_text(json.dumps({"taken": taken}))
