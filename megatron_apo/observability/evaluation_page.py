"""``report.html`` of an evaluation's directory: the numbers, then every row with picture, responses and verdicts."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apo.evaluation.directory import PAGE, read_responses, read_results, read_settings
from megatron_apo.evaluation.responses import AnsweredRow, Response
from megatron_apo.evaluation.scoring import Evaluation, Interval
from megatron_apo.evaluation.tables import model_name
from megatron_apo.observability.report_charts import interval_bar, nice_ticks
from megatron_apo.observability.response_cards import (
    MOST_CARDS,
    OUTCOMES,
    Filter,
    card,
    filters,
    response_html,
    write_page,
)
from megatron_apo.wording import counted

_BINS = 28
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 200, 44, 26


def write_evaluation_page(directory: str | Path, *, output: str | Path | None = None) -> Path:
    """Writes ``report.html`` of an evaluation that ``evaluate --output`` made, and returns its path.

    Raises ValueError for a directory without one, or whose files cannot be understood.
    """
    directory = Path(directory)
    settings, result, rows = read_settings(directory), read_results(directory), read_responses(directory)
    model = model_name(settings["model"]["path"])
    body = [
        f"<h1>{html.escape(model)}</h1>",
        f'<p class="soft">Evaluation on {html.escape(data_name(settings))}'
        f" · {counted(result.rows, 'row', 'rows')} · {counted(result.responses, 'response', 'responses')}</p>",
        facts(settings),
        _tiles(result),
        _accuracies(result),
        _lengths(rows),
        "<h2>Responses</h2>",
        _shown(rows),
        _filters(rows),
        *(_card(row) for row in telling_rows(rows)),
    ]
    return write_page(Path(output) if output is not None else directory / PAGE, f"{model} · evaluation", body)


def facts(settings: Mapping[str, Any]) -> str:
    """How the responses were drawn, in a line of labels."""
    sampling, samples = settings["sampling"], settings["sampling"]["group_size"]
    greedy = sampling["temperature"] == 0
    drawn = "greedy" if greedy else f"{samples} a row at temperature {sampling['temperature']:g}"
    told = {
        "engine": settings["engine"],
        "precision": settings["dtype"],
        "responses": drawn,
        "at most": f"{sampling['max_tokens']} tokens",
        "seed": sampling["seed"],
        "model": settings["model"]["sha256"][:12],
        "rows": settings["data"]["prompts_sha256"][:12],
    }
    items = "".join(f"<li><span>{key}</span> <b>{html.escape(str(value))}</b></li>" for key, value in told.items())
    return f'<ul class="facts">{items}</ul>'


def data_name(settings: Mapping[str, Any]) -> str:
    """The data file with its directory: that of a task, where every task has a ``test.jsonl``."""
    return "/".join(Path(settings["data"]["path"]).parts[-2:])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def telling_rows(rows: Sequence[AnsweredRow]) -> list[AnsweredRow]:
    """The rows a page shows, in their order: all, or of very many first those that are not wholly correct."""
    if len(rows) <= MOST_CARDS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: (rows[place].accuracy == 1, place))
    return [rows[place] for place in sorted(order[:MOST_CARDS])]


def categories_filter(rows: Sequence[AnsweredRow]) -> list[Filter]:
    """A choice of categories, none where the rows have none; its tags are ``category_tag``'s."""
    names = sorted({row.category for row in rows if row.category})
    return [Filter("all categories", {category_tag(name): name for name in names})] if names else []


def category_tag(category: str) -> str:
    return f"category:{category}"


def shown_note(shown: int, rows: int, which: str) -> str:
    """What a page leaves out, empty where it shows all."""
    if shown == rows:
        return ""
    return f'<p class="soft">{shown:,} of {rows:,} rows are shown, {which} first; responses.jsonl holds all.</p>'


def _shown(rows: Sequence[AnsweredRow]) -> str:
    return shown_note(min(len(rows), MOST_CARDS), len(rows), "those with a response that is not correct")


def _filters(rows: Sequence[AnsweredRow]) -> str:
    outcomes = Filter("all verdicts", {outcome: f"with {name}" for outcome, name in OUTCOMES.items()})
    forms = Filter("all forms", {"format": "not in the format", "length": "cut off at the limit"})
    return filters([outcomes, forms, *categories_filter(rows)])


def _card(row: AnsweredRow) -> str:
    tags = dict.fromkeys(tag for response in row.responses for tag in _tags(response))
    return card(row, [*tags, category_tag(row.category)], "".join(response_html(one) for one in row.responses))


