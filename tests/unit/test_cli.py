"""The command line: quick help, clear errors, overrides passed on."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_apo import cli
from megatron_apo.cli import main
from tests.unit.test_config_checks import CONTRADICTIONS

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_apo", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_explains_and_is_quick() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0
    for word in ("train", "sft", "evaluate", "report", "--section.key=value", "torchrun"):
        assert word in result.stdout
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize("command", ["train", "sft", "evaluate", "doctor", "plan", "report"])
def test_help_of_a_command_has_examples_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    examples = printed.partition("examples:")[2]
    assert set(re.findall(r"-m megatron_apo (\w+)", examples)) == {command}
    assert ("--section.key=value, the value" in examples) == (command not in ("plan", "report"))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(re.findall(r"-m megatron_apo (\w+)", capsys.readouterr().out)) == set(cli._COMMANDS)


@pytest.mark.parametrize(
    "module",
    ["megatron_apo.cli", "megatron_apo.config", "megatron_apo.config_loading", "megatron_apo.objective.presets"],
)
def test_settings_and_command_line_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert result.returncode == 0


def test_ctrl_c_is_one_line_and_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.delenv("MEGATRON_APO_DEBUG", raising=False)
    monkeypatch.setitem(cli._COMMANDS, "evaluate", interrupted)
    assert main(["evaluate"]) == 130
    assert capsys.readouterr().err == "interrupted: with --output, the same command goes on where it stopped\n"
    monkeypatch.setenv("MEGATRON_APO_DEBUG", "1")
    with pytest.raises(KeyboardInterrupt):
        main(["evaluate"])


def test_an_error_of_ours_is_one_line_and_status_2(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("run:\n  stps: 3\n")
    result = run("train", "--config", str(config))
    assert result.returncode == 2
    assert result.stderr == "error: run.stps: unknown setting; did you mean run.steps?\n"
    result = run("train", "--config", str(config), MEGATRON_APO_DEBUG="1")
    assert result.returncode == 1 and "Traceback" in result.stderr


RUN = ["--config", "CONFIG", "--model.path=CONFIG", "--data.train=CONFIG"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config", "CONFIG"], "error: model.path: is required"),
        (["train", "--config", "CONFIG", "--sampling.group_size=1"], "error: sampling.group_size=1"),
        (["train", "--config", "CONFIG", "--sampling.group_size", "1"], "error: sampling.group_size=1"),
        (["sft", "--config", "CONFIG", "--model.path=x"], "error: data.train: is required"),
        (["train", "--config", "CONFIG", "--run.steps"], "error: --run.steps: has no value"),
        (["train", "--run.steps", "--config", "CONFIG"], "error: --run.steps: has no value"),
        (["evaluate", "--model", "x"], "error: data.test: is required"),
        (["train", *RUN, "--objective.name=sft"], "error: objective.name=sft: is for demonstrations"),
        (["sft", *RUN, "--objective.name=dr_grpo"], "error: objective.reduction=constant: must be another with sft"),
        (["report", "absent"], "error: report absent: no such directory"),
        (["report", "absent", "--run.steps=3"], "error: --run.steps=3: report takes no settings"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("run:\n  steps: 3\n")
    assert main([word.replace("CONFIG", str(config)) for word in words]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("words", "overrides", "options"),
    [
        (
            ["doctor", "own.jsonl", "--data.instruction=Think first."],
            ["--data.instruction=Think first."],
            {"data": ["own.jsonl"], "evaluation": None},
        ),
        (
            ["doctor", "--evaluation", "x", "--data.formats={x: mmk12}", "y"],
            ["--data.formats={x: mmk12}"],
            {"data": [], "evaluation": ["x", "y"]},
        ),
        (["doctor", "--data.image_root", "/root", "own.jsonl"], ["--data.image_root=/root"], {"data": ["own.jsonl"]}),
        (
            ["evaluate", "--compare", "a", "b", "--data.instruction", "Think first."],
            ["--data.instruction=Think first."],
            {"compare": ["a", "b"]},
        ),
        (["--run.name=a b", "train", "--config", "c", "--resume"], ["--run.name=a b"], {"config": "c", "resume": True}),
        (["report", "run", "--run.steps=-1", "--stps=3"], ["--run.steps=-1", "--stps=3"], {"directory": "run"}),
        (["doctor", "--run.steps=1", "--", "--odd.jsonl=x"], ["--run.steps=1"], {"data": ["--odd.jsonl=x"]}),
    ],
)
def test_a_setting_is_none_of_the_files(
    words: list[str], overrides: list[str], options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[argparse.Namespace, list[str]]] = []
    commands = {name: lambda options, overrides: got.append((options, overrides)) for name in cli._COMMANDS}
    monkeypatch.setattr(cli, "_COMMANDS", commands)
    assert main(words) == 0
    ((found, settings),) = got
    assert settings == overrides
    assert {name: getattr(found, name) for name in options} == options


@pytest.mark.parametrize("which", CONTRADICTIONS)
@pytest.mark.parametrize("command", ["train", "sft"])
def test_contradictions_are_refused_before_anything_starts(
    command: str, which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, message = CONTRADICTIONS[which]
    words = [word.replace("CONFIG", str(tmp_path / "config.yaml")) for word in RUN]
    (tmp_path / "config.yaml").write_text(f"run:\n  directory: {tmp_path / 'run'}\n")
    assert main([command, *words, *overrides]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["train", "--config", "c.yaml", "stray"], ["train"], ["fly"], []])
def test_a_malformed_command_line_is_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_run_that_stops_itself_is_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of a failed gate, as the command line shows it; the run itself is stood in for."""
    from megatron_apo.weight_sync.verify import LogprobGateError

    def gate(*_: object) -> None:
        with cli._stopping():
            raise LogprobGateError("engine and trainer differ by 0.5")

    monkeypatch.setitem(cli._COMMANDS, "train", gate)
    monkeypatch.delenv("MEGATRON_APO_DEBUG", raising=False)
    assert main(["train", "--config", "c.yaml"]) == 3
    assert capsys.readouterr().err == "error: engine and trainer differ by 0.5\n"
