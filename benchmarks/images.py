"""From picture files to normalised pixels: the trainer's way beside bare loops over other libraries.

    python benchmarks/images.py [--pictures 180] [--rounds 7] [--workers 2]

Pictures of three kinds, crops of scikit-learn's two sample photographs: 480 x 320 as PNG, 640 x 480 and 1600 x 1200 as
JPEG, the last above the processor's default of 1,003,520 pixels. All times are of the CPU, a picture, and so a core's:
medians over the rounds, each of which runs every way once, in turn, on one thread.

A bare loop takes a file's bytes and ends with float32 planes: no file, no hash, no limits, no patches. OpenCV's
resizing takes no mean over the pixels it leaves out, so its pixels are others; it runs where it is installed.
``here`` is the trainer cutting a picture itself. ``workers`` is what that costs the processes that cut ahead of need,
and ``trainer`` what is left to it then: to take the patches over, and to normalise them. The ratios are medians over
the rounds of the fastest bare loop's time over this one's. Exit status 1 when, over all kinds, ``here`` or ``workers``
and ``trainer`` together are below 0.8 of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from megatron_apo.data.images import sha256_of  # noqa: E402
from megatron_apo.data.patches import PatchFormat, patch_format  # noqa: E402
from megatron_apo.data.pixels import PixelSource  # noqa: E402
from megatron_apo.platform.torchvision_cpu import register_missing_operators  # noqa: E402
from megatron_apo.records import PromptImage  # noqa: E402

register_missing_operators()
from transformers import Qwen2VLImageProcessor  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # noqa: E402

LIMIT = 0.8
KINDS = {
    "480 x 320 PNG": (480, 320, "png"),
    "640 x 480 JPEG": (640, 480, "jpg"),
    "1600 x 1200 JPEG": (1600, 1200, "jpg"),
}
OURS = ("here", "workers and trainer")
Seconds = dict[str, list[float]]


def make_pictures(directory: Path, kind: str, count: int) -> list[Path]:
    from sklearn.datasets import load_sample_images

    width, height, ending = KINDS[kind]
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = []
    for number in range(count):
        left, top = 3 * number % 200, 2 * number % 150
        crop = photographs[number % 2].crop((left, top, left + 320 + number % 60, top + 240))
        paths.append(directory / f"{width}_{number}.{ending}")
        crop.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def bare_loops(size: tuple[int, int], own: Any) -> dict[str, Callable[[bytes], object]]:
    """By name, from a file's bytes to normalised float32 pixels of ``size`` (height, width)."""
    mean, std = 255 * torch.tensor(own.image_mean), 255 * torch.tensor(own.image_std)
    mean_numpy, std_numpy = mean.numpy(), std.numpy()

    def opened(data: bytes) -> Image.Image:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        return picture

    def with_torch(data: bytes) -> object:
        planes = torch.from_numpy(np.array(opened(data))).permute(2, 0, 1)[None]
        planes = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
        return planes[0].float().sub_(mean[:, None, None]).div_(std[:, None, None])

    def with_pillow(data: bytes) -> object:
        pixels = np.asarray(opened(data).resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
        return np.ascontiguousarray(((pixels - mean_numpy) / std_numpy).transpose(2, 0, 1))

    def with_transformers(data: bytes) -> object:
        return own(images=[opened(data)], return_tensors="pt")["pixel_values"]

    loops: dict[str, Callable[[bytes], object]] = {
        "Pillow and torch": with_torch,
        "Pillow": with_pillow,
        "transformers' processor": with_transformers,
    }
    if importlib.util.find_spec("cv2"):
        loops["OpenCV"] = _with_opencv(size, mean_numpy, std_numpy)
    return loops


def _with_opencv(size: tuple[int, int], mean: np.ndarray, std: np.ndarray) -> Callable[[bytes], object]:
    import cv2

    cv2.setNumThreads(1)

    def run(data: bytes) -> object:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))

    return run


def cpu_seconds(run: Callable[[Any], object], items: list[Any]) -> float:
    """Of this process, threads included, an item."""
    started = time.process_time()
    for item in items:
        run(item)
    return (time.process_time() - started) / len(items)


def workers_seconds(source: PixelSource) -> float:
    """CPU time of a source's processes up to now (the clock of a process: clock_getcpuclockid(3))."""
    return sum(time.clock_gettime(~process.pid << 3 | 2) for process in source._processes if process is not None)


def measured(paths: list[Path], own: Any, made_by: PatchFormat, rounds: int, workers: int) -> Seconds:
    """CPU seconds of a picture of one kind, by way and round."""
    width, height = Image.open(paths[0]).size
    limits = {"min_pixels": own.size["shortest_edge"], "max_pixels": own.size["longest_edge"]}
    size = smart_resize(height, width, factor=28, **limits)
    grid = (1, size[0] // 14, size[1] // 14)
    images = [PromptImage(str(path), sha256_of(path), grid) for path in paths]
    data = [path.read_bytes() for path in paths]
    loops = bare_loops(size, own)
    seconds: Seconds = {name: [] for name in (*loops, "here", "workers", "trainer", OURS[1])}
    for number in range(-1, rounds):  # once without taking the time
        found = {name: cpu_seconds(loop, data) for name, loop in loops.items()}
        with PixelSource(made_by, lambda *_: grid) as here:
            found["here"] = cpu_seconds(here, images)
        with PixelSource(made_by, lambda *_: grid, workers=workers) as source:
            source.ahead(images[:workers])  # every process is up
            for image in images[:workers]:
                source(image)
            rest, before = images[workers:], workers_seconds(source)
            source.ahead(rest)
            found["trainer"] = cpu_seconds(source, rest)
            found["workers"] = (workers_seconds(source) - before) / len(rest)
        found[OURS[1]] = found["workers"] + found["trainer"]
        for name in seconds if number >= 0 else ():
            seconds[name].append(found[name])
    return seconds


def table(kind: str, seconds: Seconds) -> dict[str, float]:
    """Prints the ways of one kind, and gives the ratio of each."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bare = [name for name in medians if name not in (*OURS, "workers", "trainer")]
    fastest = min(bare, key=lambda name: medians[name])
    ratios = {}
    print(f"{kind}\n  {'':26s} ms CPU   {fastest} / it")
    for name, times in seconds.items():
        ratios[name] = statistics.median(a / b for a, b in zip(seconds[fastest], times, strict=True))
        shown = "" if name in ("workers", "trainer") else f"{ratios[name]:8.2f}"
        print(f"  {name:26s} {1000 * medians[name]:6.2f}   {shown}")
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=180, help="of all kinds together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    own = Qwen2VLImageProcessor()
    made_by = patch_format(own, "default")
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind in KINDS:
            paths = make_pictures(Path(directory), kind, arguments.pictures // len(KINDS))
            found[kind] = measured(paths, own, made_by, arguments.rounds, arguments.workers)
            table(kind, found[kind])
    ways = next(iter(found.values()))
    total = {way: [sum(times) for times in zip(*(of[way] for of in found.values()), strict=True)] for way in ways}
    ratios = table("one of each", total)
    return 0 if min(ratios[name] for name in OURS) >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