def _tags(response: Response) -> list[str]:
    tags: list[str] = [response.outcome]
    if response.parts.get("format") == 0:
        tags.append("format")
    if response.finish_reason == "length":
        tags.append("length")
    return tags


def _tiles(one: Evaluation) -> str:
    low, high = one.accuracy_interval
    tiles = [("Accuracy", percent(one.accuracy), f"95 % interval {100 * low:.1f} to {100 * high:.1f}")]
    samples = one.responses // one.rows
    if samples > 1:
        k = max(one.pass_at_k)
        tiles.append((f"Majority of {samples}", percent(one.majority), _interval_text(one.majority_interval)))
        tiles.append((f"pass@{k}", percent(one.pass_at_k[k]), _interval_text(one.pass_at_k_intervals.get(k))))
    tiles.append(("In the format", percent(one.format), f"{percent(one.no_answer)} without an answer"))
    tiles.append(("Tokens", f"{one.mean_length:.1f}", f"mean; {percent(one.truncated)} cut off at the limit"))
    tiles += [(html.escape(name), f"{mean:.3f}", "mean reward") for name, mean in one.further_rewards.items()]
    if one.grader_errors:
        tiles.append(("Grader errors", str(one.grader_errors), "counted as not correct"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><div class="name">{name}</div><div class="value">{value}</div>'
            f'<div class="more">{more}</div></div>'
            for name, value, more in tiles
        )
        + "</div>"
    )


def _interval_text(interval: Interval | None) -> str:
    return f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""


def _accuracies(one: Evaluation) -> str:
    lines: list[tuple[str, float, Interval | None, int]] = [("all", one.accuracy, one.accuracy_interval, one.rows)]
    if one.responses > one.rows:
        lines += [(f"pass@{k}", share, one.pass_at_k_intervals.get(k), one.rows) for k, share in one.pass_at_k.items()]
        lines.append(("majority", one.majority, one.majority_interval, one.rows))
    lines += [
        (name, share, one.category_intervals.get(name), one.category_rows.get(name, 0))
        for name, share in one.by_category.items()
    ]
    rows = "".join(
        f"<tr><td><b>{html.escape(name)}</b></td><td><b>{percent(share)}</b></td>"
        f"<td>{_bounds(interval)}</td><td class=bar>{interval_bar(share, *(interval or (share, share)))}</td>"
        f"<td>{count}</td></tr>"
        for name, share, interval, count in lines
    )
    return (
        '<h2>Accuracy</h2><p class="soft">The intervals are 95 % bootstraps over rows: what other rows of the same '
        "kind would have changed.</p>"
        '<div class="panel"><table><tr><th></th><th>accuracy</th><th>95 % interval</th><th class=bar></th>'
        f"<th>rows</th></tr>{rows}</table></div>"
    )


def _bounds(interval: Interval | None) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""


def _lengths(rows: Sequence[AnsweredRow]) -> str:
    """How long correct responses and the others are: a histogram, stacked."""
    correct = [one.tokens for row in rows for one in row.responses if one.correct]
    other = [one.tokens for row in rows for one in row.responses if not one.correct]
    longest = max(correct + other)
    width = max(1, math.ceil((longest + 1) / _BINS))
    bins = longest // width + 1
    counts = [[0, 0] for _ in range(bins)]
    for kind, lengths in enumerate((correct, other)):
        for length in lengths:
            counts[length // width][kind] += 1
    ticks = nice_ticks(0, max(map(sum, counts)), 4)

    def x(length: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * length / (bins * width)

    def y(count: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 8) * count / ticks[-1]

    marks = [
        f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - 8}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    marks += [
        f'<text class="tick" x="{x(tick):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick:g}</text>'
        for tick in nice_ticks(0, bins * width, 6)
        if tick <= bins * width
    ]
    for place, (right, wrong) in enumerate(counts):
        left, wide = x(place * width), max(1.0, x(width) - x(0) - 1)
        for colour, low, high in (("c2", 0, right), ("c3", right, right + wrong)):
            if high > low:
                marks.append(
                    f'<rect class="area {colour}" x="{left:.1f}" y="{y(high):.1f}" width="{wide:.1f}" '
                    f'height="{y(low) - y(high):.1f}"/>'
                )
    return (
        '<h2>Length</h2><div class="charts single"><figure class="chart"><figcaption>Tokens of a response</figcaption>'
        '<div class="legend"><span class="key"><i class="c2"></i>correct</span>'
        '<span class="key"><i class="c3"></i>not correct</span></div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Tokens of a response">{"".join(marks)}</svg>'
        '<p class="note">How many responses are so long, end-of-sequence included.</p></figure></div>'
    )
