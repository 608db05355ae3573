"""Image files: the only place that opens one.

A picture is read whole, checked against its recorded SHA-256, decoded, turned upright by its EXIF tag and converted
to RGB. Whatever is wrong with it is a ValueError with the file, the problem and the remedy.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may measure: pixels guard memory, the ratio is the processor's own limit."""

    max_file_bytes: int = 64 * 1024 * 1024
    max_image_pixels: int = 64 * 1024 * 1024
    max_aspect_ratio: float = 200.0


DEFAULT_LIMITS = ImageLimits()


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


CACHE = ImageCache(images=256, pixels=64 * 1024 * 1024)  # 192 MB of RGB at most


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes; ValueError when it cannot be read."""
    return hashlib.sha256(_read(Path(path), DEFAULT_LIMITS)).hexdigest()


def load_image(path: str | Path, *, sha256: str | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The picture at ``path``: RGB, upright. Treat it as read-only, it is shared through a cache.

    ``sha256``: hexadecimal digest the file must have; a known digest is served from the cache without reading.
    Raises ValueError for a missing, truncated, damaged, oversize or changed file.
    """
    return load_image_and_digest(path, sha256=sha256, limits=limits)[0]


def load_image_and_digest(
    path: str | Path, *, sha256: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[Image.Image, str]:
    """``load_image`` with the file's SHA-256, from one reading of the file."""
    known = CACHE.get(sha256) if sha256 is not None else None
    if sha256 is not None and known is not None:
        return _check_size(known, path, limits), sha256
    data = _read(Path(path), limits)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ValueError(
            f"image {path}: its SHA-256 is {digest}, recorded was {sha256}; the file changed since the data was read: "
            "restore it, or start a new run"
        )
    known = CACHE.get(digest)
    if known is not None:
        return _check_size(known, path, limits), digest
    image = _decode(data, path, limits)
    CACHE.put(digest, image)
    return image, digest


def _read(path: Path, limits: ImageLimits) -> bytes:
    try:
        size = path.stat().st_size
        if size > limits.max_file_bytes:
            raise ValueError(f"image {path}: {size:,} bytes, at most {limits.max_file_bytes:,} are read; shrink it")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"image {path}: cannot be read ({error.strerror or error}); check the path and data.image_root"
        ) from error


def _decode(data: bytes, path: str | Path, limits: ImageLimits) -> Image.Image:
    if not data:
        raise ValueError(f"image {path}: the file is empty; restore it or remove its row")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            _check_size(opened, path, limits)  # before decoding: the header alone tells the size
            opened.load()
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {path}: too many pixels ({error}); shrink it") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {path}: not an image format that Pillow reads; convert it to PNG or JPEG") from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow reports damaged data with any of these
        raise ValueError(f"image {path}: truncated or damaged ({error}); restore the file or remove its row") from error


def _check_size(image: Image.Image, path: str | Path, limits: ImageLimits) -> Image.Image:
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise ValueError(
            f"image {path}: {width} x {height} = {width * height:,} pixels, at most {limits.max_image_pixels:,}; "
            "shrink it"
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ValueError(
            f"image {path}: {width} x {height} is longer than {limits.max_aspect_ratio:g} times its other side; crop it"
        )
    return image
