"""What a survey says in words and numbers; the terminal and the page show the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_apo.data.traits import TRAITS
from megatron_apo.doctor.survey import Part, Survey
from megatron_apo.wording import counted


@dataclass(frozen=True)
class Finding:
    """``level``: "bad" stops or spoils training, "look" may be meant, "good" is fine."""

    level: str
    text: str


@dataclass(frozen=True)
class Spread:
    """A quantity over rows or pictures."""

    name: str
    values: Sequence[float]
    digits: int = 0

    def cells(self) -> tuple[str, ...]:
        """Least, median, 95 % and greatest, and the mean."""
        if not len(self.values):
            return ("–",) * 5
        values = np.asarray(self.values, dtype=np.float64)
        shown = (*np.quantile(values, (0, 0.5, 0.95, 1)), values.mean())
        digits = (self.digits,) * 4 + (max(1, self.digits),)
        return tuple(f"{value:,.{places}f}" for value, places in zip(shown, digits, strict=True))


_MOST_SHOWN = 40  # characters of a category or an answer
SPREAD_HEADER = ("least", "median", "95 %", "greatest", "mean")


def spreads(part: Part) -> list[Spread]:
    """The quantities of a part, in the order of its table."""
    return [
        Spread("prompt tokens", part.prompt_tokens),
        Spread("of them image tokens", part.image_tokens),
        Spread("images of a row", part.images),
        Spread("megapixels of an image", part.megapixels, digits=3),
    ]


def facts(part: Part) -> list[tuple[str, str]]:
    """Counts of a part, with what becomes of such rows or pictures."""
    good = len(part.prompts)
    lines = [
        ("rows", f"{part.rows:,} in {counted(len(part.prompts.files), 'file', 'files')}; {good:,} good"),
        ("skipped", f"{len(part.prompts.skipped):,}"),
        *((f"  {kind}", f"{count:,}") for kind, count in part.reasons().most_common()),
        ("images", f"{counted(len(part.files), 'file', 'files')}, shown {counted(sum(part.images), 'time', 'times')}"),
        *((f"  {trait}", f"{count:,} ({TRAITS[trait]})") for trait, count in part.traits.most_common()),
    ]
    if part.shrunk:
        lines.append(("  larger than data.max_pixels", f"{part.shrunk:,} (scaled down)"))
    if part.enlarged:
        lines.append(("  smaller than data.min_pixels", f"{part.enlarged:,} (enlarged)"))
    named = {name: count for name, count in part.categories.items() if name}
    if named:
        shown = sorted(named.items(), key=lambda item: -item[1])[:12]
        more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
        lines.append(("categories", ", ".join(f"{_short(name)} {count:,}" for name, count in shown) + more))
    if part.answers:
        answer, count = part.answers.most_common(1)[0]
        lines.append(
            (
                "answers",
                f"{len(part.answers):,} different; {_short(answer)!r} is the answer of {count / good:.1%} of the rows",
            )
        )
    return lines


def findings(survey: Survey, max_bad_share: float) -> list[Finding]:
    """What to do something about, or to look at; one "good" line where there is nothing."""
    found: list[Finding] = []
    for part in survey.parts:
        found += _of_part(part, max_bad_share)
    leakage = survey.leakage
    if leakage is not None:
        if leakage.rows[0]:
            rows = counted(leakage.rows[0], "evaluation row stands", "evaluation rows stand")
            found.append(Finding("bad", f"leakage: {rows} in the training data"))
        if leakage.pictures[0] > leakage.rows[0]:
            more = leakage.pictures[0] - leakage.rows[0]
            rows = counted(more, "further evaluation row shows", "further evaluation rows show")
            found.append(Finding("look", f"{rows} a picture that training shows"))
        asking, texts = leakage.questions
        if asking:
            rows = counted(asking, "evaluation row asks", "evaluation rows ask")
            different = counted(texts, "text", "different texts")
            level = "look" if texts > 0.5 * asking else "good"
            found.append(Finding(level, f"{rows} in words that training uses too ({different})"))
    if not any(finding.level != "good" for finding in found):
        found.insert(0, Finding("good", "nothing wrong was found"))
    return found


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _of_part(part: Part, max_bad_share: float) -> list[Finding]:
    found = []
    bad = len(part.prompts.skipped)
    share = f"{part.name}: {bad:,} of {counted(part.rows, 'row', 'rows')} {'is' if bad == 1 else 'are'} bad"
    if not len(part.prompts):
        first = f" (the first: {part.prompts.skipped[0]})" if bad else ""
        found.append(Finding("bad", f"{part.name}: no row is good; training refuses to start{first}"))
    elif bad > max_bad_share * part.rows:
        limit = f"more than data.max_bad_share={max_bad_share:g}: training refuses to start"
        found.append(Finding("bad", f"{share}, {limit}"))
    elif bad:
        found.append(Finding("look", f"{share} and will be skipped"))
    surplus, _ = part.duplicates
    if surplus:
        found.append(Finding("look", f"{part.name}: {counted(surplus, 'row repeats', 'rows repeat')} an earlier one"))
    contradicting, _ = part.contradictions
    if contradicting:
        asking = counted(contradicting, "row asks", "rows ask")
        told = f"{part.name}: {asking} the same of the same picture and want other answers"
        found.append(Finding("bad", told))
    if part.plain_words:
        answers = counted(part.plain_words, "gold answer is", "gold answers are")
        some = ", ".join(f"{_short(answer)!r} of row {row}" for row, answer in part.plain_examples)
        told = f"{part.name}: {answers} compared as plain words, so that no other wording is paid: {some}"
        found.append(Finding("look", told + (" …" if part.plain_words > len(part.plain_examples) else "")))
    for file in part.prompts.files:
        if file.unused:
            found.append(Finding("look", f"{file.path}: nothing reads the keys {', '.join(sorted(file.unused))}"))
    return found
