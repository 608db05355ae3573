"""Data larger than memory: what a process holds does not grow with the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, BYTES = 12_000, 20_000  # of text beside the question, 240 MB in all
GROWTH = 60 * 2**20

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


def write(path: Path) -> None:
    filler = "x" * BYTES
    rows = ({"images": ["a.png"], "question": f"{n}?", "answer": "4", "note": filler + str(n)} for n in range(ROWS))
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        batch: list[dict[str, object]] = []
        schema = pyarrow.Table.from_pylist([next(rows)]).schema
        with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for row in rows:
                batch.append(row)
                if len(batch) == 1000:
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
                    batch = []
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
        return
    with path.open("w") as file:
        opening, between, closing = ("[", ",\n", "]") if path.suffix == ".json" else ("", "\n", "\n")
        file.write(opening)
        for number, row in enumerate(rows):
            file.write((between if number else "") + json.dumps(row))
        file.write(closing)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_reading_takes_no_more_than_a_piece(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 3 * GROWTH
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / name)], capture_output=True, text=True, timeout=120, check=True
    )
    rows, growth = map(int, done.stdout.split())
    assert rows == ROWS - (name.endswith("parquet")) and growth < GROWTH
    (tmp_path / name).unlink()


def test_the_scan_keeps_its_rows_on_disk(tmp_path: Path) -> None:
    """Thirty thousand rows of a kilobyte: the store holds a tenth of them at most."""
    code = """
import resource
from pathlib import Path
from megatron_apo.data.rows import Row
from megatron_apo.data.scan import _RowStore

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

store, start = _RowStore(), peak()
for n in range(60_000):
    store.add(Row(f"r{n}", (), "x" * 1000, str(n)), f"line {n}", [])
assert store.get(41_234)[0].answer == "41234"
print(peak() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 15 * 2**20
