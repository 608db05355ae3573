"""MMK12, school questions in four subjects (MM-Eureka, arXiv 2503.07365).

``FanqingM/MMK12`` on Hugging Face, never run on the real files: its card declares {id, question, answer, subject: all
text, image: an Image column}, 15,616 training and 2,000 test rows. The test rows are multiple choice, 500 in each of
mathematics, physics, chemistry and biology, with the options written in the question, a line each ("A. …"), and the
letter as the answer (so says who evaluates on them: EvolvingLMMs-Lab/lmms-eval, task mmk12); training rows are
answered freely.

The repository of MM-Eureka (github.com/ModalMinds/MM-EUREKA, bccddd7) evaluates on an earlier set of 500 free-form
rows, ``eval/k12/k12.json``: {id, question, answer, image_path}, as ``eval/k12/evaluate_k12.py`` reads it. That one is
read here on the real file, pictures too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_apo.data.benchmarks.fields import picture, text, text_or_number, without_placeholder

_LETTERS = "ABCDEFGH"
_OPTION = re.compile(r"([A-H])\s*[.、．:：)]\s*(\S.*)")  # in a line without white space around it


def row(record: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A row of MMK12, its subject as category; ``place`` is not needed, the records have ids."""
    del place
    question = without_placeholder(text(record, "question"))
    answer = text(record, "answer")
    image = text(record, "image_path") if "image_path" in record else picture(record, "image")
    subject = text(record, "subject") if "subject" in record else ""
    found = options(question)
    known = {"choices": found} if answer in tuple(_LETTERS[: len(found)]) else {}
    return {
        "id": text_or_number(record, "id"),
        "images": [image],
        "question": question,
        "answer": answer,
        "category": subject,
        **known,
    }


def options(question: str) -> list[str]:
    """The options' texts, all different, where the question ends with a line for each letter from A on; else none."""
    lines = [line.strip() for line in question.splitlines() if line.strip()]
    found: list[str] = []
    for line in reversed(lines):
        match = _OPTION.match(line)
        if match is None:
            break
        found.insert(0, match[2])
        if match[1] == "A":
            break
    letters = [match[1] for line in lines[len(lines) - len(found) :] if (match := _OPTION.match(line))]
    listed = len(found) > 1 and len(set(found)) == len(found) and letters == list(_LETTERS[: len(found)])
    return found if listed else []
