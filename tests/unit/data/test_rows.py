"""Rows from the shapes that data sets have; the bad ones are in ``bad_rows``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megatron_apo.data.rows import Row, Turn, row_from, unused_keys

GOOD = {"id": "a", "images": ["1.png"], "question": "How many?", "answer": "4"}


def read(fields: dict[str, Any]) -> Row:
    return row_from(fields, default_id="17", image_path=lambda reference: f"/root/{reference}")


def test_plain_rows() -> None:
    assert read(GOOD) == Row("a", ("/root/1.png",), "How many?", "4")
    more = {"question": "Wie\u2028viel?", "demonstration": "<answer>4</answer>", "category": "x", "choices": ["3", "4"]}
    assert read({**GOOD, **more}) == Row(
        "a", ("/root/1.png",), "Wie\u2028viel?", "4", "<answer>4</answer>", "x", ("3", "4")
    )
    assert read({**GOOD, "id": 5}).id == "5" and read({**GOOD, "category": None}).category == ""
    del (without := dict(GOOD))["id"]
    assert read(without).id == "17"
    assert read({**without, "source": "x"}).id == "17" and unused_keys({**GOOD, "source": "x"}) == ["source"]


def test_placeholders_say_where_the_images_go() -> None:
    two = {**GOOD, "images": ["1.png", "2.png"]}
    assert read(two).turns == ()  # images, then the question
    assert read({**two, "question": "<image><image>How many?"}) == read(two)
    placed = read({**two, "question": "Is <image> or <image> red?"})
    assert placed.turns == (Turn("user", ("Is ", 0, " or ", 1, " red?")),)
    assert placed.images == ("/root/1.png", "/root/2.png") and placed.question == "Is  or  red?"


@pytest.mark.parametrize("as_text", [False, True])
def test_the_authors_rows(as_text: bool) -> None:
    def message(turns: list[dict[str, Any]]) -> Any:
        return json.dumps(turns) if as_text else turns

    content = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "How many?"}]
    asked = {"message": message([{"role": "user", "content": content}]), "answer": "$42$"}
    assert read(asked) == Row("17", ("/root/1.png",), "How many?", "$42$")
    url = [{"type": "image_url", "image_url": {"url": "1.png"}}, {"type": "text", "text": "How many?"}]
    assert read({**asked, "message": message([{"role": "user", "content": url}])}) == read(asked)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is <image> red?"},
        {"role": "assistant", "content": "No."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "?"}],
        },
    ]
    chat = read({"message": message(turns), "images": ["1.png", "2.png"], "answer": "yes"})
    assert chat.images == ("/root/1.png", "/root/2.png") and chat.question == "And ?"
    assert chat.turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", ("Is ", 0, " red?")),
        Turn("assistant", ("No.",)),
        Turn("user", ("And ", 1, "?")),
    )
    first = read(
        {"message": message([turns[0], {"role": "user", "content": "How?"}]), "image": "1.png", "answer": "so"}
    )
    assert first.turns == (Turn("system", ("Be brief.",)), Turn("user", (0, "How?")))


def test_a_last_turn_of_the_assistant_is_the_demonstration() -> None:
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Four."}]
    fields = {"message": turns, "images": ["1.png"], "answer": "4"}
    assert read(fields) == Row("17", ("/root/1.png",), "How many?", "4", demonstration="Four.")
    with pytest.raises(ValueError, match="its last turn must be the user's"):
        read({**fields, "demonstration": "4"})
