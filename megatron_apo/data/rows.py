"""A row: one question about one or more pictures, from any of the shapes that data sets have (docs/data.md).

    {"id": "17", "images": ["17.png"], "question": "What is …?", "answer": "9"}
    {"message": [{"role": "user", "content": [{"type": "image", "image": "17.png"}, …]}], "answer": "9"}

A bad row never gets a default: everything wrong is a ValueError that says what.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "<image>"
KEYS = ("id", "images", "image", "question", "message", "answer", "demonstration", "category", "choices")
_ROLES = ("system", "user", "assistant")
_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class Turn:
    """One turn of a chat; a part is text, or the index of one of the row's images."""

    role: str
    parts: tuple[str | int, ...]


@dataclass(frozen=True)
class Row:
    """One question. ``images`` are absolute paths; ``question`` is the text of the last user turn.

    ``turns``: the chat in order, where it is more than the images followed by the question. ``choices``: the texts to
    choose from, if the row has any.
    """

    id: str
    images: tuple[str, ...]
    question: str
    answer: str
    demonstration: str = ""
    category: str = ""
    choices: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()


def row_from(fields: dict[str, Any], *, default_id: str, image_path: Callable[[Any], str]) -> Row:
    """The row of one record. ``image_path`` gives the file of an image as the record has it: a name, or bytes.

    Raises ValueError for the first thing that is wrong.
    """
    _check_keys(fields)
    chat = _chat(fields)
    demonstration = _optional_text(fields, "demonstration")
    if chat and chat[-1]["role"] == "assistant" and not demonstration:
        demonstration = "".join(part["text"] for part in chat.pop()["content"] if part["type"] == "text")
    if not chat or chat[-1]["role"] != "user":
        raise ValueError("message: its last turn must be the user's; a response follows it")
    references, turns = _placed(chat, _images(fields))
    if not references:
        raise ValueError(f"images={_short(fields.get('images'))}: must be a list of at least one file name")
    question = "".join(part for part in turns[-1].parts if isinstance(part, str)).strip()
    if not question:
        raise ValueError("question: must be text that is not empty")
    # "Images, then the question" is what a row without turns means: equal rows are equal.
    plain = len(turns) == 1 and turns[0].parts == (*range(len(references)), question)
    return Row(
        id=_id(fields, default_id),
        answer=_text(fields, "answer"),
        category=_optional_text(fields, "category"),
        choices=_choices(fields),
        images=tuple(image_path(reference) for reference in references),
        question=question,
        demonstration=demonstration,
        turns=() if plain else turns,
    )


def unused_keys(fields: dict[str, Any]) -> list[str]:
    """The keys of a record that nothing reads."""
    return [key for key in fields if key not in KEYS]


def _check_keys(fields: dict[str, Any]) -> None:
    """A key that nobody reads is a column of no interest here, unless it looks like a mistyped one."""
    missing = [key for key in KEYS if key not in fields]
    for key in unused_keys(fields):
        close = difflib.get_close_matches(key, missing, n=1, cutoff=0.82)
        if close:
            raise ValueError(f"unknown key {key!r}; did you mean {close[0]}?")


