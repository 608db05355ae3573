"""``evaluate`` on a small policy: kept response by response, interrupted, gone on with, refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from megatron_apo.config import Config
from megatron_apo.config_loading import load_config
from megatron_apo.evaluation import directory as directories
from megatron_apo.evaluation.directory import Appender, read_responses, read_results
from megatron_apo.evaluation.evaluate import evaluate
from megatron_apo.evaluation.responses import AnsweredRow
from megatron_apo.evaluation.scoring import evaluate_rows
from megatron_apo.observability.paired_page import comparison_table, read_evaluated, write_comparison_page
from megatron_apo.rewards.pool import RewardError

ROWS, BATCH, SAMPLES = 8, 3, 2


class Killed(BaseException):
    """What ends a process from outside; nothing may catch it."""


def settings(policy: Path, task: Path, *more: str) -> Config:
    given = [
        f"--model.path={policy}",
        f"--data.test={task / 'test.jsonl'}",
        "--rollout.engine=transformers",
        "--sampling.max_tokens=6",
        f"--evaluation.limit={ROWS}",
        f"--evaluation.batch={BATCH}",
        f"--evaluation.samples={SAMPLES}",
        "--evaluation.temperature=1.0",
    ]
    return load_config(None, [*given, *more])


@pytest.fixture(scope="module")
def whole(tiny_policy: Path, digits_task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing interrupted."""
    output = tmp_path_factory.mktemp("evaluations") / "whole"
    evaluate(settings(tiny_policy, digits_task), output=str(output))
    return output


def test_every_response_is_kept_and_is_what_the_numbers_say(whole: Path, digits_task: Path) -> None:
    rows = read_responses(whole)
    asked = [json.loads(line) for line in (digits_task / "test.jsonl").read_text().splitlines()[:ROWS]]
    assert [(row.id, row.question, row.gold) for row in rows] == [(r["id"], r["question"], r["answer"]) for r in asked]
    assert all(len(row.responses) == SAMPLES and row.images for row in rows)
    assert all(1 <= response.tokens <= 6 for row in rows for response in row.responses)
    assert read_results(whole) == evaluate_rows(rows)
    assert (whole / "report.html").is_file()


def test_responses_of_a_row_differ(whole: Path) -> None:
    assert any(row.responses[0].text != row.responses[1].text for row in read_responses(whole))


