"""Good rows on disk, by number, with what was found of their pictures."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict

from megatron_apo.data.examiners import Examined
from megatron_apo.data.images import ExaminedImage, examined_from
from megatron_apo.data.rows import Row, Turn


class RowStore:
    """Good rows by number, and what is known of every image file, in a database that vanishes with the process."""

    def __init__(self) -> None:
        # An empty name: on disk where the system keeps temporary files, removed when it is closed.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, id TEXT UNIQUE, place TEXT, row TEXT)")
        self._database.execute("CREATE TABLE images (path TEXT PRIMARY KEY, found TEXT)")
        self._database.execute("BEGIN")  # never committed: nobody else reads it
        self._count = 0
        self.most_images = 0  # of one row
        self.sha256 = hashlib.sha256()

    def __len__(self) -> int:
        return self._count

    def add(self, row: Row, place: str, images: Sequence[ExaminedImage]) -> None:
        """ValueError when the id is taken."""
        taken = self._database.execute("SELECT place FROM rows WHERE id = ?", (row.id,)).fetchone()
        if taken is not None:
            raise ValueError(f"this id is already taken by {taken[0]}; ids must be unique")
        text = json.dumps({"row": asdict(row), "images": [asdict(image) for image in images]})
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (self._count, row.id, place, text))
        content = {**asdict(row), "images": [image.sha256 for image in images]}
        self.sha256.update(json.dumps(content, sort_keys=True).encode())
        self._count += 1
        self.most_images = max(self.most_images, len(images))

    def get(self, number: int) -> tuple[Row, list[ExaminedImage]]:
        (text,) = self._database.execute("SELECT row FROM rows WHERE number = ?", (number,)).fetchone()
        stored = json.loads(text)
        fields = stored["row"]
        for name in ("images", "choices"):
            fields[name] = tuple(fields[name])
        fields["turns"] = tuple(Turn(turn["role"], tuple(turn["parts"])) for turn in fields["turns"])
        return Row(**fields), [examined_from(image) for image in stored["images"]]

    def knows(self, path: str) -> bool:
        return self._database.execute("SELECT 1 FROM images WHERE path = ?", (path,)).fetchone() is not None

    def examine(self, paths: Sequence[str], examine: Callable[[Sequence[str]], list[Examined]]) -> None:
        for path, found in zip(paths, examine(paths) if paths else [], strict=True):
            text = json.dumps(found if isinstance(found, str) else asdict(found))
            self._database.execute("INSERT INTO images VALUES (?, ?)", (path, text))

    def images(self, paths: Sequence[str]) -> list[ExaminedImage]:
        """ValueError for the first that is bad."""
        images = []
        for path in paths:
            (text,) = self._database.execute("SELECT found FROM images WHERE path = ?", (path,)).fetchone()
            found = json.loads(text)
            if isinstance(found, str):
                raise ValueError(found)
            images.append(examined_from(found))
        return images
