"""The pages of evaluations: what a hostile response may not do, what the filters know, what is left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from megatron_apo.evaluation.directory import begin, write_results
from megatron_apo.evaluation.responses import AnsweredRow, ImageFile, response_lines
from megatron_apo.evaluation.scoring import evaluate_rows
from megatron_apo.observability import evaluation_page, response_cards
from megatron_apo.observability.evaluation_page import telling_rows, write_evaluation_page
from megatron_apo.observability.paired_page import read_evaluated, write_comparison_page
from tests.unit.evaluation.rows import row

HOSTILE = (
    "</pre><script>steal()</script><img src=x onerror=steal()><answer>1</answer>\" onclick='steal()' </script>"
    "<!--<style>*{display:none}</style>--><a href=javascript:steal()>x</a>]]>"
)
SETTINGS = {
    "model": {"path": "/models/<b>policy", "sha256": "0" * 64},
    "data": {"path": "/data/test.jsonl", "sha256": "1" * 64, "rows": 1, "prompts_sha256": "2" * 64},
    "engine": "vllm 1",
    "dtype": "float32",
    "sampling": {"group_size": 2, "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "seed": 0},
    "batch": 4,
    "grader": {},
}

TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "script",
    "h1",
    "h2",
    "h3",
    "p",
    "ul",
    "li",
    "span",
    "b",
    "small",
    "div",
    "article",
    "img",
    "select",
    "option",
    "input",
    "output",
    "table",
    "tr",
    "th",
    "td",
    "svg",
    "path",
    "text",
    "rect",
    "figure",
    "figcaption",
    "i",
    "pre",
}


class Page(HTMLParser):
    """What a browser would make of a page: its tags, their attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def kept(directory: Path, rows: list[AnsweredRow]) -> Path:
    begin(directory, SETTINGS)
    (directory / "responses.jsonl").write_text("".join(line for one in rows for line in response_lines(one)))
    write_results(directory, evaluate_rows(rows))
    return directory


@pytest.fixture
def rows(tmp_path: Path) -> list[AnsweredRow]:
    Image.new("RGB", (900, 500), "teal").save(tmp_path / "large.png")
    Image.new("L", (20, 10)).save(tmp_path / "tiny.png")
    files = [
        ImageFile(str(tmp_path / name), hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
        for name in ("large.png", "tiny.png")
    ]
    hostile = dataclasses.replace(
        row("<i>a", "cw", [HOSTILE, "x" * 30_000], category="</script>sum"), question=HOSTILE, images=tuple(files)
    )
    lost = ImageFile(str(tmp_path / "<lost>.png"), "0")
    return [
        hostile,
        dataclasses.replace(row("b", "ne", category="count", cut=True), images=(lost,)),
        row("c", "cc", category="count"),
    ]


@pytest.mark.parametrize("compared", [False, True])
def test_a_hostile_response_is_shown_and_does_nothing(rows: list[AnsweredRow], tmp_path: Path, compared: bool) -> None:
    one = kept(tmp_path / "<u>one", rows)
    if compared:
        evaluated = read_evaluated([one, kept(tmp_path / "two", rows)])
        text = write_comparison_page(evaluated, tmp_path / "page.html").read_text()
    else:
        text = write_evaluation_page(one).read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") or name == "href" for _, found in page.tags for name in found)
    assert all((found["src"] or "").startswith("data:image/") for tag, found in page.tags if tag == "img")
    assert HOSTILE in "".join(page.words)
    policy = next(found["content"] for tag, found in page.tags if "http-equiv" in found) or ""
    assert "default-src 'none'" in policy and "unsafe-inline'; script" in policy and "'unsafe-eval'" not in policy


def test_the_task_of_the_rows_is_named(rows: list[AnsweredRow], tmp_path: Path) -> None:
    """Every task calls its file test.jsonl."""
    found = [kept(tmp_path / name, rows) for name in ("one", "two")]
    assert "Evaluation on data/test.jsonl" in write_evaluation_page(found[0]).read_text()
    assert "rows of data/test.jsonl" in write_comparison_page(read_evaluated(found), tmp_path / "page.html").read_text()


def test_pictures_are_small_and_a_lost_one_says_so(rows: list[AnsweredRow], tmp_path: Path) -> None:
    page = Page(write_evaluation_page(kept(tmp_path / "one", rows)).read_text())
    images = [found for tag, found in page.tags if tag == "img"]
    assert [("class" in found, (found["src"] or "")[:16]) for found in images] == [
        (False, "data:image/jpeg;"),
        (True, "data:image/png;b"),
    ]
    assert any("<lost>.png" in words and "cannot be read" in words for words in page.words)


def test_filters_find_rows_by_verdict_form_and_category(rows: list[AnsweredRow], tmp_path: Path) -> None:
    page = Page(write_evaluation_page(kept(tmp_path / "one", rows)).read_text())
    tags = [json.loads(found["data-tags"] or "") for tag, found in page.tags if tag == "article"]
    assert tags == [
        ["correct", "wrong", "category:</script>sum"],
        ["no_answer", "format", "length", "grader_error", "category:count"],
        ["correct", "category:count"],
    ]
    offered = {found.get("value") for tag, found in page.tags if tag == "option"} - {""}
    assert set().union(*tags) <= offered


def test_long_responses_and_many_rows_are_cut_and_say_so(
    rows: list[AnsweredRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (response_cards, evaluation_page):
        monkeypatch.setattr(module, "MOST_CARDS", 2)
    assert [one.id for one in telling_rows(rows)] == ["<i>a", "b"]
    text = write_evaluation_page(kept(tmp_path / "one", rows)).read_text()
    assert "10,000 more characters in responses.jsonl" in text
    assert "2 of 3 rows are shown" in text
    assert len(re.findall("<article", text)) == 2


def test_solvers_are_told_apart(tmp_path: Path) -> None:
    first = kept(tmp_path / "first", [row("a", "cw"), row("b", "ww"), row("c", "cc"), row("d", "ww")])
    second = kept(tmp_path / "second", [row("a", "ww"), row("b", "cw"), row("c", "wc"), row("d", "ww")])
    page = Page(write_comparison_page(read_evaluated([first, second]), tmp_path / "page.html").read_text())
    tags = [json.loads(found["data-tags"] or "") for tag, found in page.tags if tag == "article"]
    assert tags == [
        ["+0", "-1", "some", "only 0", "category:"],
        ["-0", "+1", "some", "only 1", "category:"],
        ["+0", "+1", "all", "category:"],
        ["-0", "-1", "none", "category:"],
    ]
