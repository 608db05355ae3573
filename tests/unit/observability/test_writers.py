"""metrics.jsonl, TensorBoard, wandb and the progress lines."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from megatron_apo.config import LoggingConfig
from megatron_apo.observability.progress import Progress
from megatron_apo.observability.writers import JsonlWriter, open_writers, read_metrics

PLAIN = LoggingConfig(tensorboard=False)


def test_a_line_a_step_is_on_disk_at_once(tmp_path: Path) -> None:
    with open_writers(tmp_path / "run", PLAIN) as writers:
        writers.write(1, {"kl/raw": 0.5})
        writers.write(2, {"kl/raw": math.nan, "policy/entropy": math.inf})
        text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "kl/raw": 0.5}\n{"step": 2, "kl/raw": null, "policy/entropy": null}\n'


def test_resume_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "x": step / 2}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "x"')
    with open_writers(tmp_path, PLAIN, resume_step=2) as writers:
        writers.write(3, {"x": 9.0})
    assert read_metrics(tmp_path) == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}, {"step": 3, "x": 9.0}]


def test_a_new_run_never_writes_over_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="already holds the metrics of a run"):
        JsonlWriter(path)
    assert path.read_text() == '{"step": 1}\n'


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: is not UTF-8 text"):
        read_metrics(tmp_path)


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_writers(tmp_path, LoggingConfig(tensorboard=True)) as writers:
        writers.write(1, {"reward/total": 0.25})
        writers.write(2, {"reward/total": 0.75})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/total")] == [(1, 0.25), (2, 0.75)]


def test_wandb_offline_keeps_its_id_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache"))
    config = LoggingConfig(tensorboard=False, wandb="offline")
    run = tmp_path / "run"
    with open_writers(run, config, settings={"run": {"seed": 3}}) as writers:
        writers.write(1, {"reward/total": 0.25})
    run_id = (run / "wandb" / "run_id").read_text()
    assert list((run / "wandb").glob(f"offline-run-*/run-{run_id.strip()}.wandb"))
    with open_writers(run, config, resume_step=1) as writers:
        writers.write(2, {"reward/total": 0.5})
    assert (run / "wandb" / "run_id").read_text() == run_id


def test_unknown_wandb_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logging.wandb='yes'"):
        open_writers(tmp_path, LoggingConfig(tensorboard=False, wandb="yes"))


METRICS = {"reward/total": 1.25, "reward/accuracy": 0.75, "time/step": 1.0, "time/update": 0.7, "time/sync": 0.001}


def test_progress_off_a_terminal_is_a_few_plain_lines() -> None:
    stream = io.StringIO()
    with Progress(25, stream=stream, every_steps=10, every_seconds=1000) as progress:
        for step in range(1, 26):
            progress.update(step, METRICS)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25"]
    assert lines[0] == "train 1/25  reward 1.250 acc 0.750 s/step 1.00 (update 0.70)"
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar() -> None:
    stream = Terminal()
    with Progress(2, initial=1, stream=stream) as progress:
        progress.update(2, METRICS)
        progress.message("saved")
    text = stream.getvalue()
    assert "2/2" in text and "reward 1.250" in text and "saved\n" in text and "\r" in text


def test_progress_can_be_silent() -> None:
    stream = Terminal()
    with Progress(1, enabled=False, stream=stream) as progress:
        progress.update(1, METRICS)
    assert stream.getvalue() == ""