def _chat(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns as ``{"role": …, "content": [parts]}``, a part as ``{"type": "text" | "image", …}``."""
    if "message" not in fields:
        return [{"role": "user", "content": _text_parts(_text(fields, "question"))}]
    if "question" in fields:
        raise ValueError("message and question: only one of them can be asked; remove the other")
    message = fields["message"]
    if isinstance(message, str) and message.lstrip().startswith("["):
        try:
            message = json.loads(message)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"message: not valid JSON ({error})") from error
    if isinstance(message, str):
        return [{"role": "user", "content": _text_parts(_text(fields, "message"))}]
    if not isinstance(message, list) or not message:
        raise ValueError(f"message={_short(message)}: must be a list of turns, or one written as a JSON string")
    return [_turn(turn) for turn in message]


def _turn(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
        raise ValueError(f"message: turn {_short(turn)} must have a role ({', '.join(_ROLES)}) and content")
    content = turn.get("content")
    if isinstance(content, str):
        return {"role": turn["role"], "content": _text_parts(_checked(content, "message"))}
    if not isinstance(content, list):
        raise ValueError(f"message: content={_short(content)} must be text or a list of parts")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts += _text_parts(_checked(part["text"], "message"))
        elif kind == "image":
            parts.append({"type": "image", "image": part.get("image")})
        elif kind == "image_url":
            url = part.get("image_url")
            parts.append({"type": "image", "image": url.get("url") if isinstance(url, dict) else url})
        else:
            raise ValueError(f"message: part {_short(part)} must be of type text, image or image_url")
    if turn["role"] != "user" and any(part["type"] == "image" for part in parts):
        raise ValueError(f"message: an image in a turn of the {turn['role']}; only the user shows images")
    return {"role": turn["role"], "content": parts}


def _text_parts(text: str) -> list[dict[str, Any]]:
    """The text in pieces, with a place for an image where it says so."""
    pieces: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        if number:
            pieces.append({"type": "image", "image": None})
        if piece:
            pieces.append({"type": "text", "text": piece})
    return pieces


def _images(fields: dict[str, Any]) -> list[Any]:
    """The images given beside the text, as the record has them."""
    if "images" in fields and "image" in fields:
        raise ValueError("images and image: only one of them can be read; remove the other")
    given = fields.get("images", fields.get("image"))
    if given is None:
        return []
    if "images" in fields and not isinstance(given, list):
        raise ValueError(f"images={_short(given)}: must be a list of file names, or of pictures as bytes")
    return given if isinstance(given, list) else [given]


def _placed(chat: list[dict[str, Any]], beside: Sequence[Any]) -> tuple[list[Any], tuple[Turn, ...]]:
    """(references in the order shown, turns): every place gets its image, and every image its place."""
    parts = [part for turn in chat for part in turn["content"]]
    places = [part for part in parts if part["type"] == "image"]
    free = sum(part["image"] is None for part in places)
    if not places and beside:
        first = next(turn for turn in chat if turn["role"] == "user")
        first["content"][:0] = [{"type": "image", "image": None} for _ in beside]
    elif free != len(beside):
        raise ValueError(f"{free} place(s) for images in the text ({PLACEHOLDER}), {len(beside)} image(s) beside it")
    remaining, references = iter(beside), list[Any]()
    turns = []
    for turn in chat:
        shown: list[str | int] = []
        for part in turn["content"]:
            if part["type"] == "text":
                shown.append(part["text"])
            else:
                shown.append(len(references))
                references.append(next(remaining) if part["image"] is None else part["image"])
        turns.append(Turn(turn["role"], tuple(shown)))
    return references, tuple(turns)


def _id(fields: dict[str, Any], default: str) -> str:
    value = fields.get("id", default)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"id={_short(value)}: must be text that is not empty, or a whole number")
    return _checked(value, "id")


def _choices(fields: dict[str, Any]) -> tuple[str, ...]:
    choices = fields.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError(f"choices={_short(choices)}: must be a list of texts that are not empty")
    if choices and len(set(choices)) < max(2, len(choices)):
        raise ValueError(f"choices={_short(choices)}: must be two or more, all different")
    return tuple(_checked(choice, "choices") for choice in choices)


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        raise ValueError(f"{key} is missing")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}={_short(value)}: must be text that is not empty (write numbers in quotes)")
    return _checked(value, key)


def _optional_text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key}={_short(value)}: must be text")
    return _checked(value, key)


def _checked(text: str, key: str) -> str:
    """``text``, if it is one: half a surrogate pair cannot be written as UTF-8, and a NUL ends it in other programs."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{key}={_short(text)}: holds a NUL or half of a surrogate pair, which is no text")
    return text


def _short(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
