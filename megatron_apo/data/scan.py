"""One pass over the data before anything is trained: which rows are good, and what is wrong with the others.

The good rows go, as they were understood, into a temporary database on disk, and the data file is not read again: a
shuffled order needs no random access to parquet, a file that is replaced during a run changes nothing, and neither
the rows nor their ids have to fit into memory. A prompt is tokenised again when a step takes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from megatron_apo.data.benchmarks import row_of
from megatron_apo.data.examiners import Examined
from megatron_apo.data.image_files import CacheError, ImageFiles
from megatron_apo.data.images import ExaminedImage
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.readers import Record, read_records, sha256_of_data
from megatron_apo.data.row_store import RowStore
from megatron_apo.data.rows import Row, row_from, unused_keys
from megatron_apo.records import Prompt

_BATCH = 64  # rows whose pictures are examined together
CheckGold = Callable[[str, str, tuple[str, ...]], None]
_CACHED_TOKENS = 2_000_000  # of prompts kept in memory, about 40 bytes each


@dataclass(frozen=True)
class SkippedRow:
    """A row that is not used: ``row`` is its place in the file ("line 3"), ``id`` empty where it could not be read."""

    file: str
    row: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.row}{f', row {self.id!r}' if self.id else ''}: {self.reason}"


@dataclass(frozen=True)
class ScannedFile:
    """A data file: its SHA-256 (hexadecimal), its rows, how many are good, and keys that nothing reads."""

    path: str
    sha256: str
    rows: int
    good: int
    unused: tuple[str, ...] = ()


@dataclass
class _Draft:
    """A record on its way: what is left of it once its row is made."""

    place: str
    id: str = ""
    unused: tuple[str, ...] = ()
    row: Row | None = None
    problem: str = ""


@dataclass
class Scan:
    """What is asked of every row.

    ``image_root``: images must lie under it; empty: the directory of the data file. ``cache``: where pictures that are
    bytes become files. ``format``: the published one that the files have (``data.benchmarks``), empty for our own rows;
    ``formats``: by file, that of those which have another. ``check_gold`` is given answer, question and choices, and
    raises ValueError, which names the answer, where nothing can be graded by them. ``examine`` reads and decodes
    pictures. ``demonstrations``: every row needs one. ``limit``: stop after so many good rows; 0: read all.
    """

    builder: PromptBuilder
    examine: Callable[[Sequence[str]], list[Examined]]
    check_gold: CheckGold
    image_root: str = ""
    cache: str = "data_cache"
    format: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    demonstrations: bool = False
    limit: int = 0

    def run(self, files: Sequence[str]) -> PromptSet:
        """Reads the data files; ValueError for one that cannot be read, or not to its end. Bad rows raise nothing."""
        rows = RowStore()
        scanned: list[ScannedFile] = []
        skipped: list[SkippedRow] = []
        for file, name in zip(files, _names(files), strict=True):
            path = Path(file)
            digest = sha256_of_data(path)
            root = self.image_root or (path if path.is_dir() else path.parent)
            before, read, unused = len(rows), 0, dict[str, None]()
            form = self.formats.get(file, self.format)
            drafts = self._drafts(path, form, ImageFiles(root, self.cache), name, several=len(files) > 1)
            for draft in self._finished(drafts, rows):
                read += 1
                unused.update(dict.fromkeys(draft.unused))
                if draft.problem:
                    skipped.append(SkippedRow(file, draft.place, draft.id, draft.problem))
                if self.limit and len(rows) >= self.limit:
                    break
            scanned.append(ScannedFile(file, digest, read, len(rows) - before, tuple(unused)))
        return PromptSet(self.builder, rows, tuple(scanned), tuple(skipped))

    def _drafts(self, path: Path, form: str, images: ImageFiles, name: str, *, several: bool) -> Iterator[_Draft]:
        """Every record of a file as far as it can be judged without its pictures."""
        bar = tqdm(desc=f"reading {path.name}", unit="row", delay=2, leave=False, disable=None)
        with bar:
            for record in read_records(path):
                bar.update()
                draft = _Draft(record.place, _id_of(record.fields))
                try:
                    fields = _fields(record, form)
                    draft.id, draft.unused = _id_of(fields), tuple(unused_keys(fields))
                    draft.row = self._row(fields, record.number, images, name, several)
                except ValueError as error:
                    draft.problem = str(error)
                except CacheError as error:
                    raise ValueError(str(error)) from error
                yield draft

    def _finished(self, drafts: Iterator[_Draft], rows: RowStore) -> Iterator[_Draft]:
        """The drafts in order, their pictures examined, the good ones in ``rows`` when they come out."""
        while batch := list(islice(drafts, _BATCH)):
            paths = dict.fromkeys(path for draft in batch if draft.row is not None for path in draft.row.images)
            rows.examine([path for path in paths if not rows.knows(path)], self.examine)
            for draft in batch:
                if draft.row is not None:
                    try:
                        pictures = rows.images(draft.row.images)
                        self.builder.build(draft.row, pictures)
                        rows.add(draft.row, draft.place, pictures)
                    except ValueError as error:
                        draft.problem = str(error).removeprefix(f"row {draft.row.id!r}: ")
                yield draft

    def _row(self, fields: dict[str, Any], number: int, images: ImageFiles, name: str, several: bool) -> Row:
        row = row_from(fields, default_id=str(number), image_path=images.path)
        if several or "id" not in fields:
            row = replace(row, id=f"{name}/{row.id}")
        if self.demonstrations:
            if not row.demonstration:
                raise ValueError("demonstration is missing; supervised training needs one in every row")
            self.builder.response_ids(row.demonstration)
        self.check_gold(row.answer, row.question, row.choices)
        return row


class PromptSet(Sequence[Prompt]):
    """The prompts of all good rows, in the order of the files; each is made when it is asked for.

    ``rows_sha256`` is over everything that the good rows say, pictures included: equal where the same rows train.
    """

    def __init__(
        self, builder: PromptBuilder, rows: RowStore, files: tuple[ScannedFile, ...], skipped: tuple[SkippedRow, ...]
    ) -> None:
        self.files = files
        self.skipped = skipped
        self.rows_sha256 = rows.sha256.hexdigest()
        self._builder = builder
        self._rows = rows
        self._made: OrderedDict[int, Prompt] = OrderedDict()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        prompt = self._made.pop(index, None)
        if prompt is None:
            prompt = self._builder.build(*self._rows.get(index))
            self._tokens += len(prompt.token_ids)
        self._made[index] = prompt
        while self._tokens > _CACHED_TOKENS and len(self._made) > 1:
            self._tokens -= len(self._made.popitem(last=False)[1].token_ids)
        return prompt

    def examined(self) -> Iterator[tuple[Row, list[ExaminedImage]]]:
        """Every good row as it was understood, and its pictures as they were found."""
        return (self._rows.get(number) for number in range(len(self)))

    @property
    def most_images(self) -> int:
        """Images of the row that has most."""
        return self._rows.most_images

    @property
    def sizes(self) -> tuple[int, ...]:
        """Good rows of each file."""
        return tuple(file.good for file in self.files)


def _names(files: Sequence[str]) -> list[str]:
    """What tells the rows of several files apart: the file's name without its ending, numbered where it repeats."""
    names: list[str] = []
    for file in files:
        stem = Path(file).stem
        names.append(stem if stem not in names else f"{stem}#{len(names) + 1}")
    return names


def _fields(record: Record, form: str) -> dict[str, Any]:
    """What a record says, by the keys of our rows; ValueError when it is none, or of another form than ``form``."""
    if record.problem:
        raise ValueError(record.problem)
    if not form:
        return record.fields
    try:
        return row_of(form, record.fields, record.number - 1)
    except ValueError as error:
        raise ValueError(f"data.format={form}: {error}") from error


def _id_of(fields: dict[str, Any]) -> str:
    name = fields.get("id")
    return str(name)[:200] if isinstance(name, str | int) and not isinstance(name, bool) else ""