def test_an_interrupted_evaluation_becomes_the_whole_one(
    whole: Path, tiny_policy: Path, digits_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, config = Appender.append, settings(tiny_policy, digits_task)

    def dies_in_the_second_batch(self: Appender, rows: list[AnsweredRow]) -> None:
        if self.rows:
            self._file.write((whole / "responses.jsonl").read_bytes()[-700:-20])  # one line and a half
            self._file.flush()
            raise Killed
        append(self, rows)

    monkeypatch.setattr(directories.Appender, "append", dies_in_the_second_batch)
    with pytest.raises(Killed):
        evaluate(config, output=str(tmp_path / "cut"))
    assert not (tmp_path / "cut" / "results.json").exists()
    monkeypatch.setattr(directories.Appender, "append", append)
    evaluate(config, output=str(tmp_path / "cut"))
    for name in ("responses.jsonl", "results.json", "settings.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()


def test_batches_change_no_seed(whole: Path, tiny_policy: Path, digits_task: Path, tmp_path: Path) -> None:
    evaluate(settings(tiny_policy, digits_task, "--evaluation.batch=8"), output=str(tmp_path / "absent" / "one_batch"))
    found = [[one.text for one in row.responses] for row in read_responses(tmp_path / "absent" / "one_batch")]
    assert found == [[one.text for one in row.responses] for row in read_responses(whole)]


def test_a_finished_evaluation_starts_no_engine(
    whole: Path, tiny_policy: Path, digits_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_apo.rollout import build

    monkeypatch.setattr(build, "build_engine", None)
    before = (whole / "responses.jsonl").read_bytes()
    evaluate(settings(tiny_policy, digits_task), output=str(whole))
    assert (whole / "responses.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--evaluation.temperature=0.5", r"sampling.temperature: 1.0 -> 0.5"),
        ("--sampling.max_tokens=5", r"sampling.max_tokens: 6 -> 5"),
        ("--run.seed=7", r"sampling.seed: 0 -> 7"),
        ("--evaluation.limit=7", r"data.prompts_sha256: .*; data.rows: 8 -> 7"),
        ("--data.instruction=Think.", r"differ: data.prompts_sha256: '\w+' -> '\w+'; put them back"),
        ("--rewards.timeout_seconds=3", r"grader.timeout_seconds: 10.0 -> 3.0"),
    ],
)
def test_other_settings_are_refused_by_name(
    changed: str, message: str, whole: Path, tiny_policy: Path, digits_task: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(settings(tiny_policy, digits_task, changed), output=str(whole))


def test_another_model_and_a_changed_file_are_refused(
    whole: Path, tiny_policy: Path, digits_task: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_policy.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    evaluate(settings(model, digits_task), output=str(whole))  # the same model elsewhere
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"differ: model.sha256: '\w+' -> '\w+'; put"):
        evaluate(settings(model, digits_task), output=str(whole))


def test_a_directory_of_something_else_is_left_alone(tiny_policy: Path, digits_task: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already and is no evaluation's directory"):
        evaluate(settings(tiny_policy, digits_task), output=str(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"notes.txt is no directory; give another name"):
        evaluate(settings(tiny_policy, digits_task), output=str(tmp_path / "mine" / "notes.txt" / "here"))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_changed_responses_are_not_gone_on_with(
    whole: Path, tiny_policy: Path, digits_task: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("settings.json", "responses.jsonl"):
        (copy / name).write_bytes((whole / name).read_bytes())
    lines = (copy / "responses.jsonl").read_text().splitlines(keepends=True)
    (copy / "responses.jsonl").write_text("".join(lines[2:] + lines[:2]))
    with pytest.raises(ValueError, match="it was changed: evaluate anew in another directory"):
        evaluate(settings(tiny_policy, digits_task), output=str(copy))


def test_too_many_grader_errors_end_it_with_everything_written(
    tiny_policy: Path, digits_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("def broken(**_):\n    raise RuntimeError('for a reason')\n")
    config = settings(tiny_policy, digits_task, f"--rewards.user={{'{tmp_path / 'mine.py'}:broken': 1.0}}")
    with pytest.raises(RewardError, match=rf"{ROWS * SAMPLES} of {ROWS * SAMPLES} responses could not be graded"):
        evaluate(config, output=str(tmp_path / "errors"))
    assert read_results(tmp_path / "errors").grader_errors == ROWS * SAMPLES
    assert capsys.readouterr().err.count("RuntimeError: for a reason") == 1


def test_rewards_of_the_users_are_shown_with_their_file(
    tiny_policy: Path, digits_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text("def even(row_id, tokens):\n    return 0.25 + tokens - tokens\n")
    words = [f"--rewards.user={{{own}:even: 0.5}}", "--evaluation.limit=2", "--rewards.workers=1"]
    evaluate(settings(tiny_policy, digits_task, *words), output=str(tmp_path / "kept"))
    printed = capsys.readouterr()
    assert "further rewards, mean: even 0.250" in printed.out
    assert f"reward {own}:even: SHA-256 {hashlib.sha256(own.read_bytes()).hexdigest()}" in printed.err
    assert '<div class="name">even</div><div class="value">0.250</div>' in (tmp_path / "kept/report.html").read_text()
    assert read_results(tmp_path / "kept").further_rewards == {"even": 0.25}


def test_a_wrong_reward_of_the_users_is_told_before_anything_is_read(
    tiny_policy: Path, digits_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_apo.evaluation.evaluate.read_prompts", None)
    own = tmp_path / "own.py"
    own.write_text("import no_such_module_at_all\n")
    with pytest.raises(ValueError, match="own.py:even: .* cannot be loaded"):
        evaluate(settings(tiny_policy, digits_task, f"--rewards.user={{{own}:even: 0.5}}"), output=None)


def test_two_evaluations_side_by_side(whole: Path, tiny_policy: Path, digits_task: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    evaluate(settings(tiny_policy, digits_task, "--run.seed=5"), output=str(other))
    evaluated = read_evaluated([whole, other])
    assert [line.split()[0] for line in comparison_table(evaluated).splitlines()[1:3]] == ["whole", "other"]
    page = write_comparison_page(evaluated, tmp_path / "page.html").read_text()
    assert "sampling.seed: 0 -&gt; 5" in page
    assert page.count('class="sample"') == ROWS
    with pytest.raises(ValueError, match="is given twice"):
        read_evaluated([whole, whole])
    (other / "results.json").unlink()
    with pytest.raises(ValueError, match=r"other: holds no results.json; run its evaluate command again"):
        read_evaluated([whole, other])
