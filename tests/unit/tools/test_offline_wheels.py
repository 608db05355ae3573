"""Packages survive being cut, carried and put together; damage on the way is found before anything is installed."""

from __future__ import annotations

import json
import random
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tools.offline_wheels import join, main, pack

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


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"packages": [{"file": "a.whl"}]}'])
def test_a_damaged_manifest_is_named(packed: Path, content: bytes) -> None:
    (packed / "out" / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json: is no list of packages .*; copy it again"):
        join(packed / "out", packed)


def test_output_that_is_not_empty_is_refused(packed: Path) -> None:
    with pytest.raises(ValueError, match="not an empty directory"):
        pack(packed / "packages", packed / "out", 1)


def test_what_cannot_be_is_refused_before_anything_is_downloaded(
    packed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = packed / "list.txt"
    listed.write_text("no-such-package-here\n")
    asked = ["prepare", "--requirements", str(listed)]
    assert main([*asked, "--output", str(packed / "out")]) == 2
    assert main([*asked, "--output", str(packed / "new"), "--part-mib", "0"]) == 2
    said = capfd.readouterr()
    assert "not an empty directory" in said.err and "--part-mib=0" in said.err
    assert "no wheel for the host" not in said.out  # pip was not asked
    assert not (packed / "new").exists()


def wheel(directory: Path) -> Path:
    """The smallest package: one module."""
    path = directory / "carried_package-1.0-py3-none-any.whl"
    info = "carried_package-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("carried_package.py", "ANSWER = 42\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried-package\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


def test_the_script_beside_the_parts_installs_them(tmp_path: Path) -> None:
    """In an interpreter's environment of its own, from the parts alone and without an index."""
    packages = tmp_path / "packages"
    packages.mkdir()
    wheel(packages)
    pack(packages, tmp_path / "out", 1)
    venv.create(tmp_path / "host", with_pip=True)
    python = tmp_path / "host" / "bin" / "python"
    subprocess.run([python, tmp_path / "out" / "install.py"], check=True, capture_output=True, timeout=120)
    found = subprocess.run(
        [python, "-c", "import carried_package; print(carried_package.ANSWER)"], capture_output=True, text=True
    )
    assert found.stdout.strip() == "42"


SETUP = """
from pathlib import Path
import setuptools
import torch
from torch.utils.cpp_extension import BuildExtension, CppExtension

major = int(torch.version.cuda.split(".")[0])
Path({marker!r}).write_text(torch.version.cuda)
setuptools.setup(
    name="carried_source", version="1.0", ext_modules=[CppExtension("carried_source", [Path("code.cpp")])],
    cmdclass={{"build_ext": BuildExtension}}, install_requires=[f"carried_core_cu{{major}}"],
)
"""


def source_package(directory: Path, marker: Path) -> Path:
    """A package without a wheel, whose setup.py asks torch for its CUDA and leaves the answer in ``marker``."""
    top = directory / "carried_source-1.0"
    top.mkdir()
    (top / "setup.py").write_text(SETUP.format(marker=str(marker)))
    (top / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: carried_source\nVersion: 1.0\n")
    path = directory / "carried_source-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(top, top.name)
    return path


def test_source_that_asks_torch_for_its_cuda_is_fetched_where_torch_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine's torch part is such a package; the answer is the host's, its file is carried unchanged."""
    index, marker, requirements = tmp_path / "index", tmp_path / "asked", tmp_path / "list.txt"
    index.mkdir()
    package = source_package(index, marker)
    requirements.write_text("# the host's own torch stays\ncarried_source==1.0  # source alone\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    asked = ["prepare", "--requirements", str(requirements), "--output", str(tmp_path / "out"), "--cuda", "12.8"]
    assert main(asked) == 0
    assert marker.read_text() == "12.8"
    (tmp_path / "joined").mkdir()
    (carried,) = join(tmp_path / "out", tmp_path / "joined")
    assert carried.name == package.name and carried.read_bytes() == package.read_bytes()
