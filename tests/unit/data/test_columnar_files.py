"""Cells of parquet files and saved data sets that are no Python value cost the rows that read them, and no others."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_apo.config import DataConfig
from megatron_apo.data.examiners import examine_here
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.scan import PromptSet, Scan
from tests.unit.data.test_scan import check_gold

ROWS = 20  # more than become Python values at a time


def not_utf8(texts: list[str]) -> Any:
    """A column of these texts, the second spoilt."""
    import pyarrow

    data = [text.encode() for text in texts]
    data[1] = b"\xff" * len(data[1])
    ends = [sum(map(len, data[:number])) for number in range(len(data) + 1)]
    offsets = pyarrow.py_buffer(struct.pack(f"<{len(ends)}i", *ends))
    return pyarrow.StringArray.from_buffers(len(data), offsets, pyarrow.py_buffer(b"".join(data)))


def dates(kind: Any) -> Any:
    import pyarrow

    return pyarrow.array([1, -(2**60), *range(ROWS - 2)], pyarrow.int64()).view(kind)


def columns(root: Path, **others: Any) -> dict[str, Any]:
    Image.new("L", (30, 30)).save(root / "a.png")
    texts = [str(number) for number in range(ROWS)]
    return {"id": texts, "image": ["a.png"] * ROWS, "question": ["How?"] * ROWS, "answer": texts, **others}


def as_parquet(table: Any, root: Path) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, root / "rows.parquet")
    return root / "rows.parquet"


def as_dataset(table: Any, root: Path) -> Path:
    from datasets import Dataset

    Dataset(table).save_to_disk(str(root / "saved"))
    return root / "saved"


def scan(policy: Path, root: Path, path: Path, **options: Any) -> PromptSet:
    builder = PromptBuilder(policy, DataConfig(workers=1))
    options |= {"image_root": str(root), "cache": str(root / "cache")}
    return Scan(builder, examine_here, check_gold, **options).run([str(path)])


@pytest.mark.parametrize("save", [as_parquet, as_dataset])
def test_a_cell_that_is_no_text_is_a_bad_row(
    save: Callable[[Any, Path], Path], tiny_policy: Path, tmp_path: Path
) -> None:
    import pyarrow

    texts = [str(number) for number in range(ROWS)]
    table = pyarrow.table(columns(tmp_path, answer=not_utf8(texts), source=not_utf8(texts)))
    found = scan(tiny_policy, tmp_path, save(table, tmp_path))
    assert [prompt.gold for prompt in found] == ["0", *texts[2:]]
    (skipped,) = found.skipped
    assert (skipped.row, skipped.id) == ("row 2", "1")
    assert skipped.reason.startswith("answer=unreadable, not UTF-8 text (byte 0): must be text")


@pytest.mark.parametrize("save", [as_parquet, as_dataset])
def test_a_column_that_nothing_reads_makes_no_row_bad(
    save: Callable[[Any, Path], Path], tiny_policy: Path, tmp_path: Path
) -> None:
    import pyarrow

    others = {"when": dates(pyarrow.timestamp("ms")), "where": dates(pyarrow.timestamp("us", tz="Mars/Olympus"))}
    found = scan(tiny_policy, tmp_path, save(pyarrow.table(columns(tmp_path, **others)), tmp_path))
    assert len(found) == ROWS and not found.skipped
    assert found.files[0].unused == ("when", "where")


def test_a_published_record_reads_its_own_columns(tiny_policy: Path, tmp_path: Path) -> None:
    import pyarrow

    texts = columns(tmp_path)["id"]
    table = pyarrow.table(columns(tmp_path, subject=["physics"] * ROWS, category=not_utf8(texts)))
    assert not scan(tiny_policy, tmp_path, as_parquet(table, tmp_path), format="mmk12").skipped
    table = pyarrow.table(columns(tmp_path, subject=not_utf8(texts)))
    (skipped,) = scan(tiny_policy, tmp_path, as_parquet(table, tmp_path), format="mmk12").skipped
    assert skipped.row == "row 2" and "subject=unreadable, not UTF-8" in skipped.reason


def test_a_column_twice_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    import pyarrow

    given = columns(tmp_path)
    table = pyarrow.table([*given.values(), given["id"]], names=[*given, "answer"])
    with pytest.raises(ValueError, match=r"rows\.parquet: column 'answer' is written twice; keep one"):
        scan(tiny_policy, tmp_path, as_parquet(table, tmp_path))
