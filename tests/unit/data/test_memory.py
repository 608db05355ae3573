"""Data larger than memory: what a process holds does not grow with the file."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

BYTES = 20_000  # of text in a row, beside the question
# Rows, and bytes that the process may grow by, a third of the file at most. Parquet has whole groups of rows to unpack.
SIZES = {"rows.jsonl": (4000, 25 * 2**20), "rows.json": (4000, 25 * 2**20), "rows.parquet": (11_000, 70 * 2**20)}

READ = """
import resource, sys
from pathlib import Path
from megatron_apo.data.readers import _imported, read_records

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

for name in ("pyarrow.parquet", "datasets"):
    _imported(name)
start = peak()
rows = sum(1 for record in read_records(Path(sys.argv[1])) if not record.problem)
print(rows, peak() - start)
"""


def write(path: Path, count: int) -> None:
    filler = "x" * BYTES
    rows = ({"images": ["a.png"], "question": f"{n}?", "answer": "4", "note": filler + str(n)} for n in range(count))
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("images", pyarrow.list_(pyarrow.string()))])
        for name in ("question", "answer", "note"):
            schema = schema.append(pyarrow.field(name, pyarrow.string()))
        with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            while batch := list(islice(rows, 500)):
                writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
        return
    with path.open("w") as file:
        opening, between, closing = ("[", ",\n", "]") if path.suffix == ".json" else ("", "\n", "\n")
        file.write(opening)
        for number, row in enumerate(rows):
            file.write((between if number else "") + json.dumps(row))
        file.write(closing)


@pytest.mark.parametrize("name", SIZES)
def test_reading_takes_no_more_than_a_piece(name: str, tmp_path: Path) -> None:
    count, most = SIZES[name]
    write(tmp_path / name, count)
    assert (tmp_path / name).stat().st_size > 3 * most
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / name)], capture_output=True, text=True, timeout=120, check=True
    )
    rows, growth = map(int, done.stdout.split())
    assert rows == count and growth < most
    (tmp_path / name).unlink()


def test_the_scan_keeps_its_rows_on_disk(tmp_path: Path) -> None:
    """Twenty thousand rows of a kilobyte: a third of them at most is in memory."""
    code = """
import resource
from pathlib import Path
from megatron_apo.data.rows import Row
from megatron_apo.data.row_store import RowStore

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

store, start = RowStore(), peak()
for n in range(20_000):
    store.add(Row(f"r{n}", (), "x" * 1000, str(n)), f"line {n}", [])
assert store.get(14_234)[0].answer == "14234"
print(peak() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 6 * 2**20
