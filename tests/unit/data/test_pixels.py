"""Pixels cut ahead of need by processes: the same pixels, no waiting, and whatever becomes of the processes."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_apo.config import DataConfig
from megatron_apo.data import image_process, pixels
from megatron_apo.data.examiners import ImageExaminers, examine_here
from megatron_apo.data.image_process import ImageProcessError
from megatron_apo.data.pixels import PixelSource, images_of
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.rows import Row
from megatron_apo.records import PromptImage, ReplicaWork, TrainingSample

SECONDS = 60.0  # until something must have happened, on a busy machine


@pytest.fixture(scope="module")
def builder(tiny_policy: Path) -> PromptBuilder:
    return PromptBuilder(tiny_policy, DataConfig())


@pytest.fixture
def images(builder: PromptBuilder, tmp_path: Path) -> list[PromptImage]:
    """Eight pictures of different sizes and kinds."""
    found = []
    for number in range(8):
        size = (60 + 13 * number, 90 - 5 * number)
        values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.{('png', 'jpg')[number % 2]}"
        Image.fromarray(values).save(path)
        found.append(builder.build(Row(str(number), (str(path),), "?", "1")).images[0])
    return found


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cut_ahead(source: PixelSource, count: int) -> None:
    until(lambda: len(source._ahead) == count)


def replace_worker(monkeypatch: pytest.MonkeyPatch, script: Path) -> None:
    """Processes run ``script`` instead."""
    start = subprocess.Popen
    monkeypatch.setattr(
        image_process.subprocess, "Popen", lambda command, **named: start([command[0], str(script)], **named)
    )


@pytest.fixture
def cut_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that this process opened."""
    opened: list[str] = []
    load = pixels.load_image

    def seen(path: str, **named: Any) -> Image.Image:
        opened.append(path)
        return load(path, **named)

    monkeypatch.setattr(pixels, "load_image", seen)
    return opened


def test_the_same_pixels_before_they_are_asked_for(
    builder: PromptBuilder, images: list[PromptImage], cut_here: list[str]
) -> None:
    expected = [builder.pixel_values(image) for image in images]
    cut_here.clear()
    with builder.pixel_source(workers=2) as source:
        source.ahead(images)
        cut_ahead(source, len(images))
        started = time.perf_counter()
        found = [source(image) for image in images]
        elapsed = time.perf_counter() - started
        waited = source.take_seconds()
        assert all(torch.equal(a.flatten(1), b) for a, b in zip(found, expected, strict=True))
        assert waited < elapsed and waited < 0.05  # nothing was cut: there was nothing to wait for
        assert cut_here == [] and source.take_seconds() == 0.0
        assert torch.equal(source(images[3]).flatten(1), expected[3])  # and it is kept
        assert cut_here == []


