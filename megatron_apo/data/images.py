"""Image files: the only place, with ``decoding``, that opens one.

A picture is read whole, checked against its recorded SHA-256, and decoded to upright RGB. Whatever is wrong with it is
a ValueError with the file, the problem and the remedy. Trainer and engines all get their pixels from ``load_image``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_apo.data.decoding import DEFAULT_LIMITS, ImageLimits, check_size, decode
from megatron_apo.data.traits import traits


@dataclass(frozen=True)
class ExaminedImage:
    """A file that was read and decoded once: its SHA-256 (hexadecimal) and the upright picture's size in pixels.

    ``pixels_sha256`` is of the RGB pixels: equal for one picture in two lossless files. ``traits`` are of its header.
    """

    path: str
    sha256: str
    width: int
    height: int
    pixels_sha256: str
    traits: tuple[str, ...]


class ImageCache:
    """The decoded images used last, by SHA-256; the bound is on their number and on their pixels together."""

    def __init__(self, *, images: int, pixels: int) -> None:
        self._most_images = images
        self._most_pixels = pixels
        self._pixels = 0
        self._images: OrderedDict[str, Image.Image] = OrderedDict()

    def get(self, digest: str) -> Image.Image | None:
        image = self._images.get(digest)
        if image is not None:
            self._images.move_to_end(digest)
        return image

    def put(self, digest: str, image: Image.Image) -> None:
        """Adds an image that is not there yet."""
        self._images[digest] = image
        self._pixels += image.width * image.height
        while len(self._images) > self._most_images or (self._pixels > self._most_pixels and len(self._images) > 1):
            _, oldest = self._images.popitem(last=False)
            self._pixels -= oldest.width * oldest.height

    def clear(self) -> None:
        self._images.clear()
        self._pixels = 0


_STRIP = 256  # rows
CACHE = ImageCache(images=256, pixels=64 * 1024 * 1024)  # 256 MiB at most: Pillow keeps RGB in four bytes


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes; ValueError when it cannot be read."""
    return hashlib.sha256(_read(Path(path), DEFAULT_LIMITS)).hexdigest()


def load_image(
    path: str | Path, *, sha256: str | None = None, limits: ImageLimits = DEFAULT_LIMITS, keep: bool = True
) -> Image.Image:
    """The picture at ``path``: RGB, upright. Treat it as read-only, it is shared through a cache.

    ``sha256``: hexadecimal digest the file must have; a known digest is served from the cache without reading.
    ``keep`` False: it is not put there, and good for its pixels alone (``decode``).
    Raises ValueError for a missing, truncated, damaged, oversize or changed file.
    """
    known = CACHE.get(sha256) if sha256 is not None else None
    if known is None:
        data = _read(Path(path), limits)
        digest = hashlib.sha256(data).hexdigest()
        if sha256 is not None and digest != sha256:
            raise ValueError(
                f"image {path}: its SHA-256 is {digest}, recorded was {sha256}; the file changed since the data was "
                "read: restore it, or start a new run"
            )
        known = CACHE.get(digest)
        if known is None:
            known = decode(data, path, limits, keep=keep)
            if keep:
                CACHE.put(digest, known)
    check_size(known.width, known.height, path, limits)
    return known


def examine_image(path: str | Path, *, limits: ImageLimits = DEFAULT_LIMITS) -> ExaminedImage:
    """Decodes a picture whose digest is not known yet and keeps nothing of it; ValueError as ``load_image``."""
    data = _read(Path(path), limits)
    picture = decode(data, path, limits)
    digest = hashlib.sha256(data).hexdigest()
    return ExaminedImage(str(path), digest, picture.width, picture.height, _sha256_of_pixels(picture), traits(data))


def _sha256_of_pixels(picture: Image.Image) -> str:
    """Of the size and the RGB bytes, a strip at a time: a large picture is not in memory twice."""
    digest = hashlib.sha256(f"{picture.width} {picture.height} ".encode())
    for top in range(0, picture.height, _STRIP):
        digest.update(picture.crop((0, top, picture.width, min(top + _STRIP, picture.height))).tobytes())
    return digest.hexdigest()


def examined_from(fields: dict[str, Any]) -> ExaminedImage:
    """What ``asdict`` and JSON made of one, back again."""
    return ExaminedImage(**{**fields, "traits": tuple(fields["traits"])})


def _read(path: Path, limits: ImageLimits) -> bytes:
    """The bytes of a regular file; a device or a pipe is not even waited for."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"image {path}: not a regular file; give a picture")
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"image {path}: not a regular file; give a picture")
            if found.st_size > limits.max_file_bytes:
                raise ValueError(
                    f"image {path}: {found.st_size:,} bytes, at most {limits.max_file_bytes:,} are read; shrink it"
                )
            return file.read(limits.max_file_bytes)
    except OSError as error:
        raise ValueError(
            f"image {path}: cannot be read ({error.strerror or error}); check the path and data.image_root"
        ) from error
