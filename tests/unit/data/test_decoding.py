"""Every kind of picture to the RGB that its viewer shows; what is refused is in ``bad_rows``."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from megatron_apo.data.decoding import ImageLimits, decode


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(picture: Image.Image, kind: str, **options: Any) -> np.ndarray:
    found = decode(encoded(picture, kind, **options), "a")
    assert found.mode == "RGB"
    return np.asarray(found)


# What a viewer does with the stored rows for each value of the tag, in numpy's terms (Exif 2.3, section 4.6.4).
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation(kind: str, orientation: int) -> None:
    stored = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = decoded(Image.fromarray(stored), kind, exif=exif, **options)
    expected = UPRIGHT[orientation](stored)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled(kind: str, order: str) -> None:
    values = np.array([[0, 128, 129, 256, 257], [32768, 40000, 65278, 65535, 65000]])
    if kind == "PNG" and order == ">u2":
        pytest.skip("a PNG has one order")
    mode = "I;16B" if order == ">u2" else "I;16"
    picture = Image.frombytes(mode, (5, 2), values.astype(order).tobytes())
    found = decoded(picture, kind)
    assert (found == np.round(values / 257)[..., None]).all()
    if kind == "PNG":
        shown = decode(_with_transparency(encoded(picture, kind), 256), "a")
        assert shown.getpixel((3, 0)) == (255, 255, 255) and shown.getpixel((4, 0)) == (1, 1, 1)


def _with_transparency(png: bytes, value: int) -> bytes:
    from tests.unit.data.bad_rows import _chunk

    at = png.index(b"IDAT") - 4
    return png[:at] + _chunk(b"tRNS", value.to_bytes(2, "big")) + png[at:]


def test_16_bit_colour_and_wide_grey() -> None:
    import struct
    import zlib

    from tests.unit.data.bad_rows import _chunk

    pixels = b"\0" + struct.pack(">6H", 0, 32768, 65535, 257, 65278, 40000)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    found = np.asarray(decode(data, "a")).astype(int)
    assert np.abs(found - np.array([[[0, 128, 255], [1, 254, 156]]])).max() <= 1
    assert (decoded(Image.new("I", (3, 3), 65535), "TIFF") == 255).all()
    assert (decoded(Image.new("F", (3, 3), 0.5), "TIFF") == 128).all()
    assert (decoded(Image.new("F", (3, 3), 1.0), "TIFF") == 255).all()


def test_transparency_is_white_beneath() -> None:
    rgba = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 255, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    expected = [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert decoded(rgba, kind, **options)[0].tolist() == expected
    grey = Image.new("LA", (2, 1), (9, 255))
    grey.putpixel((1, 0), (9, 0))
    assert decoded(grey, "PNG")[0].tolist() == [[9, 9, 9], [255, 255, 255]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decoded(palette, "PNG")[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    for kind in ("PNG", "GIF"):
        assert decoded(palette, kind, transparency=1)[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert decoded(palette, "PNG", transparency=b"\xff\x80")[0].tolist() == [[10, 20, 30], [147, 152, 157]]
    for mode, colour in (("L", 7), ("RGB", (7, 7, 7))):
        picture = Image.new(mode, (2, 1), 0)
        picture.putpixel((1, 0), colour)
        assert decoded(picture, "PNG", transparency=colour)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_one_bit_grey_and_cmyk() -> None:
    bit = Image.new("1", (2, 1), 0)
    bit.putpixel((1, 0), 1)
    for kind in ("PNG", "BMP", "TIFF"):
        assert decoded(bit, kind)[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert (decoded(Image.new("L", (2, 2), 7), "PNG") == 7).all()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red; Adobe's inverted form in the JPEG
    for kind in ("TIFF", "JPEG"):
        assert np.abs(decoded(cmyk, kind, **({"quality": 100} if kind == "JPEG" else {})) - [255, 0, 0]).max() <= 3
    assert b"Adobe" in encoded(cmyk, "JPEG")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame(kind: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert found.shape == (8, 8, 3) and (found == colours[0]).all()


def test_limits_hold_for_the_header_alone() -> None:
    data = encoded(Image.new("L", (40, 2)), "PNG")
    with pytest.raises(ValueError, match="image a: 40 x 2 = 80 pixels, at most 79; shrink it"):
        decode(data, "a", ImageLimits(max_image_pixels=79))
    with pytest.raises(ValueError, match="longer than 10 times its other side; crop it"):
        decode(data, "a", ImageLimits(max_aspect_ratio=10))


def test_changed_bytes_are_a_picture_or_a_reason() -> None:
    """Whatever Pillow runs into comes out as a ValueError that names the picture."""
    draw = random.Random(0)
    noise = Image.effect_noise((40, 30), 90)
    kinds = [("PNG", {}), ("JPEG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {})]
    kinds += [("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]
    kinds += [("PNG", {"exif": _exif()}), ("JPEG", {"exif": _exif(), "progressive": True})]
    outcomes = {"picture": 0, "refused": 0}
    for kind, options in kinds:
        whole = encoded(noise, kind, **options)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 8)):
                # Headers are where a changed byte does most.
                data[draw.randrange(len(data) if draw.random() < 0.5 else min(200, len(data)))] = draw.randrange(256)
            data = data[: draw.randint(1, len(data))] if draw.random() < 0.2 else data
            try:
                decode(bytes(data), "a", ImageLimits(max_image_pixels=4_000_000))
                outcomes["picture"] += 1
            except ValueError as error:
                assert str(error).startswith("image a: ") and ";" in str(error)
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    return exif


def test_the_formats_that_are_read_can_be_read() -> None:
    assert features.check("webp") and features.check("jpg") and features.check("zlib") and features.check("libtiff")
