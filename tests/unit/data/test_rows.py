"""Rows on disk: what is read, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_apo.data.rows import Row, read_rows


def check_gold(answer: str) -> None:
    if answer == "unparsable":
        raise ValueError("no number in it")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "task" / "images").mkdir(parents=True)
    (tmp_path / "task" / "images" / "1.png").write_bytes(b"not opened here")
    (tmp_path / "outside.png").write_bytes(b"x")
    return tmp_path / "task"


GOOD = {"id": "a", "images": ["images/1.png"], "question": "How many?", "answer": "4"}


def write(root: Path, *rows: object) -> Path:
    path = root / "train.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def test_good_rows(root: Path) -> None:
    second = {
        **GOOD,
        "id": "b",
        "question": "Wie\u2028viel?",
        "demonstration": "<answer>4</answer>",
        "category": "x",
    }
    image = str(root / "images" / "1.png")
    for image_root in ("", root):
        rows = read_rows(write(root, GOOD, "", second), image_root, check_gold)
        assert rows == [
            Row("a", (image,), "How many?", "4"),
            Row("b", (image,), "Wie\u2028viel?", "4", "<answer>4</answer>", "x"),
        ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "line 2: not valid JSON"),
        ("[1]", "line 2: a JSON object is expected, this is a list"),
        ({**GOOD, "id": "b", "images": []}, "line 2, row 'b': images=[]: must be a list of at least one"),
        ({**GOOD, "id": "b", "images": "images/1.png"}, "images='images/1.png': must be a list"),
        ({**GOOD, "id": "b", "images": ["images/2.png"]}, "row 'b': image 'images/2.png' does not exist"),
        ({**GOOD, "id": "b", "images": ["../outside.png"]}, "row 'b': image '../outside.png' lies outside"),
        ({**GOOD, "id": "b", "images": ["images"]}, "image 'images' does not exist"),
        ({k: v for k, v in GOOD.items() if k != "images"}, "row 'a': images=None"),
        ({k: v for k, v in GOOD.items() if k != "id"}, "line 2: id is missing"),
        ({k: v for k, v in {**GOOD, "id": "b"}.items() if k != "answer"}, "row 'b': answer is missing"),
        ({**GOOD, "id": "b", "answer": 4}, "row 'b': answer=4: must be text"),
        ({**GOOD, "id": "b", "answer": " "}, "row 'b': answer=' ': must be text that is not empty"),
        (
            {**GOOD, "id": "b", "answer": "unparsable"},
            "answer='unparsable': the grader cannot parse it (no num",
        ),
        ({**GOOD, "id": "b", "demonstration": 4}, "demonstration=4: must be text"),
        ({**GOOD, "id": "b", "anwser": "4"}, "unknown key 'anwser'"),
        (GOOD, "line 2, row 'a': this id is already taken by line 1"),
    ],
)
def test_a_bad_row_is_named(row: object, message: str, root: Path) -> None:
    with pytest.raises(ValueError) as error:
        read_rows(write(root, GOOD, row), root, check_gold)
    assert message in str(error.value)
    assert "1 bad row(s)" in str(error.value)


def test_a_link_out_of_the_root_is_outside(root: Path) -> None:
    (root / "images" / "link.png").symlink_to(root.parent / "outside.png")
    with pytest.raises(ValueError, match="lies outside"):
        read_rows(write(root, {**GOOD, "images": ["images/link.png"]}), root, check_gold)


def test_ten_bad_rows_are_listed_and_the_rest_counted(root: Path) -> None:
    rows = [{**GOOD, "id": f"r{i}", "answer": "unparsable"} for i in range(12)]
    with pytest.raises(ValueError) as error:
        read_rows(write(root, *rows), root, check_gold)
    text = str(error.value)
    assert "12 bad row(s)" in text and "'r9'" in text and "'r10'" not in text and "and 2 more" in text


def test_files_that_hold_nothing(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl: holds no rows"):
        read_rows(write(root, ""), root, check_gold)
    with pytest.raises(ValueError, match=r"absent\.jsonl: cannot be read"):
        read_rows(root / "absent.jsonl", root, check_gold)
    (root / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_rows(root / "bytes.jsonl", root, check_gold)
