"""What rows have in common: equal rows, equal questions with other answers, and rows of evaluation data in training.

Kept in a database on disk that vanishes with the process, so that a data set of any size fits. Texts are compared
without case and surplus white space, pictures by their pixels: the same picture in another lossless file is found, one
that was scaled, cut or compressed again is not.
"""

from __future__ import annotations

import hashlib
import sqlite3
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

TRAINING, EVALUATION = "training", "evaluation"


@dataclass(frozen=True)
class Shared:
    """Rows that have something in common: their ids, as many as were asked for, and how many there are."""

    ids: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Leak:
    """An evaluation row that stands in the training data, and the training row it equals; ids."""

    evaluation: str
    training: str


class Fingerprints:
    """Of every good row: who it is, what it asks, of which pictures, and what it wants to hear."""

    def __init__(self) -> None:
        # An empty name: on disk where the system keeps temporary files, removed when it is closed.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE rows (part TEXT, id TEXT, asked BLOB, pictures BLOB, answer BLOB)")
        self._database.execute("CREATE TABLE shown (part TEXT, id TEXT, picture BLOB)")
        self._database.execute("BEGIN")

    def add(self, part: str, id: str, question: str, pictures: Sequence[str], answer: str) -> None:
        """``part``: ``TRAINING`` or ``EVALUATION``; ``pictures``: their pixels' SHA-256 in the order shown."""
        row = (part, id, _digest(_normal(question)), _digest(" ".join(pictures)), _digest(_normal(answer)))
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", row)
        for picture in dict.fromkeys(pictures):
            self._database.execute("INSERT INTO shown VALUES (?, ?, ?)", (part, id, bytes.fromhex(picture)))

    def index(self) -> None:
        """Call it once, after the last row."""
        self._database.execute("CREATE INDEX rows_by_content ON rows (asked, pictures)")
        self._database.execute("CREATE INDEX shown_by_picture ON shown (picture)")

    def duplicates(self, part: str, *, limit: int) -> tuple[int, list[Shared]]:
        """(surplus rows, the largest ``limit`` sets): rows of the same question, pictures and answer."""
        return self._repeated(part, "asked, pictures, answer", "count(*) > 1", "count(*) - 1", limit)

    def contradictions(self, part: str, *, limit: int) -> tuple[int, list[Shared]]:
        """(rows, the largest ``limit`` sets): rows of the same question and pictures whose answers differ."""
        return self._repeated(part, "asked, pictures", "count(DISTINCT answer) > 1", "count(*)", limit)

    def leaked_rows(self, *, limit: int) -> tuple[int, list[Leak]]:
        """(evaluation rows whose question and pictures are those of a training row, ``limit`` of them)."""
        return self._leaks("rows", "asked, pictures", limit)

    def leaked_pictures(self, *, limit: int) -> tuple[int, list[Leak]]:
        """(evaluation rows with a picture that a training row shows too, ``limit`` of them)."""
        return self._leaks("shown", "picture", limit)

    def shared_questions(self) -> tuple[int, int]:
        """(evaluation rows whose question's text stands in training, different texts of them).

        Few texts for many rows are a template; as many texts as rows are leaked questions.
        """
        found = self._database.execute(
            "SELECT count(*), count(DISTINCT asked) FROM rows WHERE part = ? AND asked IN "
            "(SELECT asked FROM rows WHERE part = ?)",
            (EVALUATION, TRAINING),
        ).fetchone()
        return int(found[0]), int(found[1])

    def _repeated(self, part: str, same: str, having: str, counted: str, limit: int) -> tuple[int, list[Shared]]:
        sets = (
            f"SELECT {same}, count(*) AS size, {counted} AS counted FROM rows WHERE part = ? "
            f"GROUP BY {same} HAVING {having}"
        )
        total = self._database.execute(f"SELECT coalesce(sum(counted), 0) FROM ({sets})", (part,)).fetchone()[0]
        columns = same.split(", ")
        match = " AND ".join(f"{column} = ?" for column in columns)
        largest = []
        for *key, size, _ in self._database.execute(f"{sets} ORDER BY size DESC, min(rowid) LIMIT ?", (part, limit)):
            ids = self._database.execute(
                f"SELECT id FROM rows WHERE part = ? AND {match} ORDER BY rowid LIMIT 5", (part, *key)
            )
            largest.append(Shared(tuple(id for (id,) in ids), size))
        return int(total), largest

    def _leaks(self, table: str, same: str, limit: int) -> tuple[int, list[Leak]]:
        # One training row of each content, before the join: where all rows show one picture, pairs would be N x M.
        joined = (
            f"FROM {table} AS evaluation JOIN (SELECT {same}, min(id) AS id FROM {table} WHERE part = ? "
            f"GROUP BY {same}) AS training USING ({same}) WHERE evaluation.part = ?"
        )
        parts = (TRAINING, EVALUATION)
        count = self._database.execute(f"SELECT count(DISTINCT evaluation.id) {joined}", parts).fetchone()[0]
        pairs = self._database.execute(
            f"SELECT evaluation.id, min(training.id) {joined} GROUP BY evaluation.id "
            "ORDER BY min(evaluation.rowid) LIMIT ?",
            (*parts, limit),
        )
        return int(count), [Leak(*pair) for pair in pairs]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]
