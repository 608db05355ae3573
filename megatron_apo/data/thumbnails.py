"""Small copies of pictures, for pages that people look at."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from megatron_apo.data.images import load_image

SIDE = 320  # pixels of the longer side, at most
TINY = 160  # a picture with no longer side is kept as it is: enlarged by the browser, without blurring


def thumbnail_uri(path: str | Path, *, sha256: str | None = None, side: int = SIDE) -> tuple[str, bool]:
    """A ``data:`` URI of the picture, at most ``side`` pixels long, and whether it is tiny (and PNG, to the pixel).

    Raises ValueError as ``load_image``: for a file that is missing, damaged, or not the recorded one.
    """
    picture = load_image(path, sha256=sha256)
    tiny = max(picture.size) <= TINY
    buffer = io.BytesIO()
    if tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        small = picture.copy()  # the loaded one is shared
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(buffer, "JPEG", quality=82, optimize=True)
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", tiny
