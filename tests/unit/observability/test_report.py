"""report.html of a small run directory, and the picture of several."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import write_evaluations
from megatron_apo.observability.report import write_curves_png, write_report
from megatron_apo.observability.report_samples import SampledGroup, picture, read_groups, telling_groups
from megatron_apo.records import Prompt, PromptImage, Rollout, RolloutGroup, Score
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import write_step

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
HOSTILE = "<think><script>alert(1)</script></think><answer>13 & more</answer>"


class Page(HTMLParser):
    """Collects the tags of a page and checks that they nest."""

    VOID = {"meta", "img", "path", "circle"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def write_rollouts(run: Path, step: int, image: Path) -> None:
    rollouts = [
        {"token_ids": [1, 2, 3], "text": HOSTILE, "finish_reason": "stop"},
        {"token_ids": [1, 2], "text": "no\u2028idea", "finish_reason": "length"},
        {"token_ids": [1], "text": "in between", "finish_reason": "stop"},
    ]
    scores = [
        {"total": 1.5, "parts": {"accuracy": 1.0, "format": 1.0}, "outcome": "correct"},
        {"total": 0.0, "parts": {"accuracy": 0.0, "format": 0.0}, "outcome": "no_answer"},
        {"total": 0.5, "parts": {"accuracy": 0.0, "format": 1.0}, "outcome": "wrong"},
    ]
    shaping = [
        {"raw_advantage": 1.125, "advantage": 1.125, "stcr": 1.0, "kl_weight": 0.743},
        {"raw_advantage": -0.875, "advantage": -1.25, "stcr": 1.375, "kl_weight": 1.0},
        {"raw_advantage": 0.0, "advantage": 0.0, "stcr": 1.0, "kl_weight": 1.0},
    ]
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    prompt = {"question": "Sum of <b>both</b>?", "gold": "13", "images": [{"path": str(image), "sha256": digest}]}
    group = {"prompt": prompt, "rollouts": rollouts, "scores": scores, "shaping": shaping}
    lines = [{"record_version": 1, "step": step}, group]
    (run / "rollouts").mkdir(exist_ok=True)
    (run / "rollouts" / f"step_{step:06d}.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "seed <3>"
    run.mkdir()
    (run / "config.yaml").write_text("run: {seed: 3}\nmodel: {path: a/b/<policy>}\nobjective: {name: grpo_d}\n")
    rows: list[dict[str, Any]] = [
        {"step": s, "reward/total": s / 10, "reward/accuracy": s / 20, "time/step": 2.0, "time/update": 1.5}
        for s in range(1, 11)
    ]
    rows[4]["evaluation/accuracy"] = 0.5
    rows[5]["kl/raw"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    image = tmp_path / "image.png"
    image.write_bytes(PIXEL)
    for step in (1, 5, 10):
        write_rollouts(run, step, image)
    before = Evaluation(0.475, (0.43, 0.52), 0.93, 400, 400, 22.4, 0.475)
    write_evaluations(run, {"before": before, "after": Evaluation(0.8875, (0.855, 0.918), 1.0, 400, 400, 20.1, 0.9)})
    return run


def test_the_page_holds_everything_and_needs_nothing_else(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    for expected in ("47.5 %", "88.8 %", "+41.2 points", "85.5 to 91.8", "Seconds by phase", "Validation accuracy"):
        assert expected in page.text
    for expected in (
        "Early · step 1",
        "Middle · step 5",
        "Late · step 10",
        "+1.125",
        "-1.250",
        "1.375",
        "0.743",
        "before STCR -0.875",
    ):
        assert expected in page.text
    assert "in between" not in page.text  # the extremes of a group are shown, not its middle
    assert "GRPO-D on <policy>" in page.text
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert sources == ["data:image/png;base64," + base64.b64encode(PIXEL).decode()] * 3
    assert not any(name in attributes for _, attributes in page.tags for name in ("href", "srcset", "action"))
    assert "http" not in text and "@import" not in text and "url(" not in text


def test_how_engine_and_trainer_agree_is_drawn_over_the_steps(tmp_path: Path) -> None:
    """Mean and largest difference apart, each on an axis of its own; the weights' numbers together."""
    metrics = {
        "sync/logprob_difference_mean": ("mean |Δ log p|", [0.001, 0.002, 0.003]),
        "sync/logprob_difference_max": ("largest |Δ log p|", [0.5, 0.75, 0.25]),
        "mismatch/effective_sample_size": ("effective sample size", [0.95, 0.9, 0.85]),
        "mismatch/weight_mean": ("mean weight", [1.01, 1.02, 0.99]),
        "mismatch/corrected_share": ("corrected share", [0.0, 0.125, 0.25]),
    }
    rows = [{"step": s} | {name: values[s - 1] for name, (_, values) in metrics.items()} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(tmp_path).read_text())
    drawn = [json.loads(found) for _, attributes in page.tags if (found := attributes.get("data-chart"))]
    charts = [[(one["name"], [value for _, value in one["points"]]) for one in chart["series"]] for chart in drawn]
    mean, largest, *weights = metrics.values()
    assert charts == [[mean], [largest], weights]


