"""One graded response as an evaluation keeps it: a line of ``responses.jsonl``, and what every number is made of.

Numbers are computed from these records alone, so that an evaluation that was read back from its file says exactly what
it said when it was drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from megatron_apo.records import FinishReason, Outcome, RolloutGroup
from megatron_apo.rewards.accuracy import extract_answer


@dataclass(frozen=True)
class ImageFile:
    """A picture of a row, by reference; ``sha256`` of the file's bytes, hexadecimal."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Response:
    """``index``: which of the row's responses. ``tokens``: its length, end-of-sequence included.

    ``answer`` is what the grader was given, None where the response has none; ``parts`` and ``total`` its rewards.
    """

    index: int
    text: str
    tokens: int
    finish_reason: FinishReason
    answer: str | None
    outcome: Outcome
    total: float
    parts: dict[str, float]

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"


@dataclass(frozen=True)
class AnsweredRow:
    """One row of the data and the responses to it, at least one."""

    id: str
    question: str
    gold: str
    category: str
    images: tuple[ImageFile, ...]
    responses: tuple[Response, ...]

    @property
    def correct(self) -> int:
        """How many of the responses are correct."""
        return sum(response.correct for response in self.responses)

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.responses)


def answered_row(group: RolloutGroup) -> AnsweredRow:
    """What an evaluation keeps of a scored group; ValueError when it carries no scores."""
    prompt = group.prompt
    if not group.rollouts or len(group.scores) != len(group.rollouts):
        raise ValueError(
            f"row {prompt.id!r}: {len(group.scores)} scores for {len(group.rollouts)} responses; score the groups first"
        )
    responses = tuple(
        Response(
            index=rollout.index,
            text=rollout.text,
            tokens=len(rollout.token_ids),
            finish_reason=rollout.finish_reason,
            answer=extract_answer(rollout.text),
            outcome=score.outcome,
            total=score.total,
            parts=dict(score.parts),
        )
        for rollout, score in zip(group.rollouts, group.scores, strict=True)
    )
    images = tuple(ImageFile(image.path, image.sha256) for image in prompt.images)
    return AnsweredRow(prompt.id, prompt.question, prompt.gold, prompt.category, images, responses)


def response_lines(row: AnsweredRow) -> list[str]:
    """The row's responses as JSON objects, one a line, each with what was asked: a line can be read by itself."""
    asked = {key: value for key, value in asdict(row).items() if key != "responses"}
    return [
        json.dumps({**asked, **asdict(response)}, ensure_ascii=False, allow_nan=False) + "\n"
        for response in row.responses
    ]


def parse_lines(lines: Iterable[str]) -> list[AnsweredRow]:
    """The inverse of ``response_lines``: neighbouring lines of one id are a row.

    Raises ValueError with the line's number (from 1) for one that is no response.
    """
    rows: list[AnsweredRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(json.loads(line))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number}: not a response of an evaluation ({error!r})") from error
        if rows and rows[-1].id == row.id:
            rows[-1] = _joined(rows[-1], row, number)
        else:
            rows.append(row)
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        repeated = next(id for id in ids if ids.count(id) > 1)
        raise ValueError(f"row {repeated!r} stands in two places")
    return rows


def _joined(row: AnsweredRow, more: AnsweredRow, number: int) -> AnsweredRow:
    if (row.question, row.gold, row.category, row.images) != (more.question, more.gold, more.category, more.images):
        raise ValueError(f"line {number}: row {row.id!r} asks something else than in the line before")
    return AnsweredRow(row.id, row.question, row.gold, row.category, row.images, (*row.responses, *more.responses))


def _row(entry: dict[str, Any]) -> AnsweredRow:
    total, parts = float(entry["total"]), {str(name): float(part) for name, part in entry["parts"].items()}
    if not all(math.isfinite(value) for value in (total, *parts.values())):
        raise ValueError("a reward is not a finite number")
    response = Response(
        index=int(entry["index"]),
        text=_text(entry["text"]),
        tokens=int(entry["tokens"]),
        finish_reason=_one_of(get_args(FinishReason), entry["finish_reason"]),
        answer=None if entry["answer"] is None else _text(entry["answer"]),
        outcome=_one_of(get_args(Outcome), entry["outcome"]),
        total=total,
        parts=parts,
    )
    return AnsweredRow(
        id=_text(entry["id"]),
        question=_text(entry["question"]),
        gold=_text(entry["gold"]),
        category=_text(entry["category"]),
        images=tuple(ImageFile(_text(image["path"]), _text(image["sha256"])) for image in entry["images"]),
        responses=(response,),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _one_of(known: Sequence[Any], value: Any) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value
