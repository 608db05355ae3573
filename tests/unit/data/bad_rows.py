"""Two hundred bad rows, each with a piece of the reason that must be given, and the files that they need."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

GOOD: dict[str, Any] = {"images": ["good.png"], "question": "How many?", "answer": "4"}
_ABSENT = object()


def row(**changes: Any) -> dict[str, Any]:
    """The good row with some keys changed, or, ``_ABSENT``, left out."""
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not _ABSENT}


def asked(message: Any, **changes: Any) -> dict[str, Any]:
    """A row whose question is a chat."""
    return row(**{"question": _ABSENT, "images": _ABSENT, "message": message, **changes})


def _lines() -> list[tuple[bytes, str]]:
    """Lines that are no JSON object."""
    texts = [
        *("{broken", "{'id': 'a'}", '{"id": "a",}', '{id: "a"}', '{"id" "a"}', '{"id": "a"} {"id": "b"}'),
        *('{"id": "a"', '{"id": "a\nb"}'[:9], '{"id": "\\x"}', "// a comment", '{"id": }', "{]", "undefined"),
    ]
    cases = [(text.encode(), "not valid JSON") for text in texts]
    kinds = {"a list": [1], "text": "text", "a whole number": 4, "null": None, "true or false": True, "a number": 1.5}
    cases += [
        (json.dumps(value).encode(), f"a JSON object is expected, this is {kind}") for kind, value in kinds.items()
    ]
    cases += [
        (b'{"id": "\xff\xfe"}', "is not UTF-8 text"),
        (b'{"id": "a", "id": "b"}', "key 'id' is written twice"),
        (json.dumps({**GOOD, "x": {}}).encode().replace(b"{}", b'{"y": 1, "y": 2}'), "key 'y' is written twice"),
        (b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "a number of more than 4,300 digits"),
    ]
    return cases


def _fields() -> list[tuple[dict[str, Any], str]]:
    """Keys of wrong types, missing and mistyped ones."""
    cases: list[tuple[dict[str, Any], str]] = []
    wrong: list[Any] = ["", " \n", 4, 4.5, True, [], {}, ["x"], "a\0b", "a\ud800b"]
    for key in ("question", "answer"):
        cases += [(row(**{key: value}), f"{key} is missing") for value in (_ABSENT, None)]
        cases += [(row(**{key: value}), f"{key}=") for value in wrong]
    told = "must be text that is not empty, or a whole number"
    cases += [(row(id=value), f"id={value!r}: {told}") for value in ("", " ", 1.5, True, [], {})]
    cases += [(row(id=value), "id=") for value in ("a\0", "\ud800")]
    cases += [(row(id="taken"), "this id is already taken by line 1; ids must be unique")]
    for key in ("demonstration", "category"):
        cases += [(row(**{key: value}), f"{key}=") for value in (4, 1.5, True, ["x"], {"x": 1}, "a\0", "\udfff")]
    texts: list[Any] = [
        "A",
        4,
        {"A": "1"},
        ["A"],
        ["A", "A"],
        ["A", ""],
        ["A", 4],
        ["A", None],
        [" ", "B"],
        ["A", "\0"],
    ]
    cases += [(row(choices=value), "choices=") for value in texts]
    unlisted: list[Any] = [_ABSENT, None, [], "good.png", 4, {"path": "good.png"}]
    cases += [(row(images=value), "images=") for value in unlisted]
    nameless: list[Any] = [None, 4, "", {}, {"path": None}, ["good.png"], True, {"bytes": None}]
    cases += [(row(images=[value]), "must be a file name, or a picture as bytes") for value in nameless]
    cases += [(row(image="good.png"), "images and image: only one of them")]
    for typo in ("qestion", "questions", "messages", "awnser", "answers"):
        kept = {key: value for key, value in GOOD.items() if key != ("answer" if typo[0] == "a" else "question")}
        cases.append(({**kept, typo: "x"}, f"unknown key {typo!r}; did you mean"))
    cases += [(row(**{typo: "x"}), f"unknown key {typo!r}") for typo in ("demonstraton", "catgory", "choises")]
    cases += [(row(answer=f"unparsable {n}"), f"answer='unparsable {n}': no number in it") for n in range(3)]
    tokens = ("<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|video_pad|>", "<|endoftext|>")
    cases += [(row(question=f"How {token} many?"), f"its text contains {token}") for token in tokens]
    cases += [(row(question="long " * 3000), "prompt tokens exceed data.max_prompt_tokens=")]
    cases += [(row(images=["good.png"] * 400), "prompt tokens exceed data.max_prompt_tokens=")]
    return cases


def _places() -> list[tuple[dict[str, Any], str]]:
    """Placeholders that do not match the images, and chats that are none."""
    place, shown = "<image>", {"type": "image", "image": "good.png"}
    text = {"type": "text", "text": "How many?"}
    user = [{"role": "user", "content": [shown, text]}]
    return [
        (row(question=f"{place}{place} How many?"), "2 place(s) for images in the text (<image>), 1 image(s)"),
        (row(question=f"{place} How many {place}{place}?"), "3 place(s)"),
        (row(images=["good.png"] * 2, question=f"{place} How many?"), "1 place(s) for images in the text"),
        (row(images=["good.png"] * 3, question=f"{place} or {place}?"), "2 place(s) for images in the text"),
        (row(images=_ABSENT, question=f"{place} How many?"), "1 place(s) for images in the text (<image>), 0 image(s)"),
        (row(question=place), "question: must be text that is not empty"),
        (asked(user, images=["good.png"]), "0 place(s) for images in the text (<image>), 1 image(s) beside it"),
        (asked([{"role": "user", "content": [{"type": "image"}, text]}]), "1 place(s)"),
        (asked([{"role": "user", "content": [shown, {"type": "text", "text": f"{place} How?"}]}]), "1 place(s)"),
        (asked(user, question="How many?"), "message and question: only one of them"),
        (asked("[{broken"), "message: not valid JSON"),
        (asked(json.dumps(user)[:-3]), "message: not valid JSON"),
        (asked("[" * 50_000 + "]" * 50_000), "message: not valid JSON"),
        (asked([]), "message=[]: must be a list of turns"),
        (asked({"role": "user"}), "must be a list of turns"),
        (asked(4), "message=4: must be a list of turns"),
        (asked(" "), "message=' ': must be text"),
        (asked("[]"), "message=[]: must be a list of turns"),
        (asked(["How many?"]), "message: turn 'How many?' must have a role"),
        (asked([{"content": "How many?"}]), "must have a role"),
        (asked([{"role": "tool", "content": "x"}]), "must have a role"),
        (asked([{"role": "user"}]), "message: content=None must be text or a list of parts"),
        (asked([{"role": "user", "content": 4}]), "message: content=4 must be text"),
        (asked([{"role": "user", "content": ["How many?"]}]), "must be of type text, image or image_url"),
        (asked([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, text]}]), "must be of type text"),
        (asked([{"role": "user", "content": [{"type": "text"}]}]), "must be of type text"),
        (asked([{"role": "system", "content": "Be brief."}]), "its last turn must be the user's"),
        (asked([{"role": "assistant", "content": "4"}]), "its last turn must be the user's"),
        (asked([*user, {"role": "system", "content": "x"}]), "its last turn must be the user's"),
        (asked([{"role": "system", "content": [shown]}, *user]), "an image in a turn of the system"),
        (asked([*user, {"role": "assistant", "content": [shown]}, *user]), "an image in a turn of the assistant"),
        (asked([{"role": "user", "content": "How many?"}]), "must be a list of at least one file name"),
        (asked([{"role": "user", "content": "a\0b"}]), "holds a NUL"),
    ]


def _paths(root: Path) -> list[tuple[dict[str, Any], str]]:
    """Images that lead out of the root, or to what is no picture."""
    outside, address = str(root.parent / "outside.png"), "address; nothing is fetched"
    cases = {
        **dict.fromkeys(["../outside.png", "a/../../outside.png", "./../outside.png", outside], "lies outside"),
        **dict.fromkeys(["../task/../outside.png", "//etc/passwd", "/etc/passwd", "../../../../etc/passwd"], "outside"),
        **dict.fromkeys(["link.png", "link_to_link.png", "linked/outside.png", "zero.png", "../task_2/x"], "outside"),
        **dict.fromkeys([f"file://{outside}", "file:///etc/passwd", "file:../outside.png"], "lies outside"),
        **dict.fromkeys(["file:%2e%2e/outside.png", f"FILE://{outside}", f"file://localhost{outside}"], "outside"),
        "file://host/good.png": f"is a file {address}",
        "http://127.0.0.1:9/x.png": f"is a http {address}",
        "https://127.0.0.1/x.png": f"is a https {address}",
        "HTTPS://127.0.0.1/x.png": f"is a https {address}",
        "ftp://127.0.0.1/x.png": f"is a ftp {address}",
        "s3://bucket/x.png": f"is a s3 {address}",
        "data:image/png;base64,iVBORw0KGgo=": f"is a data {address}",
        "data:image/png;base64," + "A" * 200_000: f"is a data {address}",
        "good.png\0.txt": "holds a NUL",
        "file:good.png%00.txt": "holds a NUL",
        "\ud800.png": "half of a surrogate pair",
        "absent.png": "image 'absent.png' does not exist",
        "good.png/x.png": "does not exist",
        "a" * 5000: "does not exist",
        "loop.png": "does not exist",
        "~/x.png": "does not exist",
        ".": "is a directory",
        "images": "is a directory",
        "pipe.png": "not a regular file",
        "socket.png": "not a regular file",
    }
    return [(row(images=[name]), reason) for name, reason in cases.items()]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, pixels: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG of 8-bit grey, its header saying whatever is wanted."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + end


SMALL = {256: 8, 257: 8, 258: 8, 259: 5, 262: 1, 277: 1}  # the tags of 8 x 8 pixels of 8-bit grey, as LZW


def tiff(tags: dict[int, int | tuple[int, int, int]], data: bytes) -> bytes:
    """A TIFF of ``data`` (at byte 8) and tags, each a number or (type, count, value or place)."""
    entries = [(tag, *(value if isinstance(value, tuple) else (4, 1, value))) for tag, value in sorted(tags.items())]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _pictures() -> dict[str, tuple[bytes, str]]:
    """Files that are no picture, no allowed one, or too much of one."""
    noise = Image.effect_noise((200, 200), 90)
    whole = {kind: encoded(noise, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
    cases = {f"half_{kind}": (data[: len(data) // 2], "truncated or damaged") for kind, data in whole.items()}
    cases |= {f"start_{kind}": (data[:7], "format that is read") for kind, data in whole.items() if kind[0] not in "BJ"}
    cases["start_JPEG"] = (whole["JPEG"][:7], "truncated or damaged")
    for kind in ("PPM", "ICO", "TGA", "PCX", "SGI"):
        cases[kind] = (encoded(noise.resize((64, 64)).convert("RGB"), kind), "format")
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 1
    lab = Image.new("LAB", (8, 8))
    return cases | {
        "flipped": (bytes(flipped), "truncated or damaged"),
        "nothing": (b"", "the file is empty"),
        "words": (b"hello, world", "not an image format that is read"),
        "html": (b"<html><body>404</body></html>", "not an image format that is read"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not an image format that is read"),
        "pdf": (b"%PDF-1.4 x", "format"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS is not among the formats that are read"),
        "psd": (b"8BPS" + bytes(40), "PSD is not among the formats that are read (PNG, JPEG"),
        "random": (random.Random(0).randbytes(4096), "format that is read"),
        "huge": (png(60_000, 60_000), "too many pixels"),
        "large": (png(9000, 9000), "pixels, at most"),
        "bomb": (png(2**31 - 1, 2**31 - 1), "too many pixels"),
        "thin": (png(4000, 1, pixels=bytes(4001)), "longer than 200 times"),
        "flat": (png(1, 201, pixels=bytes(402)), "longer than 200 times"),
        "zip_bomb": (
            png(1, 1, pixels=bytes(2), before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))),
            "truncated or damaged",
        ),
        "lab": (encoded(lab, "TIFF"), "convert it to 8-bit"),
        "bright": (encoded(Image.new("F", (8, 8), 200.0), "TIFF"), "only 0 to 1 has a meaning"),
        "deep": (encoded(Image.new("I", (8, 8), 70_000), "TIFF"), "only 16 bits have a meaning"),
        "negative": (encoded(Image.new("I", (8, 8), -1), "TIFF"), "only 16 bits have a meaning"),
        "tile": (
            tiff({**SMALL, 322: 60_000, 323: 60_000, 324: 8, 325: 64}, bytes(64)),
            "tiles of 60000 x 60000 pixels",
        ),
    }


def bad_rows(root: Path) -> list[tuple[dict[str, Any] | bytes, str]]:
    """(a row or a line, what its reason must contain); writes the pictures and the traps beside ``root`` and in it."""
    (root / "images").mkdir(parents=True)
    (root.parent / "task_2").mkdir()
    noise = Image.effect_noise((30, 20), 90)
    for path in (root / "good.png", root.parent / "outside.png", root.parent / "task_2" / "x"):
        noise.save(path, "PNG")
    for name, target in (
        *(("link.png", root.parent / "outside.png"), ("link_to_link.png", root / "link.png"), ("linked", root.parent)),
        *(("loop.png", root / "loop.png"), ("zero.png", Path("/dev/zero"))),
    ):
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    here = os.getcwd()
    os.chdir(root)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    os.chdir(here)
    cases: list[tuple[dict[str, Any] | bytes, str]] = [*_lines(), *_fields(), *_places(), *_paths(root)]
    for name, (data, reason) in _pictures().items():
        (root / "images" / name).write_bytes(data)
        cases.append((row(images=[f"images/{name}"]), reason))
    return cases
