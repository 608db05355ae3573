"""The doctor's page: one HTML file that opens offline. All text of the data is escaped; pictures are small copies."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from megatron_apo.data.images import ExaminedImage
from megatron_apo.data.rows import Row
from megatron_apo.data.thumbnails import thumbnail_uri
from megatron_apo.doctor.fingerprints import Leak, Shared
from megatron_apo.doctor.survey import Part, Survey
from megatron_apo.doctor.words import SPREAD_HEADER, Finding, Spread, facts, findings, spreads
from megatron_apo.observability.report_style import STYLE

_SKIPPED_SHOWN = 200
_BINS = 32
_WIDEST_BAR = 60  # pixels
_SIDE = 168  # pixels of a picture shown
_TEXT_SHOWN = 600
_LABELS = {"bad": "to mend", "look": "to look at", "good": "fine"}
_MORE_STYLE = """
.findings { list-style:none; margin:0; padding:0 } .findings li { padding:9px 0; border-bottom:1px solid var(--line) }
.findings li:last-child { border-bottom:0 } .findings .chip { margin-right:10px }
.chip.bad { background:color-mix(in srgb,var(--bad) 16%,transparent); color:var(--bad); font-weight:600 }
.chip.look { background:color-mix(in srgb,var(--warn) 18%,transparent); color:var(--warn); font-weight:600 }
.chip.good { background:color-mix(in srgb,var(--good) 18%,transparent); color:var(--good); font-weight:600 }
.facts2 td { text-align:left; white-space:normal } .facts2 td:first-child { white-space:pre; color:var(--soft) }
.rows { display:grid; grid-template-columns:repeat(auto-fill,minmax(190px,1fr)); gap:14px; margin-top:12px }
.row { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:10px; font-size:13px;
  overflow-wrap:anywhere } .row img { max-width:100%; border-radius:6px; background:#fff; display:block;
  margin:0 auto 8px; min-height:56px; object-fit:contain; image-rendering:auto } .row img.small {
  image-rendering:pixelated; width:100% } .row .soft { font-size:12px } .left td, .left th { text-align:left;
  white-space:normal; overflow-wrap:anywhere; min-width:6em } .left td:first-child { white-space:nowrap }
"""


def write_page(path: Path, survey: Survey, max_bad_share: float) -> None:
    """Writes the page; what stood there is replaced."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(_page(survey, findings(survey, max_bad_share)), encoding="utf-8")
    os.replace(part, path)


def _page(survey: Survey, found: Sequence[Finding]) -> str:
    names = ", ".join(file.path for part in survey.parts for file in part.prompts.files)
    sections = [_part(part) for part in survey.parts]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Data: {html.escape(names)}</title><style>{STYLE}{_MORE_STYLE}</style><main>"
        f'<h1>What is in the data</h1><p class="soft">{html.escape(names)}</p>'
        f"{_findings(found)}{''.join(sections)}{_leakage(survey)}</main></html>"
    )


def _findings(found: Sequence[Finding]) -> str:
    lines = "".join(
        f'<li><span class="chip {finding.level}">{_LABELS[finding.level]}</span>{html.escape(finding.text)}</li>'
        for finding in found
    )
    return f'<div class="panel"><ul class="findings">{lines}</ul></div>'


def _part(part: Part) -> str:
    told = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(said)}</td></tr>" for name, said in facts(part))
    quantities = spreads(part)
    header = "".join(f"<th>{name}</th>" for name in ("", *SPREAD_HEADER))
    lengths = "".join(
        f"<tr><td>{one.name}</td>{''.join(f'<td>{cell}</td>' for cell in one.cells())}</tr>" for one in quantities
    )
    charts = "".join(_histogram(one) for one in quantities[:2])
    return (
        f"<h2>{part.name.capitalize()} data</h2>"
        f'<div class="panel"><table class="facts2">{told}</table></div>'
        f'<h3>Lengths and sizes</h3><div class="panel"><table><tr>{header}</tr>{lengths}</table></div>'
        f'<div class="charts">{charts}</div>{_skipped(part)}{_repeats(part)}{_traits(part)}'
        f'<h3>Some rows, evenly over the data</h3><div class="rows">{"".join(_row(*one) for one in part.samples)}</div>'
    )


