"""Published records, made here in the published form, as rows of ours."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_apo.data.benchmarks import row_of, rows_of
from megatron_apo.data.benchmarks.r1v import as_latex
from megatron_apo.rewards.accuracy import grade

PNG = b"\x89PNG\r\n\x1a\n..."


@pytest.mark.parametrize(
    ("name", "record", "row"),
    [
        (
            "r1v_counting",
            {"image_path": "./images/superCLEVR_new_025007.png", "question": "How many items?", "ground_truth": 9},
            {
                "id": "counting-test-superCLEVR_new_025007#4",
                "images": ["./images/superCLEVR_new_025007.png"],
                "question": "How many items?",
                "answer": "9",
                "category": "09 objects",
            },
        ),
        (
            "r1v_counting",
            {"image": {"bytes": PNG, "path": "a.png"}, "problem": "How many?", "solution": "<answer> 3 </answer>"},
            {
                "id": "counting-train-4",
                "images": [PNG],
                "question": "How many?",
                "answer": "3",
                "category": "03 objects",
            },
        ),
        (
            "r1v_geoqa",
            {"image_path": "./Geo170K/images/test/3.png", "question": "Angle C is ()", "ground_truth": "27\u00b0"},
            {
                "id": "geoqa-test-3#4",
                "images": ["./Geo170K/images/test/3.png"],
                "question": "Angle C is ()",
                "answer": "27°",
                "category": "",
            },
        ),
        (
            "r1v_geoqa",
            {
                "image": {"bytes": None, "path": "7.jpg"},
                "problem": "<image>\nFind x.",
                "solution": "<think>so</think>\n\n<answer>145°</answer>",
                "original_question": "?",
                "original_answer": "?",
            },
            {"id": "geoqa-train-4", "images": ["7.jpg"], "question": "Find x.", "answer": "145°", "category": ""},
        ),
        (
            "mmk12",
            {
                "id": "8f",
                "question": "Which one?\nA. A is heavier\nB. $2$\nC.three\nD. none",
                "answer": "B",
                "subject": "physics",
                "image": {"bytes": PNG, "path": None},
            },
            {
                "id": "8f",
                "images": [PNG],
                "question": "Which one?\nA. A is heavier\nB. $2$\nC.three\nD. none",
                "answer": "B",
                "category": "physics",
                "choices": ["A is heavier", "$2$", "three", "none"],
            },
        ),
        (
            "mmk12",
            {"id": "4d61", "question": "The value is ______.", "answer": "$$6$$", "image_path": "images/4d61.png"},
            {
                "id": "4d61",
                "images": ["images/4d61.png"],
                "question": "The value is ______.",
                "answer": "$$6$$",
                "category": "",
            },
        ),
    ],
)
def test_records_as_rows(name: str, record: dict[str, Any], row: dict[str, Any]) -> None:
    assert row_of(name, record, 4) == row


@pytest.mark.parametrize("name", ["r1v_counting", "r1v_geoqa"])
def test_questions_on_one_picture_have_ids_of_their_own(name: str) -> None:
    records = [{"image_path": "images/a.png", "question": f"{n}?", "ground_truth": n} for n in range(4)]
    assert len({row["id"] for row in rows_of(name, records)}) == 4


@pytest.mark.parametrize(("given", "id"), [(17, "17"), (" 17 ", "17")])
def test_ids_may_be_whole_numbers(given: int | str, id: str) -> None:
    record = {"id": given, "question": "?", "answer": "6", "subject": "math", "image": PNG}
    assert row_of("mmk12", record, 0)["id"] == id


@pytest.mark.parametrize(
    "question",
    [
        "Which?\nA. one\nC. two",
        "Which?\nA. one",
        "Which?\nA. one\nB. two\nChoose well.",
        "Point A. is\nB. here\nA. there",
        "Which? A. one B. two",
        "Which?\nA. one\nB. one",
    ],
)
def test_options_that_are_not_a_line_each_are_no_choices(question: str) -> None:
    record = {"id": "1", "question": question, "answer": "A", "subject": "math", "image": PNG}
    assert "choices" not in row_of("mmk12", record, 0)


def test_a_free_answer_under_listed_statements_is_no_choice() -> None:
    record = {"id": "1", "question": "Which?\nA. one\nB. two", "answer": "both", "subject": "math", "image": PNG}
    assert "choices" not in row_of("mmk12", record, 0)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("clevr", {}, "format=clevr: must be one of r1v_counting, r1v_geoqa, mmk12"),
        ("r1v_counting", {"image": PNG, "problem": "?", "solution": "3"}, "one <answer>…</answer> was expected"),
        (
            "r1v_counting",
            {"image": PNG, "problem": "?", "solution": "<answer>3</answer><answer>4</answer>"},
            "one <answer>",
        ),
        ("r1v_counting", {"image_path": "a.png", "question": "?", "ground_truth": True}, "ground_truth=True"),
        ("r1v_counting", {"image_path": "a.png", "question": "?", "ground_truth": "27°"}, "a count was expected"),
        ("r1v_geoqa", {"image": None, "problem": "?", "solution": "<answer>3</answer>"}, "image=NoneType"),
        ("r1v_geoqa", {"image_path": "a.png", "ground_truth": "3"}, "question=None: text was expected"),
        ("mmk12", {"id": True, "question": "?", "answer": "6", "subject": "math", "image": PNG}, "id=True"),
        ("mmk12", {"id": "1", "question": "?", "answer": "", "subject": "math", "image": PNG}, "answer=''"),
    ],
)
def test_records_of_another_form_are_refused(name: str, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_of(name, record, 0)


def test_the_bad_record_is_named() -> None:
    good = {"image_path": "a.png", "question": "?", "ground_truth": 3}
    with pytest.raises(ValueError, match="record 2: question=None"):
        list(rows_of("r1v_counting", [good, {"image_path": "b.png", "ground_truth": 3}]))


@pytest.mark.parametrize(
    ("published", "latex", "right", "wrong"),
    [
        ("140°", "140°", "140", "14"),
        ("2√{3}", r"$2\sqrt{3}$", r"2\sqrt{3}", "2"),
        ("√{3}", r"$\sqrt{3}$", r"\sqrt{3}", "3"),
        ("3√{2}米", r"$3\sqrt{2}$ m", r"3\sqrt{2}", "3"),
        (r"\frac{4√{3}}{3}m", r"$\frac{4\sqrt{3}}{3}$ m", r"\frac{4}{\sqrt{3}}", r"\frac{4}{3}"),
        (r"\frac{2}{3}√{3}", r"$\frac{2}{3}\sqrt{3}$", r"\frac{2\sqrt{3}}{3}", r"\frac{2}{3}"),
        ("6√{3}-9", r"$6\sqrt{3}-9$", r"6\sqrt{3}-9", "6"),
        ("(√{3}+1)小时", r"$(\sqrt{3}+1)$ h", r"1+\sqrt{3}", "1"),
        ("12πcm^{2}", r"$12\pi$ cm^2", r"12\pi", "12"),
        ("3cm²", "3 cm^2", "3", "2"),
        ("2cm^2^", "2 cm^2", "2", "3"),
        ("6√{3}海里", r"$6\sqrt{3}$ nautical miles", r"6\sqrt{3}", "6"),
        ("40海里", "40 nautical miles", "40 nmi", "40 miles"),
        ("π", r"$\pi$", r"\pi", "3"),
        ("5平方米", "5 m^2", "5", "2"),
        (r"\frac{2}{3}", r"$\frac{2}{3}$", "2/3", "2"),
    ],
)
def test_published_roots_are_read_whole(published: str, latex: str, right: str, wrong: str) -> None:
    record = {"image_path": "a.png", "question": "?", "ground_truth": published}
    assert row_of("r1v_geoqa", record, 0)["answer"] == as_latex(published) == latex
    assert (grade(right, latex), grade(wrong, latex)) == ("correct", "wrong")
