"""Where images may lie: the paths that lead out are in ``bad_rows``; here, that nothing out there is even opened."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_apo.config import DataConfig
from megatron_apo.data.examiners import examine_here
from megatron_apo.data.image_files import ImageFiles
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.scan import Scan
from tests.unit.data.bad_rows import GOOD, _paths, bad_rows
from tests.unit.data.test_scan import check_gold, write

OPENED: list[str] | None = None
CONNECTED: list[Any] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        OPENED.append(os.fsdecode(arguments[0]))
    elif event.startswith(("socket.connect", "socket.getaddrinfo", "urllib")):
        CONNECTED.append(arguments)


sys.addaudithook(_watch)  # hooks cannot be taken back; this one sleeps outside of its test


def test_nothing_outside_the_root_is_opened(tiny_policy: Path, tmp_path: Path) -> None:
    global OPENED
    root = tmp_path / "task"
    bad_rows(root)
    paths = _paths(root)
    path = write(root / "train.jsonl", [GOOD, *(row for row, _ in paths)])
    scan = Scan(PromptBuilder(tiny_policy, DataConfig()), examine_here, check_gold, cache=str(tmp_path / "cache"))
    OPENED = []
    try:
        found = scan.run([str(path)])
    finally:
        opened, OPENED = OPENED, None
    assert len(found) == 1 and len(found.skipped) == len(paths)
    images = {name for name in opened if not name.startswith((sys.prefix, sys.base_prefix))}
    assert images == {str(path), str(root / "good.png")}
    assert not CONNECTED


def test_what_lies_under_the_root(tmp_path: Path) -> None:
    root = tmp_path / "the root"
    (root / "images").mkdir(parents=True)
    target = root / "images" / "a.png"
    Image.new("L", (8, 8)).save(target)
    (root / "link.png").symlink_to("images/a.png")
    (tmp_path / "door").symlink_to(root)
    files = ImageFiles(tmp_path / "door", tmp_path / "cache")
    inside = ["images/a.png", "./images/../images/a.png", "link.png", str(target), f"{tmp_path}/door/link.png"]
    inside += [f"file://{tmp_path}/the%20root/link.png", "file:images/a.png", "../door/images/a.png"]
    assert {files.path(name) for name in inside} == {str(target)}
    (root / "a:b.png").write_bytes(target.read_bytes())
    assert files.path("a:b.png") == str(root / "a:b.png")  # a colon alone makes no address
    assert ImageFiles("/", tmp_path).path(str(target)) == str(target)


def test_bytes_become_a_file_once(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path, tmp_path / "cache")
    path = Path(files.path(b"picture"))
    assert files.path({"bytes": b"picture", "path": "/etc/passwd"}) == str(path)
    assert path.read_bytes() == b"picture" and path.is_relative_to(tmp_path / "cache")
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat().st_ino
    assert files.path(b"picture") == str(path) and path.stat().st_ino == before
    path.write_bytes(b"pict")  # cut off by a full disk
    assert files.path(b"picture") == str(path) and path.read_bytes() == b"picture"
    path.write_bytes(b"PICTURE")  # another one of the same length
    assert files.path(b"picture") == str(path) and path.read_bytes() == b"picture"
    with pytest.raises(ValueError, match="its bytes are empty"):
        files.path(b"")
