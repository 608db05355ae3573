"""Traits that a picture's mode does not tell."""

from __future__ import annotations

import struct
import zlib

import pytest

from megatron_apo.data.traits import traits

SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}  # of a pixel, by PNG's colour type


def png(depth: int, kind: int) -> bytes:
    """4 x 4 pixels, all of them zero."""
    rows = bytes(4 * (1 + 4 * SAMPLES[kind] * depth // 8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, depth, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )


@pytest.mark.parametrize("kind", SAMPLES)
def test_16_bits_in_grey_and_in_colour(kind: int) -> None:
    assert "16-bit" in traits(png(16, kind))
    assert "16-bit" not in traits(png(8, kind))
