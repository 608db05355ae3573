"""Pages of responses: cards with picture, question and what models said, filtered by a few lines of script.

Everything that a model or a data row wrote is escaped, and the page's own policy lets no other script run, nothing be
fetched and no form be sent: a response is not to be trusted.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_apo.data.thumbnails import thumbnail_uri
from megatron_apo.evaluation.responses import AnsweredRow, ImageFile, Response
from megatron_apo.observability.report_style import STYLE

MOST_CARDS = 1000
MOST_CHARACTERS = 20_000  # of one response on a page
OUTCOMES = {"correct": "correct", "wrong": "wrong", "no_answer": "no answer", "grader_error": "grader error"}

_STYLE = """
.filters { display:flex; flex-wrap:wrap; gap:8px; align-items:center; position:sticky; top:0; z-index:1;
  background:var(--page); padding:10px 0; margin:0 0 6px }
.filters select, .filters input { font:inherit; font-size:14px; color:var(--text); background:var(--card);
  border:1px solid var(--line); border-radius:8px; padding:5px 10px }
.filters input { flex:1 1 180px; min-width:120px } .filters output { color:var(--soft); font-size:13px }
.sample { content-visibility:auto; contain-intrinsic-size:auto 220px } .sample[hidden] { display:none }
.sample .pictures { display:flex; flex-direction:column; gap:8px } .question { white-space:pre-wrap }
.charts.single { grid-template-columns:minmax(0,640px) }
.model { font-weight:600; font-size:13px } .cut { color:var(--soft); font-size:13px }
"""
_SCRIPT = """
const cards = [...document.querySelectorAll("[data-tags]")], shown = document.querySelector("[data-shown]");
const choices = [...document.querySelectorAll("[data-filter]")], words = document.querySelector("[data-words]");
function filter() {
  const wanted = choices.map((choice) => choice.value).filter((value) => value);
  const text = words.value.toLowerCase();
  let count = 0;
  for (const card of cards) {
    const tags = JSON.parse(card.dataset.tags);
    card.hidden = !wanted.every((tag) => tags.includes(tag)) || !card.textContent.toLowerCase().includes(text);
    count += !card.hidden;
  }
  shown.textContent = `${count} of ${cards.length} rows`;
}
for (const choice of choices) choice.addEventListener("change", filter);
words.addEventListener("input", filter);
filter();
"""


@dataclass(frozen=True)
class Filter:
    """A choice above the cards: ``label`` where nothing is chosen, then tag -> what it is called."""

    label: str
    choices: Mapping[str, str]


def write_page(path: Path, title: str, body: Sequence[str]) -> Path:
    """Writes one HTML file that opens offline and runs no script but this module's."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main><script>{_SCRIPT}</script></body></html>\n"
    )
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def filters(choices: Sequence[Filter]) -> str:
    """The choices, a search box and the count of the cards that are left."""
    selects = []
    for choice in choices:
        options = "".join(
            f'<option value="{html.escape(tag)}">{html.escape(name)}</option>' for tag, name in choice.choices.items()
        )
        label = html.escape(choice.label)
        selects.append(f'<select data-filter aria-label="{label}"><option value="">{label}</option>{options}</select>')
    search = '<input data-words type="search" placeholder="search in question and responses" aria-label="search">'
    return f'<div class="filters">{"".join(selects)}{search}<output data-shown></output></div>'


def card(row: AnsweredRow, tags: Sequence[str], responses: str) -> str:
    """One row: its pictures, question and gold answer, then ``responses`` (HTML). ``tags``: what filters it."""
    pictures = "".join(_picture(image) for image in row.images)
    category = f" · {html.escape(row.category)}" if row.category else ""
    found = html.escape(json.dumps(list(tags)))
    return (
        f'<article class="sample" data-tags="{found}"><div class="pictures">{pictures}</div>'
        f'<div><div class="question">{html.escape(row.question)}</div><div class="soft">gold answer '
        f"<b>{html.escape(row.gold)}</b>{category} · {html.escape(row.id)}</div>{responses}</div></article>"
    )


def response_html(response: Response, *, model: str = "") -> str:
    """One response with its verdict; ``model``: whose it is, where there are several."""
    chips = [f'<span class="model">{html.escape(model)}</span>'] if model else []
    chips.append(f'<span class="chip {response.outcome}">{OUTCOMES[response.outcome]}</span>')
    if response.answer is not None:
        chips.append(f'<span class="chip">answer <b>{html.escape(response.answer[:200])}</b></span>')
    if response.parts.get("format") == 0:
        chips.append('<span class="chip">not in the format</span>')
    chips.append(f'<span class="chip">tokens <b>{response.tokens}</b></span>')
    if response.finish_reason == "length":
        chips.append('<span class="chip">cut off at the limit</span>')
    text = html.escape(response.text[:MOST_CHARACTERS])
    text = re.sub(r"&lt;/?(?:think|answer)&gt;", lambda match: f'<span class="tag">{match[0]}</span>', text)
    rest = len(response.text) - MOST_CHARACTERS
    cut = f'<div class="cut">… {rest:,} more characters in responses.jsonl</div>' if rest > 0 else ""
    return f'<div class="response"><div class="chips">{"".join(chips)}</div><pre>{text}</pre>{cut}</div>'


def _picture(image: ImageFile) -> str:
    name = html.escape(Path(image.path).name)
    try:
        uri, tiny = thumbnail_uri(image.path, sha256=image.sha256)
    except ValueError as error:
        return f'<div class="missing">{html.escape(str(error))}</div>'
    return f'<img{" class=small" if tiny else ""} loading="lazy" decoding="async" alt="{name}" src="{uri}">'