def test_what_no_worker_has_begun_is_cut_by_the_caller(
    builder: PromptBuilder, images: list[PromptImage], cut_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one picture ahead, the workers stop there until it is taken."""
    monkeypatch.setattr(pixels, "_AHEAD_BYTES", 1)
    with builder.pixel_source(workers=1) as source:
        source.ahead(images)
        cut_ahead(source, 1)
        time.sleep(0.2)
        assert len(source._ahead) == 1 and not source._under_way  # no further
        source(images[-1])
        assert cut_here == [images[-1].path] and source.take_seconds() > 0
        source(images[0])
        until(lambda: set(source._ahead) == {key_of(images[1])})
        assert cut_here == [images[-1].path]


def key_of(image: PromptImage) -> Any:
    return (image.sha256, image.grid_thw, image.seconds_per_grid)


def test_another_list_takes_the_place_of_the_first(
    builder: PromptBuilder, images: list[PromptImage], cut_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_AHEAD_BYTES", 1)
    with builder.pixel_source(workers=1) as source:
        source.ahead(images[:3])
        cut_ahead(source, 1)
        source.ahead([images[5], images[6]])
        until(lambda: set(source._ahead) == {key_of(images[5])})
        source(images[0])  # no longer awaited, and yet not thrown away
        assert cut_here == []


def test_memory_is_bounded(
    builder: PromptBuilder, images: list[PromptImage], cut_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = builder.pixel_source()
    size = [source._patches(image).nbytes for image in images]
    monkeypatch.setattr(pixels, "_KEPT_BYTES", sum(size[-2:]))
    source = builder.pixel_source()
    for image in images:
        source(image)
    assert list(source._kept) == [key_of(image) for image in images[-2:]]
    cut_here.clear()
    source(images[-1])
    source(images[0])
    assert cut_here == [images[0].path]


def test_what_is_wrong_with_a_picture_is_said_when_it_is_asked_for(
    builder: PromptBuilder, images: list[PromptImage]
) -> None:
    Path(images[1].path).write_bytes(b"something else")
    Path(images[2].path).unlink()
    other = PromptImage(images[3].path, images[3].sha256, (1, 4, 4))
    video = PromptImage("clip.mp4", "00", (2, 4, 4), seconds_per_grid=0.5)
    with builder.pixel_source(workers=1) as source:
        source.ahead([images[1], images[2], other, video, images[0]])
        cut_ahead(source, 4)
        cases = {
            images[1]: "its SHA-256 is .*, recorded was .*; the file changed since",
            images[2]: "cannot be read",
            other: r"its patch grid is \(1, .*recorded was \(1, 4, 4\); use the data.min_pixels",
            video: "clip.mp4 is a video",
        }
        for image, words in cases.items():
            with pytest.raises(ValueError, match=words):
                source(image)
        assert torch.equal(source(images[0]).flatten(1), builder.pixel_values(images[0]))


def test_a_process_that_is_ended_is_replaced(builder: PromptBuilder, images: list[PromptImage]) -> None:
    expected = builder.pixel_values(images[0])
    with builder.pixel_source(workers=1) as source:
        until(lambda: source._processes[0] is not None)
        (process,) = source._processes
        assert process is not None
        process.kill()
        source.ahead(images[:2])
        cut_ahead(source, 2)
        assert torch.equal(source(images[0]).flatten(1), expected)
        assert source._processes[0] is not None and source._processes[0].pid != process.pid


@pytest.mark.parametrize("answer", ["os.kill(os.getpid(), 9)", "time.sleep(60)"])
def test_processes_that_end_or_hang_over_a_picture(
    builder: PromptBuilder, images: list[PromptImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Tried twice, then the picture is at fault: nobody waits for ever."""
    worker = tmp_path / "worker.py"
    asked = tmp_path / "asked"
    worker.write_text(
        "import os, sys, time\nprint(flush=True)\nfor line in sys.stdin:\n"
        f"    open({str(asked)!r}, 'a').write('.')\n    {answer}\n"
    )
    replace_worker(monkeypatch, worker)
    monkeypatch.setattr(pixels, "SECONDS", 3.0)
    with builder.pixel_source(workers=1) as source:
        source.ahead(images[:1])
        until(lambda: bool(source._under_way))
        with pytest.raises(ValueError, match="was ended twice over it, or took 3 s; where memory is short"):
            source(images[0])
        assert asked.read_text() == ".."


def test_closing_ends_what_is_under_way(
    builder: PromptBuilder, images: list[PromptImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import sys, time\nprint(flush=True)\nfor line in sys.stdin:\n    time.sleep(60)\n")
    replace_worker(monkeypatch, worker)
    source = builder.pixel_source(workers=2)
    source.ahead(images)
    until(lambda: len(source._under_way) == 2)
    processes = [process._process for process in source._processes if process is not None]
    begun = time.monotonic()
    source.close()
    assert time.monotonic() - begun < 30 and [process.returncode for process in processes] == [-9, -9]


def test_images_in_the_order_of_the_microbatches() -> None:
    images = [PromptImage(f"{n}.png", hashlib.sha256(b"%d" % n).hexdigest(), (1, 2, 2)) for n in range(4)]
    samples = [TrainingSample((1,), (2,), (images[n],)) for n in range(3)]
    samples.append(TrainingSample((1,), (2,), (images[3], images[1])))
    work = ReplicaWork(tuple(samples), (((2, 3), (1,)), ((0,), (2,))), {})
    assert images_of(work) == [images[2], images[3], images[1], images[0]]


def test_nobody_waits_for_a_process_that_is_not_up(
    builder: PromptBuilder,
    images: list[PromptImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut_here: list[str],
) -> None:
    """Its libraries take seconds to load; until it says that it is up, the caller cuts."""
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(60)\n")
    replace_worker(monkeypatch, worker)
    with builder.pixel_source(workers=1) as source:
        source.ahead(images)
        begun = time.monotonic()
        for image in images:
            source(image)
        assert time.monotonic() - begun < 30 and cut_here == [image.path for image in images]


def test_processes_that_cannot_start(
    builder: PromptBuilder, images: list[PromptImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken installation is no fault of the pictures: the run stops with what the process said."""
    (tmp_path / "PIL.py").write_text("raise ImportError('PIL is not whole')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with builder.pixel_source(workers=1) as source:
        until(lambda: bool(source._failure))
        source.ahead(images)
        with pytest.raises(ImageProcessError, match="did not start(.|\n)*exit status 1(.|\n)*PIL is not whole"):
            source(images[0])
    with (
        ImageExaminers(1) as examiners,
        pytest.raises(ImageProcessError, match="data.image_worker(.|\n)*PIL is not whole"),
    ):
        examiners([images[0].path])


def test_many_open_files(builder: PromptBuilder, images: list[PromptImage]) -> None:
    """Descriptors above 1,023, as a rank with many sockets has them."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(2048, limits[1])), limits[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with builder.pixel_source(workers=1) as source, ImageExaminers(1) as examiners:
            source.ahead(images[:2])
            cut_ahead(source, 2)
            assert torch.equal(source(images[0]).flatten(1), builder.pixel_values(images[0]))
            assert examiners([images[0].path]) == examine_here([images[0].path])
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
