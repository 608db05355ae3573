"""``evaluate --compare``: models on the same rows, side by side, as a table for the terminal and as one page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apo.evaluation.directory import differing, read_responses, read_results, read_settings
from megatron_apo.evaluation.paired import (
    PairedDifference,
    check_same_rows,
    differences_by_category,
    paired_difference,
)
from megatron_apo.evaluation.responses import AnsweredRow
from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import aligned
from megatron_apo.observability.evaluation_page import categories_filter, category_tag, data_name, percent, shown_note
from megatron_apo.observability.report_charts import interval_bar
from megatron_apo.observability.response_cards import MOST_CARDS, Filter, card, filters, response_html, write_page
from megatron_apo.wording import counted

_SHOWN = (
    0.05  # p up to which a difference is coloured; of few rows the exact test says less than the bootstrap seems to
)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation's directory: what it is called on the page, and what it holds."""

    name: str
    settings: dict[str, Any]
    result: Evaluation
    rows: list[AnsweredRow]


def read_evaluated(directories: Sequence[str | Path]) -> list[Evaluated]:
    """The evaluations in the order given; ValueError for fewer than two, one twice, or evaluations of other rows."""
    paths = [Path(directory) for directory in directories]
    if len(paths) < 2:
        raise ValueError(f"--compare {' '.join(map(str, paths))}: give the directories of two evaluations or more")
    resolved = [path.resolve() for path in paths]
    twice = [str(path) for place, path in enumerate(paths) if resolved[place] in resolved[:place]]
    if twice:
        raise ValueError(f"--compare: {twice[0]} is given twice; each evaluation is compared once")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    found = [
        Evaluated(name, read_settings(path), read_results(path), read_responses(path))
        for name, path in zip(names, paths, strict=True)
    ]
    check_same_rows(names, [one.rows for one in found])
    return found


def comparison_table(evaluated: Sequence[Evaluated]) -> str:
    """Each model against the first, for a terminal."""
    first = evaluated[0]
    lines: list[tuple[str, ...]] = [("", "accuracy", "difference", "95 % interval", "p", "only it", "only the first")]
    lines.append((first.name, f"{first.result.accuracy:.3f}", "", "", "", "", ""))
    for other in evaluated[1:]:
        lines.append((other.name, *_cells(paired_difference(first.rows, other.rows))))
        lines += [(f"  {key}", *_cells(one)) for key, one in differences_by_category(first.rows, other.rows).items()]
    return aligned(lines)


def write_comparison_page(evaluated: Sequence[Evaluated], output: str | Path) -> Path:
    """Writes the page of what ``read_evaluated`` gave, and returns ``output``; ValueError when it has no directory."""
    path = Path(output)
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: no directory {path.parent}; make it first")
    first, others = evaluated[0], evaluated[1:]
    by_id = [{row.id: row for row in one.rows} for one in evaluated]
    order = _telling_ids(by_id)
    body = [
        "<h1>Comparison of evaluations</h1>",
        f'<p class="soft">{counted(first.result.rows, "row", "rows")} of '
        f"{html.escape(data_name(first.settings))}, the same for all · "
        f"{counted(first.result.responses, 'response', 'responses')} each · "
        f"differences are from {html.escape(first.name)}</p>",
        _differing_settings(evaluated),
        _overall(evaluated),
        *(_by_category(first, other) for other in others),
        "<h2>Rows</h2>",
        '<p class="soft">A row is solved by at least one correct response.</p>',
        shown_note(len(order), len(by_id[0]), "those that only some models solve"),
        filters(
            [
                Filter("solved by any or none", _solvers(evaluated)),
                *(
                    Filter(f"{one.name}: any", {f"+{place}": f"{one.name}: solved", f"-{place}": f"{one.name}: not"})
                    for place, one in enumerate(evaluated)
                ),
                *categories_filter(first.rows),
            ]
        ),
        *(_card(evaluated, [rows[row_id] for rows in by_id]) for row_id in order),
    ]
    return write_page(path, "comparison of evaluations", body)


def _cells(one: PairedDifference) -> tuple[str, ...]:
    low, high = one.interval
    bounds = f"{low:+.3f} to {high:+.3f}"
    return (
        *(f"{one.second:.3f}", f"{one.difference:+.3f}", bounds, _p_text(one.p_value)),
        *(str(one.only_second), str(one.only_first)),
    )


def _p_text(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.0e}"


