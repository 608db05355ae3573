"""From picture files to normalised pixels: the trainer's way beside bare loops over other libraries.

    python benchmarks/images.py [--pictures 200] [--rounds 7] [--workers 2]

The pictures are crops of scikit-learn's two sample photographs, 640 x 480, JPEG. The bare loops read nothing but the
bytes and end with float32 planes: no hash, no limits, no patches. Each round runs every way once, in turn, on one
thread; given are the median time of a picture and the median, over the rounds, of the fastest bare loop's time over
this one's. OpenCV's resizing takes no mean over the pixels it leaves out, so its pixels are others; it runs where it
is installed. ``processes``: as many as ``--workers``, wall-clock time times the processes, the trainer's own thread
(which normalises) beside them. Exit status 1 when the trainer's way is below 0.8 of the fastest bare loop.
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

from megatron_apo.data.images import CACHE, sha256_of  # noqa: E402
from megatron_apo.data.patches import patch_format  # noqa: E402
from megatron_apo.data.pixels import PixelSource  # noqa: E402
from megatron_apo.platform.torchvision_cpu import register_missing_operators  # noqa: E402
from megatron_apo.records import PromptImage  # noqa: E402

register_missing_operators()
from transformers import Qwen2VLImageProcessor  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # noqa: E402

LIMIT = 0.8
MEASURED = ("here", "processes")


def make_pictures(directory: Path, count: int) -> list[Path]:
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = []
    for number in range(count):
        left, top = 3 * number % 200, 2 * number % 150
        crop = photographs[number % 2].crop((left, top, left + 320 + number % 60, top + 240))
        paths.append(directory / f"{number}.jpg")
        crop.resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
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


def seconds_of(run: Callable[[Any], object], items: list[Any]) -> float:
    started = time.perf_counter()
    for item in items:
        run(item)
    return (time.perf_counter() - started) / len(items)


def ours(images: list[PromptImage], source: PixelSource, workers: int) -> float:
    """Seconds a picture, and process, from telling the source what comes until all pixels were handed out."""
    CACHE.clear()
    source.ahead(images)
    return seconds_of(source, images) * max(1, workers)


def measured(paths: list[Path], rounds: int, workers: int) -> dict[str, list[float]]:
    own = Qwen2VLImageProcessor()
    limits = {"min_pixels": own.size["shortest_edge"], "max_pixels": own.size["longest_edge"]}
    height, width = smart_resize(480, 640, factor=28, **limits)
    grid = (1, height // 14, width // 14)
    images = [PromptImage(str(path), sha256_of(path), grid) for path in paths]
    data = [path.read_bytes() for path in paths]
    loops, made_by = bare_loops((height, width), own), patch_format(own, "default")
    seconds: dict[str, list[float]] = {name: [] for name in (*loops, *MEASURED)}
    for _ in range(rounds):
        for name, loop in loops.items():
            seconds[name].append(seconds_of(loop, data))
        seconds["here"].append(ours(images, PixelSource(made_by, lambda *_: grid), 0))
        with PixelSource(made_by, lambda *_: grid, workers=workers) as source:
            source.ahead(images[:workers])  # every process is up
            for image in images[:workers]:
                source(image)
            seconds["processes"].append(ours(images[workers:], source, workers))
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        paths = make_pictures(Path(directory), arguments.pictures)
        seconds = measured(paths, arguments.rounds, arguments.workers)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min((name for name in medians if name not in MEASURED), key=lambda name: medians[name])
    ratios = {}
    for name, times in seconds.items():
        ratios[name] = statistics.median(a / b for a, b in zip(seconds[fastest], times, strict=True))
        print(f"{name:26s} {1000 * medians[name]:7.2f} ms a picture   {ratios[name]:5.2f} of {fastest}")
    return 0 if min(ratios[name] for name in MEASURED) >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
