"""How fast checkpoints are converted, beside a plain copy of the same files, and how much memory a process takes.

    python benchmarks/conversion.py [--gigabytes 2.1] [--directory DIR]

Makes a Qwen2.5-VL checkpoint of random bfloat16 weights (several shards with an index), then, in this one process and
several rounds: copies it (shutil.copyfile and fsync), converts it to Megatron's torch_dist, converts that back; and
compares. Reported are medians of the rounds, and of the ratios to the copy of the same round. The copy and both
conversions sync to disk; a smaller checkpoint goes first, so that what Python imports is not counted. A copy uses one
thread, a conversion two. Memory is the process's own (RssAnon in /proc/self/status, sampled) above what it was before:
pages of mapped files do not count.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from megatron_apo.platform.host import prepare

prepare()

from megatron_apo.conversion.convert import hf_to_megatron, megatron_to_hf  # noqa: E402
from megatron_apo.conversion.safetensors_writer import SafetensorsWriter  # noqa: E402
from megatron_apo.conversion.verify import verify  # noqa: E402
from model_providers.qwen_vl.shape import read_shape  # noqa: E402
from model_providers.qwen_vl.weight_map import weight_map  # noqa: E402

HIDDEN, FFN, LAYER_NUMBERS = 2048, 11008, 77_000_000  # the 3B's width; about as many numbers in one of its layers


def write_config(directory: Path, layers: int) -> None:
    """A config of the 3B's width with fewer layers and a vocabulary of 32768."""
    config = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": FFN,
        "vocab_size": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
        "image_token_id": 32764,
        "video_token_id": 32765,
        "vision_start_token_id": 32766,
        "vision_end_token_id": 32767,
        "vision_config": {"depth": 4, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420,
                          "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1, 3], "window_size": 112,
                          "tokens_per_second": 2},
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


def make_checkpoint(directory: Path, gigabytes: float) -> int:
    """Writes the checkpoint; returns its bytes of weights."""
    directory.mkdir()
    write_config(directory, max(1, round((gigabytes * 1e9 / 2 - 150e6) / LAYER_NUMBERS)))
    rows = [row for row in weight_map(read_shape(directory)) if row.exported]
    entries = [entry for row in rows for entry in zip(row.hf, row.shapes, strict=True)]
    writer = SafetensorsWriter(directory, entries, torch.bfloat16, 10**9)
    generator, written = torch.Generator().manual_seed(0), 0
    for name, shape in entries:
        tensor = torch.randint(-(2**13), 2**13, shape, generator=generator, dtype=torch.int16).view(torch.bfloat16)
        writer.add(name, tensor)
        written += tensor.nbytes
    writer.finish()
    os.sync()
    return written


def copy(source: Path, target: Path) -> None:
    """Every file, one after the other, synced."""
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon line")


@contextmanager
def peak_memory(every: float = 0.01) -> Iterator[list[int]]:
    """Collects the anonymous memory of this process above what it was at the start, the largest seen."""
    before, peak, stop = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            peak[0] = max(peak[0], anonymous_bytes() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def timed(what: Callable[[], object]) -> tuple[float, int]:
    """(seconds, peak of anonymous bytes) of ``what``."""
    with peak_memory() as peak:
        started = time.perf_counter()
        what()
        seconds = time.perf_counter() - started
    return seconds, peak[0]


def one_round(root: Path) -> dict[str, tuple[float, int]]:
    """(seconds, peak of anonymous bytes) of each step, on ``root / "source"``; leaves ``root / "back"``."""
    for old in ("copy", "megatron", "back"):
        shutil.rmtree(root / old, ignore_errors=True)
    os.sync()
    return {
        "copy": timed(lambda: copy(root / "source", root / "copy")),
        "hf-to-megatron": timed(lambda: hf_to_megatron(root / "source", root / "megatron")),
        "megatron-to-hf": timed(lambda: megatron_to_hf(root / "megatron", root / "back", shard_bytes=10**9)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where to write four times as much (default: a temporary directory)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # as the tool does: Megatron's about its own internals
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        for folder, gigabytes in (("small", 0.0), ("large", options.gigabytes)):
            root = Path(name) / folder
            root.mkdir()
            total = make_checkpoint(root / "source", gigabytes)
            rounds = [one_round(root) for _ in range(options.rounds if folder == "large" else 1)]
            if folder == "small":
                shutil.rmtree(root)
        print(f"{total / 1e9:.2f} GB of bfloat16 weights, {options.rounds} rounds")
        for step in rounds[0]:
            seconds = median(measured[step][0] for measured in rounds)
            ratios = sorted(measured["copy"][0] / measured[step][0] for measured in rounds)
            peak = max(measured[step][1] for measured in rounds)
            print(
                f"{step:16s} {seconds:6.2f} s  {total / seconds / 1e9:5.2f} GB/s  {median(ratios):5.2f} of a copy "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})  anonymous memory {peak / 1e9:5.2f} GB"
            )
        differences, equal = verify(root / "source", root / "back")
        print(f"round trip: {equal} tensors equal bit for bit, {len(differences)} differ")


if __name__ == "__main__":
    main()
