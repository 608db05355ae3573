"""Packages for a GPU host without a network: downloads them, cuts them into parts, and installs them there.

    python tools/offline_wheels.py prepare --requirements FILE --output DIR [--part-mib 60] [--python 3.12]
    python DIR/install.py            (on the host; every part and every package is checked first)

``prepare`` asks pip for the packages that the list names and for nothing else (``--no-deps``: the host's own torch must
stay), unless ``--with-dependencies``. The directory then holds parts of at most the given size, ``manifest.json`` with
the SHA-256 of each part and package, and ``install.py``, this very file, which puts the packages together again and
installs them with ``pip --no-index``. Packages without a wheel (Transformer Engine's torch part) are built on the host;
to fetch their source, pip runs their ``setup.py``, here with the setuptools, wheel and packaging of this Python and a
stand-in for the host's torch (``stand_in_torch``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_BLOCK = 1 << 20
MANIFEST = "manifest.json"

# What setup.py files ask of torch before anything is compiled; a name that is not here is an error, not a guess.
_STAND_IN = {
    "__init__.py": "from torch import version\n",
    "version.py": "cuda = {cuda!r}\n",
    "utils/__init__.py": "",
    "utils/cpp_extension.py": """\
from setuptools import Extension
from setuptools.command.build_ext import build_ext as BuildExtension


def CppExtension(name, sources, **options):
    return Extension(name, [str(source) for source in sources])


CUDAExtension = CppExtension
""",
}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def split(package: Path, output: Path, part_bytes: int) -> list[dict[str, object]]:
    """Cuts ``package`` into ``output``/<name>.000, … of at most ``part_bytes``; returns their manifest entries."""
    parts: list[dict[str, object]] = []
    with package.open("rb") as file:
        while True:
            part = output / f"{package.name}.{len(parts):03d}"
            left = part_bytes
            with part.open("wb") as target:
                while left and (block := file.read(min(_BLOCK, left))):
                    target.write(block)
                    left -= len(block)
            if left == part_bytes and parts:
                part.unlink()
                return parts
            parts.append({"file": part.name, "bytes": part.stat().st_size, "sha256": sha256(part)})
            if left:
                return parts


def check_target(output: Path, part_mib: int) -> None:
    """ValueError for a size or a directory that cannot be: asked before anything is downloaded."""
    if part_mib < 1:
        raise ValueError(f"--part-mib={part_mib}: must be at least 1")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output={output}: is not an empty directory; name a new one")


def pack(packages: Path, output: Path, part_mib: int) -> Path:
    """Writes parts, manifest and install.py for every file in ``packages``; returns the manifest's path."""
    check_target(output, part_mib)
    found = sorted(path for path in packages.iterdir() if path.name.endswith((".whl", ".tar.gz", ".zip")))
    if not found:
        raise ValueError(f"{packages}: holds no package; pip downloaded nothing")
    output.mkdir(parents=True, exist_ok=True)
    entries = [
        {"file": package.name, "sha256": sha256(package), "parts": split(package, output, part_mib << 20)}
        for package in found
    ]
    shutil.copyfile(Path(__file__), output / "install.py")
    manifest = output / MANIFEST
    manifest.write_text(json.dumps({"version": 1, "packages": entries}, indent=1), encoding="utf-8")
    return manifest


def _plain_name(directory: Path, name: object) -> Path:
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{directory / MANIFEST}: names the file {name!r}, which lies elsewhere; prepare it again")
    return directory / name


def join(directory: Path, output: Path) -> list[Path]:
    """Puts the packages in ``directory`` together in ``output``.

    Raises ValueError for a part that is missing or damaged, before any package stands under its name.
    """
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{directory}: no {MANIFEST} there; give the directory that prepare wrote")
    packages = []
    try:
        entries = [
            (entry["file"], entry["sha256"], [(part["file"], part["sha256"]) for part in entry["parts"]])
            for entry in json.loads(manifest.read_text(encoding="utf-8"))["packages"]
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest}: is no list of packages ({error!r}); copy it again") from error
    for name, package_digest, parts in entries:
        target = _plain_name(output, name)
        unfinished = target.with_name(f"{target.name}.unfinished")
        with unfinished.open("wb") as whole:
            for part, digest in parts:
                path = _plain_name(directory, part)
                if not path.is_file():
                    raise ValueError(f"{path}: is missing; copy it again")
                if sha256(path) != digest:
                    raise ValueError(f"{path}: is damaged (SHA-256 differs from the manifest's); copy it again")
                with path.open("rb") as source:
                    shutil.copyfileobj(source, whole, _BLOCK)
        if sha256(unfinished) != package_digest:
            raise ValueError(f"{target.name}: its parts are whole but in the wrong order; prepare it again")
        unfinished.rename(target)
        packages.append(target)
    return packages


