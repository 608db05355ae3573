"""Counting (CLEVR, SuperCLEVR) and geometry (GeoQA) as R1-V publishes them (github.com/Deep-Agent/R1-V, bbbbe3d).

Test questions are JSON lines in that repository, under ``src/eval/prompts``; read here on the real files, their
pictures apart:

- ``superclevr_test200_counting_problems.jsonl``: 200 of {image_path, question, ground_truth (a number)};
- ``geoqa_test_prompts.jsonl``: 754 of {image_path, question, ground_truth (text, often with a unit)}.

``image_path`` starts from the directory that holds SuperCLEVR's ``images`` or Geo170K's unpacked ``Geo170K``, as
``src/eval/test_qwen2vl_counting_superclevr.py`` and ``test_qwen2vl_geoqa.py`` open it, which also name the fields.

Training data are Hugging Face data sets, ``leonardPKU/clevr_cogen_a_train`` and ``leonardPKU/GEOQA_R1V_Train_8K``,
never run on the real files: {image, problem, solution}. ``src/r1-v/src/open_r1/grpo.py`` reads ``problem`` and takes
the gold answer from ``solution``, where it stands in ``<answer> … </answer>``; ``local_scripts/prepare_hf_data.py``
there says that ``image`` is an Image column and that ``original_question`` and ``original_answer`` may stand beside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from megatron_apo.data.benchmarks.fields import answer_of, picture, text, text_or_number, without_placeholder

# Of the test answers: a unit at the end, some of them in Chinese. "cm^{2}", "cm²" and "cm^2^" all occur.
_UNIT = re.compile(r"(?P<unit>平方米|厘米|海里|小时|米|秒|cm|mm|km|m)(?P<power>²|\^\{?[23]\}?\^?)?$")
_UNITS = {"平方米": "m^2", "厘米": "cm", "海里": "nautical miles", "小时": "h", "米": "m", "秒": "s"}


def counting_row(record: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A row of counting; its category is how many objects there are."""
    row = _row(record, place, "counting")
    if not row["answer"].isdecimal():
        raise ValueError(f"answer={row['answer']!r:.80}: a count was expected; r1v_geoqa reads geometry")
    return {**row, "category": f"{int(row['answer']):02d} objects"}


def geoqa_row(record: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A row of geometry, its answer in LaTeX where it has a root or π; the published rows have no categories."""
    row = _row(record, place, "geoqa")
    return {**row, "answer": as_latex(row["answer"]), "category": ""}


def as_latex(answer: str) -> str:
    """A published answer as graders read it: "3√{2}米" is "$3\\sqrt{2}$ m"; others keep their number as it stands.

    The signs √ and π are no LaTeX: left as they are, "3√{2}" would be read as 3 and an answer of 3 be paid.
    """
    unit = _UNIT.search(answer)
    number, told = (answer[: unit.start()], _unit_text(unit)) if unit and unit.start() else (answer, "")
    if "√" in number or "π" in number:
        number = number.replace("√", r"\sqrt").replace("π", r"\pi ").strip()
    if "\\" in number and "$" not in number:
        number = f"${number}$"
    return f"{number} {told}".strip()


def _unit_text(unit: re.Match[str]) -> str:
    power = re.sub(r"[^23]", "", (unit["power"] or "").replace("²", "2"))
    return _UNITS.get(unit["unit"], unit["unit"]) + (f"^{power}" if power else "")


def _row(record: Mapping[str, Any], place: int, task: str) -> dict[str, Any]:
    if "image_path" in record:  # a test question
        path = text(record, "image_path")
        return {
            "id": f"{task}-test-{PurePosixPath(path).stem}#{place}",  # several questions may share a picture
            "images": [path],
            "question": text(record, "question"),
            "answer": text_or_number(record, "ground_truth"),
        }
    return {
        "id": f"{task}-train-{place}",
        "images": [picture(record, "image")],
        "question": without_placeholder(text(record, "problem")),
        "answer": answer_of(text(record, "solution")),
    }
