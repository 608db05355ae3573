"""From the bytes of a picture to upright 8-bit RGB; what each kind of picture becomes is tabled in docs/data.md.

Pillow meets hostile bytes here. Size and kind are refused by the header, before any pixel is decoded; what a header
does not tell (a directory of tags that blows up, a codec's own buffers) is bounded by the memory limit of the process
that first examines a file (``image_worker``).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import cast

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow raises for damaged bytes: its parsers let through whatever their arithmetic ran into.
DAMAGE = (
    *(OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, RuntimeError, MemoryError, struct.error, zlib.error),
)

_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # modes with an RGB of their own
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of a TIFF

# Notes on odd metadata and on sizes; what matters of either is refused or repaired below.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may measure: pixels guard memory, the ratio is the processor's own limit."""

    max_file_bytes: int = 64 * 1024 * 1024
    max_image_pixels: int = 64 * 1024 * 1024
    max_aspect_ratio: float = 200.0


DEFAULT_LIMITS = ImageLimits()


def decode(data: bytes, name: object, limits: ImageLimits = DEFAULT_LIMITS, *, keep: bool = True) -> Image.Image:
    """The picture in ``data``: RGB, upright, its first frame. ``name`` is for messages.

    ``keep`` False spares a copy for one who only reads the pixels: the picture may still hold all of the file.

    Raises ValueError for a format that is not allowed, damaged data, and a picture beyond the ``limits``.
    """
    if not data:
        raise ValueError(f"image {name}: the file is empty; restore it or remove its row")
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"image {name}: {_other_format(data)}; convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name}: too many pixels ({error}); shrink it") from error
    except DAMAGE as error:
        raise _damaged(name, error) from error
    with opened:
        check_size(*opened.size, name, limits)  # before decoding: the header alone tells the size
        _check_tile(opened, name, limits)
        try:
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
        except DAMAGE as error:
            raise _damaged(name, error) from error
        try:
            return _rgb(opened, keep=keep)
        except MemoryError as error:
            raise _damaged(name, error) from error
        except ValueError as error:
            raise ValueError(f"image {name}: {error}; convert it to 8-bit PNG or JPEG") from error


def check_size(width: int, height: int, name: object, limits: ImageLimits) -> None:
    """ValueError for a picture of more pixels, or longer for its width, than the ``limits``."""
    if width * height > limits.max_image_pixels:
        raise ValueError(
            f"image {name}: {width} x {height} = {width * height:,} pixels, at most {limits.max_image_pixels:,}; "
            "shrink it"
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ValueError(
            f"image {name}: {width} x {height} is longer than {limits.max_aspect_ratio:g} times its other side; crop it"
        )


def _damaged(name: object, error: BaseException) -> ValueError:
    if isinstance(error, MemoryError):
        return ValueError(f"image {name}: more memory is needed than a picture may take; shrink it")
    return ValueError(f"image {name}: truncated or damaged ({error}); restore the file or remove its row")


def _other_format(data: bytes) -> str:
    """What ``data`` is instead, by its first bytes alone: no further parser gets to see it."""
    Image.init()
    start = data[:16]
    for name, (_, accepts) in Image.OPEN.items():
        if name not in FORMATS and accepts is not None and accepts(start) is True:
            return f"{name} is not among the formats that are read ({', '.join(FORMATS)})"
    return f"not an image format that is read ({', '.join(FORMATS)})"


def _check_tile(opened: Image.Image, name: object, limits: ImageLimits) -> None:
    """A TIFF of one pixel may claim a tile of a billion, which its codec would allocate."""
    tags = getattr(opened, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if not isinstance(width, int) or not isinstance(height, int) or width * height > limits.max_image_pixels:
        raise ValueError(f"image {name}: tiles of {width} x {height} pixels; save it again as PNG")


def _rgb(image: Image.Image, *, keep: bool) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        low, high = _extremes(image)
        if not 0 <= low <= high <= 1:  # false for a NaN too
            raise ValueError(f"floating-point values from {low:g} to {high:g}, only 0 to 1 has a meaning here")
        return image.point(lambda value: value * 255 + 0.5).convert("L").convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode not in _COLOURS:
        raise ValueError(f"colours in the form {image.mode}, of which no plain RGB can be made")
    return image.convert("RGB") if keep or image.mode != "RGB" else image


def _extremes(image: Image.Image) -> tuple[float, float]:
    """Of a picture with one channel."""
    return cast(tuple[float, float], image.getextrema())


def _from_16_bits(image: Image.Image) -> Image.Image:
    """8-bit grey: 65535 becomes 255 (Pillow's own conversion would clip all above 255 to white)."""
    transparent = image.info.get("transparency")
    wide = image if image.mode == "I" else image.convert("I")
    low, high = _extremes(wide)
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"integer values from {low:g} to {high:g}, only 16 bits have a meaning here")
    table = [(value + 128) // 257 for value in range(65536)]
    if isinstance(transparent, int) and 0 <= transparent <= 65535:
        table[transparent] = 255  # as all transparency: on white
    return wide.point(table, "L")


def _on_white(image: Image.Image) -> Image.Image:
    """Palette and alpha composed on white, as Qwen's own input preparation does."""
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
