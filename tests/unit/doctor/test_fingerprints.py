"""What evaluation and training share: the same leaks as by comparing all pairs, without the time that pairs take."""

from __future__ import annotations

import hashlib
import random

from megatron_apo.doctor.fingerprints import EVALUATION, TRAINING, Fingerprints, Leak

Drawn = dict[str, list[tuple[str, str, list[str]]]]  # part -> (id, question, pictures)


def picture(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def indexed(drawn: Drawn) -> Fingerprints:
    prints = Fingerprints()
    for part, rows in drawn.items():
        for id, question, pictures in rows:
            prints.add(part, id, question, pictures, "4")
    prints.index()
    return prints


def by_pairs(drawn: Drawn, *, whole: bool) -> list[Leak]:
    found = []
    for id, question, pictures in drawn[EVALUATION]:
        equal = [
            other
            for other, asked, shown in drawn[TRAINING]
            if ((asked, shown) == (question, pictures) if whole else set(shown) & set(pictures))
        ]
        found += [Leak(id, min(equal))] if equal else []
    return found


def test_leaks_are_those_of_all_pairs() -> None:
    draw = random.Random(5)
    for _ in range(20):
        drawn = {
            part: [
                (f"{part}{n}", draw.choice("ab"), [picture(draw.randrange(12)) for _ in range(draw.choice((1, 1, 2)))])
                for n in draw.sample(range(30), 8)
            ]
            for part in (TRAINING, EVALUATION)
        }
        prints = indexed(drawn)
        rows, shown = by_pairs(drawn, whole=True), by_pairs(drawn, whole=False)
        assert prints.leaked_rows(limit=99) == (len(rows), rows)
        assert prints.leaked_pictures(limit=99) == (len(shown), shown)
        assert prints.leaked_pictures(limit=2) == (len(shown), shown[:2])


def test_one_picture_in_all_rows_costs_no_pairs() -> None:
    rows = 4000
    drawn = {
        part: [(f"{part}{n:04}", "How many?", [picture(0)]) for n in range(rows)] for part in (TRAINING, EVALUATION)
    }
    prints = indexed(drawn)
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return int(steps > rows)  # 1,000 a row; an answer other than 0 ends the query

    prints._database.set_progress_handler(step, 1000)  # instructions of SQLite's machine, not seconds
    first = [Leak(f"{EVALUATION}{n:04}", f"{TRAINING}0000") for n in range(2)]
    assert prints.leaked_pictures(limit=2) == (rows, first)
    assert prints.leaked_rows(limit=2) == (rows, first)
