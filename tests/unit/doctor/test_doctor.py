"""``python -m megatron_apo doctor`` on data with everything wrong that it is there to find."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from megatron_apo.cli import main
from megatron_apo.doctor.arguments import MANIFEST, PAGE, SKIPPED
from megatron_apo.doctor.manifest import ManifestError, check, read_manifest, write_manifest
from megatron_apo.doctor.page import _histogram
from megatron_apo.doctor.survey import kind_of
from megatron_apo.doctor.words import Spread

TURNED = Image.Exif()
TURNED[0x0112] = 6


def picture(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    generator = random.Random(seed)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = generator.randrange(width), generator.randrange(height), generator.randrange(4, 16)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(generator.randrange(256) for _ in range(3)))
    return image


def row(id: str, image: Any, question: str = "How many discs?", answer: str = "6", **more: Any) -> dict[str, Any]:
    return {"id": id, "images": [image], "question": question, "answer": answer, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    picture(0).save(tmp_path / "0 again.bmp")
    picture(6).save(tmp_path / "turned.jpg", exif=TURNED)
    picture(7).convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture(8).convert("P").save(tmp_path / "palette.png")
    Image.new("I;16", (56, 56), 4000).save(tmp_path / "deep.png")
    Image.new("RGBA", (56, 56), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    picture(9).save(tmp_path / "moving.gif", save_all=True, append_images=[picture(10), picture(11)])
    picture(12, 700, 28).save(tmp_path / "wide.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:200])
    converted = ("turned.jpg", "cmyk.jpg", "palette.png", "deep.png", "clear.png", "moving.gif")
    write(
        tmp_path / "train.jsonl",
        [
            *(row(f"t{number}", f"{number}.png", category="discs") for number in range(5)),
            *(row(name, name) for name in converted),
            row("repeated", "0 again.bmp", "HOW  many discs?"),
            row("contradicting", "1.png", answer="7"),
            row("<script>alert(1)</script>", "2.png", "<img src=x onerror=alert(1)>"),
            row("words", "palette.png", "How much?", "a lot"),
            row("nameless", ""),
            row("numbered", 17),
            row("broken", "broken.jpg"),
            row("gone", "gone.png"),
            row("outside", "../secret.png"),
            row("gold", "3.png", answer=""),
            row("wide", "wide.png"),
            row("keyless", "0.png", category=4),
        ],
    )
    write(
        tmp_path / "test.jsonl",
        [
            row("e0", "3.png"),  # a training row
            row("e1", "4.png", "How many red discs?"),  # its picture
            row("e2", "5.png"),  # nothing but the words
        ],
    )
    return tmp_path


def doctor(model: Path, data: Path, *more: str) -> int:
    words = [str(data / "train.jsonl"), "--evaluation", str(data / "test.jsonl"), "--model", str(model)]
    return main(["doctor", *words, "--output", str(data / "found"), "--data.max_prompt_tokens=55", *more])


def test_everything_is_found(tiny_policy: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(tiny_policy, data) == 3
    printed = capsys.readouterr()
    said = [" ".join(line.split()) for line in printed.out.splitlines()]
    for line in (
        "rows 23 in 1 file; 15 good",
        "skipped 8",
        "images 12 files, shown 15 times",
        "EXIF rotation 1 (turned upright)",
        "16-bit 1 (scaled to 8 bits)",
        "CMYK 1 (converted to RGB)",
        "palette 2 (converted to RGB)",
        "transparency 1 (composed on white)",
        "animated 1 (the first frame is taken)",
        "✗ training: 8 of 23 rows are bad, more than data.max_bad_share=0.01: training refuses to start",
        "! training: 1 row repeats an earlier one",
        "✗ training: 2 rows ask the same of the same picture and want other answers",
        "! training: 1 gold answer is compared as plain words, so that no other wording is paid: 'a lot' of row words",
        "✗ leakage: 1 evaluation row stands in the training data",
        "! 1 further evaluation row shows a picture that training shows",
        "✓ 2 evaluation rows ask in words that training uses too (1 text)",
    ):
        assert line in said, printed.out
    assert "training refuses to start" in printed.err and "leakage" in printed.err
    assert f"{data / 'found' / SKIPPED}: every skipped row with its reason" in printed.out
    assert main(["doctor", str(data / "train.jsonl"), f"--model={tiny_policy}", f"--output={data / '5.png'}"]) == 2
    assert "5.png: exists already and is no directory" in capsys.readouterr().err
    skipped = [json.loads(line) for line in (data / "found" / SKIPPED).read_text().splitlines()]
    assert [(one["row"], one["id"], kind_of(one["reason"])) for one in skipped] == [
        ("line 16", "nameless", "key missing or wrong"),
        ("line 17", "numbered", "key missing or wrong"),
        ("line 18", "broken", "picture damaged or of another kind"),
        ("line 19", "gone", "picture missing"),
        ("line 20", "outside", "picture outside the root"),
        ("line 21", "gold", "answer cannot be graded"),
        ("line 22", "wide", "prompt too long"),
        ("line 23", "keyless", "key missing or wrong"),
    ]


class Page(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag == "img":
            self.sources.append(dict(attributes)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_rows_and_runs_nothing_of_them(tiny_policy: Path, data: Path) -> None:
    doctor(tiny_policy, data)
    page = Page((data / "found" / PAGE).read_text())
    assert page.tags["script"] == 0
    assert page.tags["img"] == 15 + 3 and all(source.startswith("data:image/") for source in page.sources)
    assert "<script>alert(1)</script>" in page.text and "<img src=x onerror=alert(1)>" in page.text
    assert page.tags["rect"] >= 4


@pytest.mark.parametrize(
    ("values", "bars", "ticks"),
    [
        ([54] * 9, [("54", 9)], ["9", "54"]),
        ([54, 55, 55], [("54", 1), ("55", 2)], ["2", "54", "55"]),
        ([3, 4, 4, 6], [("3", 1), ("4", 2), ("6", 1)], ["2", "3", "6", "5"]),
        (range(64), [(f"{2 * k} to {2 * k + 1}", 2) for k in range(32)], ["2", "0", "63", "32"]),
    ],
)
def test_histograms_of_few_and_many_values(
    values: Sequence[int], bars: list[tuple[str, int]], ticks: list[str]
) -> None:
    drawn = _histogram(Spread("prompt tokens", values))
    assert re.findall("<title>([^<]*): ([^<]*)</title>", drawn) == [(name, str(count)) for name, count in bars]
    assert re.findall('class="tick"[^>]*>(.*?)<', drawn) == ticks
    places = [(float(x), float(width)) for x, width in re.findall('<rect[^>]* x="([^"]*)"[^>]* width="([^"]*)"', drawn)]
    assert all(x >= 0 and x + width <= 480 and width <= 60 for x, width in places)
    if len(bars) == 1:
        assert places[0][0] + places[0][1] / 2 == 240  # in the middle, as its number is
    assert _histogram(Spread("prompt tokens", [])) == ""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", b"id,question\n1,How many?\n", "it is CSV, whose columns hold no lists; write JSON lines"),
        ("rows.jsonl", b"\x1f\x8b\x08\x00rest", "it is compressed by gzip; decompress it"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfdrest", "it is compressed by zstd"),
        ("rows.json", '{"id": "1"}'.encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
        ("rows.arrow", b"ARROW1\0\0", "it is an Arrow file; give the directory"),
        ("rows.txt", b"How many?\n", "no row is good; training refuses to start (the first: "),
        ("pipe", None, "no regular file: it can be read only once, or never ends; write it to one"),
    ],
)
def test_a_file_that_is_no_data_is_told_with_the_reason(
    name: str, content: bytes | None, said: str, tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    assert main(["doctor", str(path), f"--model={tiny_policy}", f"--output={tmp_path / 'found'}"]) in (2, 3)
    printed = capsys.readouterr()
    assert f"{path}" in printed.err + printed.out and said in printed.err
    if "no row is good" in said:
        assert "line 1: not valid JSON" in printed.out


def test_a_pipe_in_a_manifest_is_a_changed_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "sums").write_text(f"{'0' * 64}  a.png\n")
    with pytest.raises(ManifestError, match="of 1 files 1 changed"):
        check(tmp_path / "sums")


def test_a_silently_changed_file_is_found(tiny_policy: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(tiny_policy, data)
    manifest = data / "found" / MANIFEST
    assert len(read_manifest(manifest)) == 2 + 13
    assert main(["doctor", "--check", str(manifest)]) == 0
    tool = ["sha256sum", "--strict", "--quiet", "--check", manifest.name]
    assert subprocess.run(tool, cwd=manifest.parent, check=False).returncode == 0
    content = bytearray((data / "5.png").read_bytes())
    content[-20] ^= 1
    (data / "5.png").write_bytes(content)
    (data / "moving.gif").unlink()
    capsys.readouterr()
    assert main(["doctor", "--check", str(manifest)]) == 3
    said = capsys.readouterr().err
    assert f"changed: {data / '5.png'}\n" in said and f"gone: {data / 'moving.gif'}\n" in said
    assert "of 15 files 1 changed and 1 are gone" in said


def test_names_of_a_manifest_survive(tmp_path: Path) -> None:
    names = ["plain.png", "with space.png", "line\nbreak.png", "back\\slash.png", "\\n.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    digests = {str(tmp_path / name): digest for name in names}
    manifest = tmp_path / "sums"
    write_manifest(manifest, digests)
    assert read_manifest(manifest) == digests
    assert subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "sums"], cwd=tmp_path, check=False).returncode == 0
    manifest.write_text("no sum\n")
    with pytest.raises(ValueError, match="line 1 is not"):
        read_manifest(manifest)


def test_good_data_passes(tiny_policy: Path, digits_task: Path, tmp_path: Path) -> None:
    words = ["doctor", str(digits_task / "train.jsonl"), "--evaluation", str(digits_task / "test.jsonl")]
    assert main([*words, "--model", str(tiny_policy), "--output", str(tmp_path / "found")]) == 0
    assert not (tmp_path / "found" / SKIPPED).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["doctor"], "model.path: is required"),
        (["doctor", "--model=m", "--check=x", "data.jsonl"], "reads the manifest alone"),
        (["doctor", "--check=nowhere/x"], "nowhere/x: cannot be read"),
        (["doctor", "--check=/dev/null"], "/dev/null: lists no file"),
    ],
)
def test_bad_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