def _differing_settings(evaluated: Sequence[Evaluated]) -> str:
    """What beside the model is not the same: then the difference is not the model's alone."""
    items = []
    for other in evaluated[1:]:
        changed = [
            line
            for line in differing(evaluated[0].settings, other.settings)
            if not line.startswith(("model.", "data."))
        ]
        if changed:
            items.append(f"<li><b>{html.escape(other.name)}</b>: {html.escape('; '.join(changed))}</li>")
    return f"<p><b>Not the model alone differs:</b></p><ul>{''.join(items)}</ul>" if items else ""


def _overall(evaluated: Sequence[Evaluated]) -> str:
    first = evaluated[0]
    lines = [
        f"<tr><td><b>{html.escape(first.name)}</b></td><td><b>{percent(first.result.accuracy)}</b></td>"
        f"<td class=bar>{_bar(first.result)}</td><td></td><td></td><td></td><td></td><td></td></tr>"
    ]
    for other in evaluated[1:]:
        lines.append(
            f"<tr><td><b>{html.escape(other.name)}</b></td><td><b>{percent(other.result.accuracy)}</b></td>"
            f"<td class=bar>{_bar(other.result)}</td>{_table_cells(paired_difference(first.rows, other.rows))}</tr>"
        )
    return (
        '<h2>What differs</h2><p class="soft">Row by row: the interval of a difference is a 95 % bootstrap over rows '
        "of the paired differences, p the exact paired permutation test (with one response a row McNemar's). Neither "
        "is corrected for the number of models or categories.</p>"
        '<div class="panel"><table><tr><th></th><th>accuracy</th><th class=bar></th><th>difference, points</th>'
        "<th>95 % interval</th><th>p</th><th>it alone solves</th><th>the first alone</th></tr>"
        f"{''.join(lines)}</table></div>"
    )


def _bar(result: Evaluation) -> str:
    return interval_bar(result.accuracy, *result.accuracy_interval)


def _table_cells(one: PairedDifference) -> str:
    low, high = (100 * bound for bound in one.interval)
    told = "" if one.p_value > _SHOWN else ' class="up"' if one.difference > 0 else ' class="down"'
    return (
        f"<td><b{told}>{100 * one.difference:+.1f}</b></td><td>{low:+.1f} to {high:+.1f}</td>"
        f"<td>{_p_text(one.p_value)}</td><td>{one.only_second}</td><td>{one.only_first}</td>"
    )


def _by_category(first: Evaluated, other: Evaluated) -> str:
    found = differences_by_category(first.rows, other.rows)
    if not found:
        return ""
    lines = "".join(
        f"<tr><td><b>{html.escape(name)}</b></td><td>{one.rows}</td><td>{percent(one.first)}</td>"
        f"<td>{percent(one.second)}</td>{_table_cells(one)}</tr>"
        for name, one in found.items()
    )
    return (
        f"<h3>{html.escape(other.name)} by category</h3>"
        f'<div class="panel"><table><tr><th></th><th>rows</th><th>{html.escape(first.name)}</th>'
        f"<th>{html.escape(other.name)}</th><th>difference, points</th><th>95 % interval</th><th>p</th>"
        f"<th>it alone solves</th><th>the first alone</th></tr>{lines}</table></div>"
    )


def _telling_ids(by_id: Sequence[dict[str, AnsweredRow]]) -> list[str]:
    """The rows a page shows: all, or of very many first those that only some models solve."""
    ids = list(by_id[0])
    if len(ids) <= MOST_CARDS:
        return ids

    def agreed(row_id: str) -> bool:
        return len({rows[row_id].correct > 0 for rows in by_id}) == 1

    order = sorted(range(len(ids)), key=lambda place: (agreed(ids[place]), place))
    return [ids[place] for place in sorted(order[:MOST_CARDS])]


def _solvers(evaluated: Sequence[Evaluated]) -> dict[str, str]:
    only = {f"only {place}": f"{one.name} alone solves" for place, one in enumerate(evaluated)}
    return {"some": "only some solve", **only, "all": "all solve", "none": "none solves"}


def _card(evaluated: Sequence[Evaluated], rows: Sequence[AnsweredRow]) -> str:
    solved = [row.correct > 0 for row in rows]
    tags = [f"{'+' if one else '-'}{place}" for place, one in enumerate(solved)]
    tags.append("all" if all(solved) else "some" if any(solved) else "none")
    if sum(solved) == 1:
        tags.append(f"only {solved.index(True)}")
    tags.append(category_tag(rows[0].category))
    told = "".join(
        response_html(response, model=one.name)
        for one, row in zip(evaluated, rows, strict=True)
        for response in row.responses
    )
    return card(rows[0], tags, told)