def _histogram(spread: Spread) -> str:
    """Bars over the values, which are whole numbers, the count on top of the highest; one bar where all are equal."""
    if not len(spread.values):
        return ""
    values = np.asarray(spread.values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    bins = int(min(_BINS, high - low + 1))
    counts, edges = np.histogram(values, bins=bins, range=(low, high + 1))
    width, height, top = 480, 190, 24
    step = width / bins
    bar = max(1.0, min(step - 2, _WIDEST_BAR))

    def middle(place: int) -> float:
        return (place + 0.5) * step

    bars = "".join(
        f'<rect class="area c1" x="{middle(place) - bar / 2:.1f}" y="{height - tall:.1f}" width="{bar:.1f}" '
        f'height="{tall:.1f}"><title>{_whole(edges[place], edges[place + 1])}: {count:,}</title></rect>'
        for place, count in enumerate(counts)
        if (tall := count / counts.max() * (height - top)) > 0
    )
    # Where there are many bars, a number in the middle of the outer ones would be cut off.
    outer = bar / 2 if bins >= 8 else 0.0
    ticks = {0: (low, -outer, "start"), bins - 1: (high, outer, "end")}
    if bins > 2:
        ticks[bins // 2] = (math.ceil(edges[bins // 2]), 0.0, "middle")
    marks = "".join(
        f'<text class="tick" x="{middle(place) + shift:.0f}" y="{height + 16}" '
        f'text-anchor="{anchor if outer else "middle"}">{value:,.0f}</text>'
        for place, (value, shift, anchor) in ticks.items()
    )
    peak = (
        f'<text class="tick" x="{middle(int(counts.argmax())):.0f}" y="14" text-anchor="middle">{counts.max():,}</text>'
    )
    return (
        f'<figure class="chart"><figcaption>{spread.name}, rows</figcaption>'
        f'<svg viewBox="0 0 {width} {height + 22}" role="img">{bars}{peak}'
        f'<path class="grid" d="M0 {height}H{width}"/>{marks}</svg></figure>'
    )


def _whole(start: float, end: float) -> str:
    """The whole numbers from ``start`` to below ``end``."""
    first, last = math.ceil(start), math.ceil(end) - 1
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _table(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A heading and a table of texts that are not HTML yet."""
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<h3>{html.escape(title)}</h3><div class="panel"><table class="left"><tr>{heads}</tr>{body}</table></div>'


def _skipped(part: Part) -> str:
    skipped = part.prompts.skipped
    if not skipped:
        return ""
    more = "" if len(skipped) <= _SKIPPED_SHOWN else f" The first {_SKIPPED_SHOWN}; all are in skipped_rows.jsonl."
    lines = ((one.row, one.id, _cut(one.reason)) for one in skipped[:_SKIPPED_SHOWN])
    return _table(f"Skipped rows: {len(skipped):,}.{more}", ("row", "id", "reason"), lines)


def _repeats(part: Part) -> str:
    surplus, sets = part.duplicates
    page = _sets(f"Rows that repeat an earlier one: {surplus:,}", "same question, pictures and answer", sets)
    rows, sets = part.contradictions
    title = f"Rows whose answers contradict one another: {rows:,}"
    return page + _sets(title, "same question and pictures, other answers", sets)


def _sets(title: str, what: str, sets: Sequence[Shared]) -> str:
    if not sets:
        return ""
    lines = ((f"{one.count:,}", ", ".join(one.ids) + (" …" if one.count > len(one.ids) else "")) for one in sets)
    return _table(title, ("rows", what), lines)


def _traits(part: Part) -> str:
    if not part.examples:
        return ""
    lines = ((trait, f"{part.traits[trait]:,}", ", ".join(ids)) for trait, ids in part.examples.items())
    return _table("Pictures that are converted", ("", "files", "rows, the first of them"), lines)


def _leakage(survey: Survey) -> str:
    if survey.leakage is None:
        return ""
    tables = _leaks("Evaluation rows that stand in training", *survey.leakage.rows)
    tables += _leaks("Evaluation rows with a picture of training", *survey.leakage.pictures)
    return f"<h2>Evaluation against training</h2>{tables or '<p>No row and no picture is shared.</p>'}"


def _leaks(title: str, count: int, leaks: Iterable[Leak]) -> str:
    if not count:
        return ""
    return _table(
        f"{title}: {count:,}", ("evaluation", "training"), ((leak.evaluation, leak.training) for leak in leaks)
    )


def _row(row: Row, images: Sequence[ExaminedImage]) -> str:
    pictures = "".join(_picture(image) for image in images[:4])
    more = f'<p class="soft">and {len(images) - 4} more images</p>' if len(images) > 4 else ""
    choices = "".join(f"<br>{html.escape(_cut(choice))}" for choice in row.choices)
    return (
        f'<div class="row">{pictures}{more}<div class="soft">{html.escape(row.id)}</div>'
        f"{html.escape(_cut(row.question))}{choices}<br><b>{html.escape(_cut(row.answer))}</b></div>"
    )


def _picture(image: ExaminedImage) -> str:
    try:
        source, tiny = thumbnail_uri(image.path, sha256=image.sha256, side=_SIDE)
    except ValueError as error:  # it changed while the others were read
        return f'<div class="missing">{html.escape(str(error))}</div>'
    small = ' class="small"' if tiny else ""
    return f'<img{small} src="{source}" alt="{image.width} x {image.height}" title="{image.width} x {image.height}">'


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}…"
