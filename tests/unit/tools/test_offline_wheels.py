"""Packages survive being cut, carried and put together; damage on the way is found before anything is installed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tools.offline_wheels import join, pack

MIB = 1 << 20


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Packages of 0 bytes, one part, an exact multiple of the part, and two and a half parts."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name, size in {"empty.whl": 0, "small.whl": 99, "even.whl": 2 * MIB, "odd.tar.gz": 5 * MIB // 2}.items():
        (packages / name).write_bytes(random.Random(name).randbytes(size))
    pack(packages, tmp_path / "out", 1)
    return tmp_path


def test_every_package_comes_back_byte_for_byte(packed: Path) -> None:
    (packed / "joined").mkdir()
    found = join(packed / "out", packed / "joined")
    assert sorted(path.name for path in found) == ["empty.whl", "even.whl", "odd.tar.gz", "small.whl"]
    for path in found:
        assert path.read_bytes() == (packed / "packages" / path.name).read_bytes()
    sizes = {path.name: path.stat().st_size for path in (packed / "out").glob("*.0*")}
    assert sizes["even.whl.001"] == MIB and sizes["odd.tar.gz.002"] == MIB // 2 and "even.whl.002" not in sizes
    assert (packed / "out" / "install.py").is_file()


def test_a_damaged_or_missing_part_is_named_and_leaves_no_package(packed: Path) -> None:
    part = packed / "out" / "odd.tar.gz.001"
    content = bytearray(part.read_bytes())
    content[7] ^= 1
    part.write_bytes(content)
    for message in ("damaged", "missing"):
        target = packed / message
        target.mkdir()
        with pytest.raises(ValueError, match=rf"odd\.tar\.gz\.001: is {message}"):
            join(packed / "out", target)
        assert not (target / "odd.tar.gz").exists()
        part.unlink(missing_ok=True)


def test_a_manifest_cannot_name_files_elsewhere(packed: Path) -> None:
    manifest = packed / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["packages"][0]["file"] = "../evil.whl"
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lies elsewhere"):
        join(packed / "out", packed)
    assert not (packed.parent / "evil.whl").exists()


def test_output_that_is_not_empty_is_refused(packed: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        pack(packed / "packages", packed / "out", 1)