def build_environment() -> dict[str, str]:
    """The environment for building Transformer Engine's torch part against the headers of the host's own wheels."""
    include = []
    for root in map(Path, site.getsitepackages()):
        include += [root / "nvidia" / name / "include" for name in ("cu13", "cudnn", "nccl")]
    known = [str(path) for path in include if path.is_dir()]
    known += [path for path in [os.environ.get("CPLUS_INCLUDE_PATH", "")] if path]
    return {**os.environ, "CPLUS_INCLUDE_PATH": ":".join(known), "NVTE_PYTORCH_FORCE_BUILD": "TRUE"}


def install(directory: Path) -> None:
    """Checks and installs everything in ``directory``: wheels first, what has to be built after them."""
    with tempfile.TemporaryDirectory() as temporary:
        packages = join(directory, Path(temporary))
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
        wheels = [str(path) for path in packages if path.suffix == ".whl"]
        if wheels:
            subprocess.run([*pip, *wheels], check=True)
        environment = build_environment()
        environment.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
        for package in packages:
            if package.suffix != ".whl":
                subprocess.run([*pip, "--no-build-isolation", str(package)], check=True, env=environment)
    print(f"{len(packages)} packages installed; python tools/gpu_check.py says what they can do")


def listed(requirements: Path) -> list[str]:
    """The requirements in a list of one a line, without its comments."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def stand_in_torch(directory: Path, cuda: str) -> dict[str, str]:
    """The environment in which ``import torch`` finds a stand-in in ``directory`` that says it was built for ``cuda``.

    pip makes the metadata of a source package even where it is only to be fetched. Transformer Engine's ``setup.py``
    reads ``torch.version.cuda`` for it, which is None in a torch without CUDA; building in isolation would download
    another torch, gigabytes of it. The fetched package is the same file whatever the stand-in says, and is built on the
    host against the host's own torch.
    """
    for name, content in _STAND_IN.items():
        path = directory / "torch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.format(cuda=cuda) if name == "version.py" else content, encoding="utf-8")
    known = [str(directory), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}


def _download_source(pip: Sequence[str], requirement: str, cuda: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [*pip, "--no-deps", "--no-binary=:all:", "--no-build-isolation", requirement],
            check=True,
            env=stand_in_torch(Path(temporary), cuda),
        )


def download(options: argparse.Namespace, target: Path) -> None:
    """pip download of the list. What has no wheel comes as source and is built on the host."""
    for requirement in listed(Path(options.requirements)):
        pip = [sys.executable, "-m", "pip", "download", "--dest", str(target)]
        binary = [*pip, "--only-binary=:all:", "--python-version", options.python, "--implementation", "cp"]
        binary += [word for platform in options.platform for word in ("--platform", platform)]
        binary += [] if options.with_dependencies else ["--no-deps"]
        if subprocess.run([*binary, requirement]).returncode:
            print(f"{requirement}: no wheel for the host; its source is taken", flush=True)
            _download_source(pip, requirement, options.cuda)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs prepare or install; 0, or 2 with a message for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    prepare = commands.add_parser("prepare", help="download and cut into parts; needs a network")
    prepare.add_argument("--requirements", required=True, metavar="FILE", help="one pinned requirement a line")
    prepare.add_argument("--output", required=True, metavar="DIR")
    prepare.add_argument("--part-mib", type=int, default=60, metavar="N", help="largest part (default: 60 MiB)")
    prepare.add_argument("--python", default="3.12", metavar="X.Y", help="the host's Python (default: 3.12)")
    prepare.add_argument("--cuda", default="13.0", metavar="X.Y", help="the CUDA of the host's torch (default: 13.0)")
    prepare.add_argument("--platform", action="append", metavar="TAG", help="wheel platforms of the host")
    prepare.add_argument("--with-dependencies", action="store_true", help="also what the packages depend on")
    installing = commands.add_parser("install", help="check, put together and install; needs no network")
    installing.add_argument("directory", nargs="?", default=str(Path(__file__).parent), metavar="DIR")
    options = parser.parse_args(arguments or sys.argv[1:] or ["install"])
    try:
        if options.command == "prepare":
            options.platform = options.platform or ["manylinux_2_28_x86_64", "manylinux2014_x86_64"]
            check_target(Path(options.output), options.part_mib)
            with tempfile.TemporaryDirectory() as temporary:
                download(options, Path(temporary))
                print(pack(Path(temporary), Path(options.output), options.part_mib))
        else:
            install(Path(options.directory))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
