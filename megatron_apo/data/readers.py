"""Data files row by row, first to last: JSON lines, a JSON list, parquet, Hugging Face ``datasets`` on disk.

A row that cannot be read is a ``Record`` with a problem, a cell of a columnar file that cannot is ``Unreadable``, and a
file that cannot is a ValueError. Only a piece of the file is in memory at a time. Nothing is fetched, decoded or
executed: pictures stay bytes or names.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megatron_apo import wording

MAX_ROW_BYTES = 16 * 1024 * 1024  # of a row in JSON; longer ones are refused, not read
_CHUNK = 1024 * 1024
# How files begin that are often taken for data, and what to do about each.
_NOT_READ = {
    b"\x1f\x8b": "compressed by gzip; decompress it",
    b"BZh": "compressed by bzip2; decompress it",
    b"\xfd7zXZ\x00": "compressed by xz; decompress it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it",
    b"PK\x03\x04": "a zip archive; unpack it",
    codecs.BOM_UTF16_LE: "UTF-16 text; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; save it as UTF-8",
    b"ARROW1": "an Arrow file; give the directory that save_to_disk wrote, or write parquet",
}
_BATCH = 16  # rows of a columnar file that become Python values at a time


@dataclass(frozen=True)
class Record:
    """A row as its file has it. ``number`` counts lines or rows from 1; ``problem`` says why ``fields`` are empty."""

    place: str
    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Unreadable:
    """What a columnar file has in place of a value: a field for whoever reads it to refuse, and no one's otherwise."""

    reason: str

    def __repr__(self) -> str:
        return f"unreadable, {self.reason}"


def read_records(path: Path) -> Iterator[Record]:
    """Every row of a data file, or of a directory that ``datasets`` saved or that holds parquet files.

    ValueError when the file cannot be read, or not to its end.
    """
    kind = _kind(path)
    try:
        if kind == "datasets":
            yield from _dataset_records(path)
        elif kind == "parquet":
            yield from _parquet_records(data_files(path))
        else:
            with path.open("rb") as file:
                yield from _list_records(file, path) if kind == "list" else _line_records(file)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); check data.train/validation/test"
        ) from error


def data_files(path: Path) -> list[Path]:
    """The files that a data set consists of, in order; ValueError when there is none."""
    if not path.is_dir():
        if not path.is_file():
            why = "no regular file: it can be read only once, or never ends; write it to one" if path.exists() else ""
            raise ValueError(f"{path}: cannot be read ({why or 'no such file'}); check data.train/validation/test")
        return [path]
    if (path / "dataset_dict.json").is_file():
        raise ValueError(f"{path}: holds several splits; give one of them, such as {path / 'train'}")
    if (path / "state.json").is_file():
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            names = [str(entry["filename"]) for entry in state["_data_files"]]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{path}/state.json: cannot be read ({error}); save the data set again") from error
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{path}: its state.json names files outside of it; save the data set again")
        return [path / "state.json", path / "dataset_info.json", *(path / name for name in names)]
    parquet = sorted(path.glob("*.parquet"))
    if not parquet:
        raise ValueError(f"{path}: neither a saved data set (state.json) nor parquet files in it; give a data file")
    return parquet


def sha256_of_data(path: Path) -> str:
    """Of a file its SHA-256; of a directory that of the names and SHA-256 of its data files."""
    digests = []
    for file in data_files(path):
        try:
            with file.open("rb") as opened:
                digests.append(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n")
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror or error})") from error
    return digests[0].split()[-1] if not path.is_dir() else hashlib.sha256("".join(digests).encode()).hexdigest()


def _kind(path: Path) -> str:
    if path.is_dir():
        return "parquet" if data_files(path)[0].suffix == ".parquet" else "datasets"
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); check data.train/validation/test"
        ) from error
    if start[:4] == b"PAR1":
        return "parquet"
    other = next((what for begins, what in _NOT_READ.items() if start.startswith(begins)), "")
    if not other and path.suffix in (".csv", ".tsv") and start.lstrip()[:1] not in (b"{", b"["):
        other = "CSV, whose columns hold no lists; write JSON lines or parquet"
    if other:
        raise ValueError(f"{path}: cannot be read (it is {other})")
    return "list" if path.suffix not in (".jsonl", ".ndjson") and start.lstrip()[:1] == b"[" else "lines"


def _record(place: str, number: int, text: bytes) -> Record:
    try:
        return Record(place, number, _parsed(text))
    except ValueError as error:
        return Record(place, number, problem=str(error))


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.pos + 1})") from error
    except RecursionError as error:
        raise ValueError("not valid JSON (nested too deeply)") from error
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError(f"a number of more than {sys.get_int_max_str_digits():,} digits; write it as text") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is expected, this is {wording.kind(fields)}")
    return fields


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is written twice; keep one")
    return fields


