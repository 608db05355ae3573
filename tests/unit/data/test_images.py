"""Image files, good and bad."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from megatron_apo.data import images
from megatron_apo.data.images import ImageLimits, load_image, sha256_of


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    images.CACHE.clear()
    yield
    images.CACHE.clear()


def save(path: Path, width: int = 30, height: int = 20, **options: object) -> Path:
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.putpixel((0, 0), (0, 0, 255))
    picture.save(path, **options)
    return path


def test_an_image_is_rgb_and_its_digest_is_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of(path) == digest
    picture = load_image(path, sha256=digest)
    assert picture.mode == "RGB" and picture.size == (30, 20)
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").getpixel((1, 1)) == (7, 7, 7)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: the stored top left corner is shown at the top right
    path = save(tmp_path / "turned.png", exif=exif)
    picture = load_image(path)
    assert picture.size == (20, 30)
    assert picture.getpixel((19, 0)) == (0, 0, 255)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: its SHA-256 is .* recorded was 00ff; the file changed"):
        load_image(path, sha256="00ff")


def test_a_known_digest_needs_no_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    digest = sha256_of(path)
    first = load_image(path)
    path.unlink()
    assert load_image(path, sha256=digest) is first
    with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "not an image format"),
        (None, "truncated or damaged"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp"])
def test_bad_content_is_named(content: bytes | None, message: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        whole = Image.effect_noise((200, 200), 90)
        whole.save(path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_image(path)
    assert name in str(error.value) and ";" in str(error.value)


def test_limits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 40, 2)
    with pytest.raises(ValueError, match=r"40 x 2 = 80 pixels, at most 79"):
        load_image(path, limits=ImageLimits(max_image_pixels=79))
    with pytest.raises(ValueError, match=r"longer than 10 times"):
        load_image(path, limits=ImageLimits(max_aspect_ratio=10))
    with pytest.raises(ValueError, match=r"bytes, at most 9 are read"):
        load_image(path, limits=ImageLimits(max_file_bytes=9))
    load_image(path)
    with pytest.raises(ValueError, match="at most 79"):  # the cache does not pass by the limits
        load_image(path, limits=ImageLimits(max_image_pixels=79))


def test_the_cache_forgets_the_oldest(tmp_path: Path) -> None:
    cache = images.ImageCache(images=2, pixels=1000)
    for name, side in (("a", 10), ("b", 10), ("c", 20)):
        cache.put(name, Image.new("RGB", (side, side)))
    assert cache.get("a") is None and cache.get("b") is not None and cache.get("c") is not None
    cache.put("d", Image.new("RGB", (29, 29)))  # 841 pixels: beside it only 159 may stay
    assert cache.get("b") is None and cache.get("c") is None and cache.get("d") is not None