def test_text_of_models_and_data_is_only_text(run: Path) -> None:
    page = Page(write_report(run).read_text())
    assert HOSTILE in page.text
    assert "Sum of <b>both</b>?" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text.startswith("seed <3>")


def test_parts_that_are_missing_are_left_out(run: Path, tmp_path: Path) -> None:
    for path in (run / "rollouts").iterdir():
        path.unlink()
    for name in ("config.yaml", "evaluations.json"):
        (run / name).unlink()
    page = Page(write_report(run, output=tmp_path / "other.html").read_text())
    assert "Reward" in page.text
    assert "Sampled responses" not in page.text and "Held-out" not in page.text


def test_a_directory_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither metrics.jsonl nor evaluations.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_rollout_file_is_named(run: Path) -> None:
    (run / "rollouts" / "step_000005.jsonl").write_text('{"step": 5}\n{"prompt": {}}\n')
    with pytest.raises(ValueError, match=r"step_000005\.jsonl:2"):
        write_report(run)


def test_a_rollout_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "step_000001.jsonl").write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"step_000001\.jsonl: is not UTF-8 text"):
        read_groups(tmp_path / "step_000001.jsonl", 1)


def test_the_files_that_the_loop_writes_are_read(tmp_path: Path) -> None:
    prompt = Prompt("row", (1, 2), (1, 2), (PromptImage("a.png", "0" * 64, (1, 2, 2)),), "How many?", "3")
    rollouts = (Rollout("row", 0, (5, 6), (-0.5, -0.25), "a\u2028b", "stop", 4),)
    group = RolloutGroup(prompt, rollouts, (Score(1.5, {"accuracy": 1.0, "format": 1.0}, "correct"),))
    shaping = [[{"raw_advantage": 0.5, "advantage": 0.75, "stcr": 1.5, "kl_weight": 1.0}]]
    sampling = SamplingSettings(group_size=2, max_tokens=8, temperature=1.0)
    path = write_step(tmp_path, 7, [group], weight_version=4, sampling=sampling, shaping=shaping)
    (read,) = read_groups(path, 7)
    assert (read.step, read.prompt["question"], read.prompt["images"][0]["path"]) == (7, "How many?", "a.png")
    assert (read.rollouts[0]["text"], read.rollouts[0]["token_ids"]) == ("a\u2028b", [5, 6])
    assert (read.scores[0]["outcome"], read.scores[0]["total"]) == ("correct", 1.5)
    assert read.shaping == shaping[0]


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a<b>.png"
    assert "a&lt;b&gt;.png: no longer there" in picture({"path": str(path)})
    path.write_bytes(PIXEL)
    assert picture({"path": str(path)}).startswith("<img")
    assert "changed since the run" in picture({"path": str(path), "sha256": "0" * 64})
    path.write_bytes(b"<svg onload=alert(1)>")
    assert "a format browsers do not show" in picture({"path": str(path)})


def test_groups_nearest_to_half_correct_are_shown() -> None:
    def group(name: str, correct: int) -> SampledGroup:
        outcomes = ["correct"] * correct + ["wrong"] * (4 - correct)
        return SampledGroup(1, {"id": name}, [{}] * 4, [{"outcome": outcome} for outcome in outcomes], [])

    groups = [group("a", 4), group("b", 1), group("c", 2), group("d", 0)]
    assert [one.prompt["id"] for one in telling_groups(groups, 2)] == ["b", "c"]


def test_curves_of_several_runs_in_one_picture(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = write_curves_png([run], tmp_path / "one.png").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text('{"step": 1, "reward/total": 0.5}\n{"step": 2, "reward/total": 0.1}\n')
    both = write_curves_png([run, other], tmp_path / "both.png", title="Two seeds").read_bytes()
    assert one.startswith(b"\x89PNG") and both.startswith(b"\x89PNG") and one != both
    with pytest.raises(ValueError, match="no metrics.jsonl to draw"):
        write_curves_png([tmp_path / "nothing"], tmp_path / "none.png")
