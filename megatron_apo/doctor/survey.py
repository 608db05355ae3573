"""Reads data once, as training reads it, and counts what a person should know before training on it."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from megatron_apo.data.images import ExaminedImage
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.rows import Row
from megatron_apo.data.scan import PromptSet
from megatron_apo.doctor.fingerprints import EVALUATION, TRAINING, Fingerprints, Leak, Shared
from megatron_apo.rewards.accuracy import is_plain_words

SHOWN = 12  # sets of duplicates, leaks, examples of a trait: as many are named
_PLAIN_SHOWN = 4  # gold answers in plain words that are named
SAMPLES = 24  # rows shown with their pictures, evenly over the data

# What a skipped row's reason says -> its kind, in the order of the table.
_OTHER = "key missing or wrong"
_KINDS = (
    ("record of another form than data.format", re.compile(r"^data\.format=")),
    ("answer cannot be graded", re.compile(r"^answer")),
    (_OTHER, re.compile(r"^image .*must be a file name")),
    ("prompt too long", re.compile(r"prompt tokens exceed")),
    ("places and pictures differ", re.compile(r"place\(s\) for images|<\|image_pad\|>")),
    ("picture outside the root", re.compile(r"outside|://|absolute|data:")),
    ("picture missing", re.compile(r"^image .*(does not exist|No such file)|^images?=")),
    (
        "picture too large",
        re.compile(r"pixels, at most|bytes, at most|too many pixels|more memory|times its other side"),
    ),
    ("picture damaged or of another kind", re.compile(r"^image ")),
    ("id repeated", re.compile(r"id is already taken")),
    ("row unreadable", re.compile(r"not valid JSON|UTF-8|a JSON object is expected|longer than")),
)


@dataclass
class Part:
    """Training or evaluation data. Arrays hold a value per good row, or per picture of one."""

    name: str
    prompts: PromptSet
    prompt_tokens: array[int] = field(default_factory=lambda: array("L"))
    image_tokens: array[int] = field(default_factory=lambda: array("L"))
    images: array[int] = field(default_factory=lambda: array("L"))
    megapixels: array[float] = field(default_factory=lambda: array("d"))  # of a different file each
    shrunk: int = 0  # files with more pixels than data.max_pixels, or the processor's own bound
    enlarged: int = 0  # files with fewer than data.min_pixels, or the processor's own bound
    traits: Counter[str] = field(default_factory=Counter)  # files with a trait
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # row ids by trait
    categories: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)  # the first hundred thousand different ones
    files: dict[str, str] = field(default_factory=dict)  # path of a picture -> SHA-256
    samples: list[tuple[Row, list[ExaminedImage]]] = field(default_factory=list)
    plain_words: int = 0  # gold answers that are neither a value nor an option
    plain_examples: list[tuple[str, str]] = field(default_factory=list)  # row id and answer, of different answers
    duplicates: tuple[int, list[Shared]] = (0, [])
    contradictions: tuple[int, list[Shared]] = (0, [])

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.prompts.files)

    def reasons(self) -> Counter[str]:
        """Skipped rows by kind of reason."""
        return Counter(kind_of(skipped.reason) for skipped in self.prompts.skipped)


@dataclass(frozen=True)
class Leakage:
    """Evaluation rows that training has seen; each a count and the first of them."""

    rows: tuple[int, list[Leak]]
    pictures: tuple[int, list[Leak]]
    questions: tuple[int, int]  # rows, different texts


@dataclass(frozen=True)
class Survey:
    """All parts that were read, and what evaluation shares with training where both were."""

    parts: tuple[Part, ...]
    leakage: Leakage | None


def kind_of(reason: str) -> str:
    """The kind of a skipped row's reason."""
    return next((kind for kind, pattern in _KINDS if pattern.search(reason)), _OTHER)


def survey(
    builder: PromptBuilder,
    training: Sequence[str],
    evaluation: Sequence[str],
    read: Callable[[Sequence[str], str], PromptSet],
) -> Survey:
    """``read`` scans the files of a part, named by its second argument, and raises nothing for bad rows."""
    prints = Fingerprints()
    parts = []
    for name, files in ((TRAINING, training), (EVALUATION, evaluation)):
        if files:
            parts.append(_count(Part(name, read(files, name)), builder, prints))
    prints.index()
    for part in parts:
        part.duplicates = prints.duplicates(part.name, limit=SHOWN)
        part.contradictions = prints.contradictions(part.name, limit=SHOWN)
    leakage = None
    if len(parts) == 2:
        leakage = Leakage(
            prints.leaked_rows(limit=SHOWN), prints.leaked_pictures(limit=SHOWN), prints.shared_questions()
        )
    return Survey(tuple(parts), leakage)


def _count(part: Part, builder: PromptBuilder, prints: Fingerprints) -> Part:
    every = max(1, -(-len(part.prompts) // SAMPLES))
    rows: Iterable[tuple[Row, list[ExaminedImage]]] = part.prompts.examined()
    bar = tqdm(
        rows, desc=f"counting {part.name}", total=len(part.prompts), unit="row", delay=2, leave=False, disable=None
    )
    for number, (row, images) in enumerate(bar):
        prompt = builder.build(row, images)
        part.prompt_tokens.append(len(prompt.token_ids))
        part.image_tokens.append(prompt.token_ids.count(builder.image_token_id))
        part.images.append(len(images))
        part.categories[row.category] += 1
        if row.answer in part.answers or len(part.answers) < 100_000:
            part.answers[row.answer] += 1
        if is_plain_words(row.answer, row.question, row.choices):
            part.plain_words += 1
            new = all(row.answer != shown for _, shown in part.plain_examples)
            if new and len(part.plain_examples) < _PLAIN_SHOWN:
                part.plain_examples.append((row.id, row.answer))
        for image in images:
            _count_image(part, builder, row, image)
        prints.add(part.name, row.id, _asked(row), [image.pixels_sha256 for image in images], row.answer)
        if number % every == 0:
            part.samples.append((row, images))
    return part


def _count_image(part: Part, builder: PromptBuilder, row: Row, image: ExaminedImage) -> None:
    if image.path in part.files:
        return
    part.files[image.path] = image.sha256
    pixels = image.width * image.height
    part.megapixels.append(pixels / 1e6)
    part.shrunk += pixels > builder.max_pixels
    part.enlarged += pixels < builder.min_pixels
    for trait in image.traits:
        part.traits[trait] += 1
        if len(part.examples[trait]) < SHOWN:
            part.examples[trait].append(row.id)


def _asked(row: Row) -> str:
    """All that a row asks: its turns where it has several, and its choices."""
    turns = [f"{turn.role}: {part}" for turn in row.turns for part in turn.parts]
    return "\n".join([row.question, *turns, *row.choices])
