"""What a picture's header tells that a person may want to know: turned, 16 bits deep, animated and so on."""

from __future__ import annotations

import io

from PIL import Image, ImageFile

from megatron_apo.data.decoding import DAMAGE, FORMATS

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
# name of the trait -> what becomes of such a picture
TRAITS = {
    "EXIF rotation": "turned upright",
    "16-bit": "scaled to 8 bits",
    "CMYK": "converted to RGB",
    "palette": "converted to RGB",
    "transparency": "composed on white",
    "grey": "converted to RGB",
    "animated": "the first frame is taken",
    "floating point": "0 to 1 scaled to 8 bits",
}


def traits(data: bytes) -> tuple[str, ...]:
    """Those of ``TRAITS`` that the picture in ``data`` has; ``decode`` has read it without an error."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        mode, raw = opened.mode, _raw_mode(opened)
        found = {
            "EXIF rotation": opened.getexif().get(_ORIENTATION, 1) != 1,
            "16-bit": mode.startswith("I") or ";16" in raw,
            "CMYK": mode == "CMYK",
            "palette": mode in ("P", "PA"),
            "transparency": opened.has_transparency_data,
            "grey": mode in ("1", "L", "LA"),
            "animated": _animated(opened),
            "floating point": mode == "F",
        }
    return tuple(name for name, there in found.items() if there)


def _raw_mode(opened: Image.Image) -> str:
    """How the file holds its samples ("RGB;16B"), which the mode does not tell: in colour that is always 8-bit."""
    tiles = opened.tile if isinstance(opened, ImageFile.ImageFile) else []
    given = tiles[0].args if tiles else ""
    raw = given[0] if isinstance(given, tuple) and given else given
    return raw if isinstance(raw, str) else ""


def _animated(opened: Image.Image) -> bool:
    try:
        return bool(getattr(opened, "is_animated", False))
    except DAMAGE:  # in a frame that nothing reads
        return False
