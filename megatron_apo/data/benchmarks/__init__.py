"""Published benchmarks, record by record: from the fields they were published with to the fields of our rows.

A benchmark is read from the user's own copy; nothing here opens a file or a picture. ``row_of`` maps one record to

    {"id": …, "images": [path or bytes], "question": …, "answer": …, "category": …}

with ``choices`` (the texts of the options, in their letters' order) where the record offers a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from megatron_apo.data.benchmarks import mmk12, r1v

Record = Mapping[str, Any]

# name -> (record, its place in the file from 0) -> row
FORMATS: dict[str, Callable[[Record, int], dict[str, Any]]] = {
    "r1v_counting": r1v.counting_row,
    "r1v_geoqa": r1v.geoqa_row,
    "mmk12": mmk12.row,
}


def row_of(name: str, record: Record, place: int) -> dict[str, Any]:
    """The row of one record; ValueError for an unknown benchmark and for a record of another form."""
    if name not in FORMATS:
        raise ValueError(f"format={name}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name](record, place)


def rows_of(name: str, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """``row_of`` of each record in order; ValueError names the record by its place, from 1."""
    for place, record in enumerate(records):
        try:
            yield row_of(name, record, place)
        except ValueError as error:
            raise ValueError(f"record {place + 1}: {error}") from error