def _line_records(file: BinaryIO) -> Iterator[Record]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
            yield Record(f"line {number}", number, problem=_TOO_LONG)
            continue
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield _record(f"line {number}", number, line)


_TOO_LONG = f"longer than {MAX_ROW_BYTES:,} bytes; store pictures as files or in parquet"


def _list_records(file: BinaryIO, path: Path) -> Iterator[Record]:
    for number, text in enumerate(_elements(file, path), start=1):
        if len(text) > MAX_ROW_BYTES:
            yield Record(f"row {number}", number, problem=_TOO_LONG)
        else:
            yield _record(f"row {number}", number, text)


_SIGN = re.compile(rb'["\[\]{},]')
_SIGN_IN_TEXT = re.compile(rb'["\\]')


def _elements(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The texts between the commas of a JSON list, found by brackets and quotes alone; cut off where they are too long.

    So a row that is not JSON costs that row and no other, as long as its brackets and quotes are paired.
    """
    buffer, at, start, depth, in_text = b"", 0, 0, 0, False
    while chunk := file.read(_CHUNK):
        kept = buffer[start : start + MAX_ROW_BYTES + 1]
        at -= len(buffer) - len(kept)
        buffer, start = kept + chunk, 0
        while found := (_SIGN_IN_TEXT if in_text else _SIGN).search(buffer, at):
            at, sign = found.end(), found.group()
            if in_text:
                in_text = sign == b"\\"
                at += in_text  # whatever follows a backslash says nothing
            elif sign == b'"':
                in_text = True
            elif sign in b"[{":
                depth += 1
                start = at if depth == 1 else start
            elif sign in b"]}":
                depth -= 1
                if depth == 0:
                    if buffer[start : at - 1].strip():
                        yield buffer[start : at - 1]
                    if buffer[at:].strip() or file.read(_CHUNK).strip():
                        raise ValueError(f"{path}: text follows the end of its list; look for a bracket too many")
                    return
            elif depth == 1:
                yield buffer[start : at - 1]
                start = at
        at = max(at, len(buffer))
    raise ValueError(f"{path}: its list does not end; the file is cut off, or a bracket or a quote is missing")


def _parquet_records(files: list[Path]) -> Iterator[Record]:
    pyarrow = _imported("pyarrow.parquet")
    number = 0
    for path in files:
        try:
            # Buffered ahead, as is the default, every row group would stay in memory until the end.
            with pyarrow.parquet.ParquetFile(path, buffer_size=_CHUNK, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    for fields in _python_rows(batch, path):
                        number += 1
                        yield Record(f"row {number}", number, _given(fields))
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path}: not a whole parquet file ({error}); restore it") from error


def _dataset_records(path: Path) -> Iterator[Record]:
    files = data_files(path)
    datasets, pyarrow = _imported("datasets"), _imported("pyarrow")
    try:
        # As Arrow: the library's own decoding would open the pictures, wherever their names lead.
        rows = datasets.load_from_disk(str(path)).with_format("arrow")
        number = 0
        for batch in rows.iter(batch_size=_BATCH):
            for fields in _python_rows(batch, path):
                number += 1
                yield Record(f"row {number}", number, _given(fields))
    except (pyarrow.ArrowException, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a whole data set of {len(files)} files ({error}); save it again") from error


def _python_rows(batch: Any, path: Path) -> list[dict[str, Any]]:
    """The rows of an Arrow batch or table; cells that are no Python value are ``Unreadable``.

    ValueError for a column that is there twice: only one of them could be a field.
    """
    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: column {twice!r} is written twice; keep one")
    errors = (ValueError, ArithmeticError, LookupError, _imported("pyarrow").ArrowException)
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except errors:  # of some cell, which Arrow does not name
        return [
            {name: _cell(column[number], errors) for name, column in zip(names, batch.columns, strict=True)}
            for number in range(batch.num_rows)
        ]


def _cell(scalar: Any, errors: tuple[type[Exception], ...]) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 text (byte {error.start})")
    except errors as error:
        return Unreadable(str(error))


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the columns that are empty in this row."""
    return {name: value for name, value in fields.items() if value is not None}


def _imported(name: str) -> Any:
    """The top-level package of ``name``; slow to import, and needed for some formats alone."""
    import importlib

    importlib.import_module(name)
    return importlib.import_module(name.partition(".")[0])
