"""Small copies of pictures for pages that people look at."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from megatron_apo.data.images import load_image


def thumbnail_uri(path: str | Path, *, sha256: str, edge: int = 168) -> str:
    """A ``data:`` URI of the picture at most ``edge`` pixels wide and high, as training sees it; never enlarged.

    ValueError as ``load_image``.
    """
    small = load_image(path, sha256=sha256).copy()
    whole = max(small.size) <= edge
    small.thumbnail((edge, edge))
    kind = "png" if whole else "jpeg"
    written = io.BytesIO()
    small.save(written, kind, **({} if whole else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
