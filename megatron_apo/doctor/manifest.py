"""A list of every file's SHA-256, in the format of ``sha256sum``: a flipped bit in a JPEG decodes without an error.

sha256sum --check data.sha256        (in the list's own directory, without this package)
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_MAX_REPORTED = 10
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


class ManifestError(RuntimeError):
    """Files are not what the manifest says."""


def write_manifest(path: Path, digests: Mapping[str, str]) -> None:
    """``digests``: SHA-256 (hexadecimal) by file. Names are written relative to the list's own directory."""
    lines = []
    for file, digest in sorted(digests.items()):
        name = os.path.relpath(os.path.realpath(file), path.resolve().parent)
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n")
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    os.replace(part, path)


def read_manifest(path: Path) -> dict[str, str]:
    """SHA-256 by file, absolute; ValueError for a line that is none of ``sha256sum``'s, or none at all."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); doctor DATA writes one") from error
    digests = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: line {number} is not 'SHA-256  name' as sha256sum writes it; make it anew")
        name = re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], match[3]) if match[1] else match[3]
        digests[os.path.normpath(path.resolve().parent / name)] = match[2]
    if not digests:
        raise ValueError(f"{path}: lists no file; make it anew")
    return digests


def check(path: Path) -> None:
    """Reads every file of the list again, whole, and says so; ManifestError when one changed or is gone."""
    changed, missing = [], []
    digests = read_manifest(path)
    for file, digest in tqdm(digests.items(), desc="comparing", unit="file", delay=2, leave=False, disable=None):
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
            changed.append(file)
            continue
        try:
            with open(file, "rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except FileNotFoundError:
            missing.append(file)
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror or error}); {path} lists it") from error
        else:
            if found != digest:
                changed.append(file)
    if changed or missing:
        raise ManifestError(
            f"{path}: of {len(digests):,} files {len(changed):,} changed and {len(missing):,} are gone; restore them, "
            f"or run doctor again if that was meant:{_listed('changed', changed)}{_listed('gone', missing)}"
        )
    print(f"{len(digests):,} files are as {path} says")


def _listed(what: str, files: Sequence[str]) -> str:
    lines = "".join(f"\n  {what}: {file}" for file in files[:_MAX_REPORTED])
    more = len(files) - _MAX_REPORTED
    return lines + (f"\n  … and {more:,} more {what}" if more > 0 else "")
