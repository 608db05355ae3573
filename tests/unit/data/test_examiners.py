"""Processes that examine pictures: what a bomb costs them, and that nothing costs their caller anything."""

from __future__ import annotations

import io
import signal
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from megatron_apo.data import examiners, image_process
from megatron_apo.data.examiners import ImageExaminers, examine_here
from megatron_apo.data.images import ExaminedImage
from tests.unit.data.bad_rows import SMALL, chunk, png, tiff


@pytest.fixture(scope="module")
def one() -> Iterator[ImageExaminers]:
    with ImageExaminers(1) as found:
        yield found


def test_they_find_what_is_found_here(one: ImageExaminers, tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("L", (20 + number, 30), number).save(paths[-1])
    paths[7] = str(tmp_path / "absent.png")
    Path(paths[9]).write_bytes(b"no picture")
    found = one(paths)
    assert found == examine_here(paths)
    assert isinstance(found[0], ExaminedImage) and (found[0].width, found[0].height) == (20, 30)
    assert "absent.png: cannot be read" in str(found[7]) and "not an image format" in str(found[9])
    with ImageExaminers(3) as several:
        assert several(paths) == found and several([]) == []


def gif_of_many_frames(side: int, count: int) -> bytes:
    """One frame, again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "GIF")
    data = buffer.getvalue()
    start = data.index(b"\x2c" + bytes(4))  # the image descriptor, at the left top
    return data[:start] + data[start:-1] * count + b"\x3b"


def test_bombs(one: ImageExaminers, tmp_path: Path) -> None:
    """Small files that ask for a lot: an answer for each, from a process that stays within its memory."""
    pages = [Image.new("1", (8, 8), n % 2) for n in range(300)]
    many = io.BytesIO()
    pages[0].save(many, "TIFF", save_all=True, append_images=pages[1:])
    hundred_million = zlib.compress(bytes(10**8), 1)
    text = chunk(b"iTXt", b"a\0\1\0\0\0" + hundred_million)
    profile = chunk(b"iCCP", b"a\0\0" + hundred_million)
    texts = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6))) * 100
    claims = {40000 + n: (7, 30_000_000, 8) for n in range(200)}  # each tag is all of the file
    jpeg = io.BytesIO()
    Image.new("L", (4000, 4000)).save(jpeg, "JPEG", progressive=True)
    cases: dict[str, tuple[bytes, str | None]] = {
        "grey.png": (png(8000, 8000, pixels=bytes(8001 * 8000)), None),
        "wide.png": (png(60_000, 60_000, pixels=bytes(1000)), "too many pixels"),
        "text.png": (png(8, 8, pixels=bytes(72), before=text), "damaged"),
        "profile.png": (png(8, 8, pixels=bytes(72), before=profile), "damaged"),
        "texts.png": (png(8, 8, pixels=bytes(72), before=texts), "damaged"),
        "tags.tiff": (tiff({**SMALL, **claims}, bytes(30_000_000)), "damaged"),
        "progressive.jpg": (jpeg.getvalue(), None),
        "pages.tiff": (many.getvalue(), None),
        "frames.gif": (gif_of_many_frames(1000, 10_000), None),
    }
    paths = [tmp_path / name for name in cases]
    for path, (data, _) in zip(paths, cases.values(), strict=True):
        path.write_bytes(data)
    for found, (name, (_, reason)) in zip(one([str(path) for path in paths]), cases.items(), strict=True):
        assert isinstance(found, ExaminedImage) if reason is None else reason in str(found), (name, found)
    peak = int(Path(f"/proc/{_process(one).pid}/status").read_text().split("VmHWM:")[1].split()[0])
    assert peak < 1.1 * 2**20  # KiB; a tenth for the process itself


def test_the_limit_of_memory_is_felt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examiners, "MEMORY_MIB", 100)
    for name, side in (("large.png", 6000), ("small.png", 600)):
        (tmp_path / name).write_bytes(png(side, side, pixels=bytes((side + 1) * side)))
    with ImageExaminers(1) as pool:
        large, small = pool([str(tmp_path / "large.png"), str(tmp_path / "small.png")])
    assert "more memory is needed than a picture may take" in str(large)  # 36 MB of grey, and 144 as RGB
    assert isinstance(small, ExaminedImage)


def _process(pool: ImageExaminers) -> subprocess.Popen[bytes]:
    examiner = pool._idle.get()
    pool._idle.put(examiner)
    assert examiner is not None
    return examiner._process


def test_a_picture_that_ends_or_holds_up_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of the test's own dies of one picture and sleeps over another; the others are examined all the same."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, signal, sys, time\n"
        "print(flush=True)\n"
        "for line in sys.stdin:\n"
        "    for path in json.loads(line)['paths']:\n"
        "        if path == 'dies': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        if path == 'sleeps': time.sleep(60)\n"
        "        found = dict(path=path, sha256='00', width=1, height=2, pixels_sha256='01')\n"
        "        print(json.dumps(dict(found, traits=['grey'])), flush=True)\n"
    )
    start = subprocess.Popen

    def started(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return start([command[0], str(worker)], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(image_process.subprocess, "Popen", started)
    monkeypatch.setattr(examiners, "SECONDS", 5.0)
    with ImageExaminers(1) as pool:
        found = pool(["a", "dies", "b", "sleeps", "c"])
        process = _process(pool)
    assert [found[place] for place in (0, 2, 4)] == [ExaminedImage(name, "00", 1, 2, "01", ("grey",)) for name in "abc"]
    assert all("ended its process, or took" in str(found[place]) for place in (1, 3))
    assert process.wait() == -signal.SIGKILL  # closing leaves none behind
