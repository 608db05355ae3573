"""Which file a row's image is: a name under the root, or bytes that become a file under their own SHA-256.

Nothing outside the root is opened, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from megatron_apo.data.decoding import DEFAULT_LIMITS

_ADDRESS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://|^(data|file):", re.IGNORECASE)


class CacheError(Exception):
    """A picture cannot be kept: of the machine, not of the row, so no row may be skipped for it."""


class ImageFiles:
    """``root``: every named image must lie under it, after all symbolic links. ``cache``: where bytes become files.

    Any process of a job finds such a file by its path and SHA-256, as it does the others; the same picture in a
    thousand rows is one file.
    """

    def __init__(self, root: str | Path, cache: str | Path) -> None:
        self._root = os.path.realpath(root)
        self._cache = Path(cache)

    def path(self, reference: Any) -> str:
        """Absolute path of an existing file; ValueError for anything that is not an image under the root, or bytes."""
        if isinstance(reference, dict):
            reference = reference.get("path") if reference.get("bytes") is None else reference["bytes"]
        if isinstance(reference, bytes):
            return self._stored(reference)
        if not isinstance(reference, str) or not reference:
            raise ValueError(f"image {_shown(reference)}: must be a file name, or a picture as bytes")
        return self._named(reference)

    def _named(self, name: str) -> str:
        shown = _shown(name)
        if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
            raise ValueError(f"image {shown}: holds a NUL or half of a surrogate pair, which no file name does")
        path = os.path.realpath(os.path.join(self._root, _local(name)))
        if os.path.commonpath([path, self._root]) != self._root:
            raise ValueError(
                f"image {shown} lies outside {self._root}; set data.image_root to a directory that holds it"
            )
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            raise ValueError(f"image {shown} does not exist under {self._root}") from error
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ValueError(f"image {shown} is {what} under {self._root}; give a picture")
        return path

    def _stored(self, data: bytes) -> str:
        if not data:
            raise ValueError("image: its bytes are empty")
        if len(data) > DEFAULT_LIMITS.max_file_bytes:
            raise ValueError(
                f"image: {len(data):,} bytes, at most {DEFAULT_LIMITS.max_file_bytes:,} are read; shrink it"
            )
        digest = hashlib.sha256(data).hexdigest()
        path = self._cache.absolute() / digest[:2] / digest
        try:
            if not _holds(path, data):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, partial = tempfile.mkstemp(dir=path.parent)
                with open(handle, "wb") as file:
                    file.write(data)
                os.chmod(partial, 0o644)  # other ranks may run as other users
                os.replace(partial, path)
        except OSError as error:
            raise CacheError(
                f"data.cache={self._cache}: a picture of the data cannot be kept there ({error}); give a directory "
                "that can be written to, which every rank sees"
            ) from error
        return str(path)


def _holds(path: Path, data: bytes) -> bool:
    """Whether the file is there and has these bytes; one of another size, which may be huge, is not read."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _local(name: str) -> str:
    """``name``, or the path in it where it is a ``file:`` address of this machine."""
    found = _ADDRESS.match(name)
    if found is None:
        return name
    scheme = (found.group(1) or found.group(2)).lower()
    address = urlsplit(name) if scheme == "file" else None
    if address is None or address.netloc not in ("", "localhost"):
        raise ValueError(f"image {_shown(name)} is a {scheme} address; nothing is fetched: give a file")
    path = unquote(address.path)
    if "\0" in path:
        raise ValueError(f"image {_shown(name)}: holds a NUL, which no file name does")
    return path


def _shown(name: Any) -> str:
    text = ascii(name) if isinstance(name, str) and not name.isprintable() else repr(name)
    return text if len(text) <= 100 else f"{text[:100]}…"
