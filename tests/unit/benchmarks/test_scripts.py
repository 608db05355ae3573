"""Benchmarks start from anywhere, and their made rows are what they are said to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import doctor, rewards


def test_the_benchmark_of_rewards_starts_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, "-I", rewards.__file__, "--responses", "8", "--workers", "1", "--only", "ordinary"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "ordinary" in ended.stdout and "grader_error" not in ended.stdout


def test_doctors_rows_contradict_nobody(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in doctor.make_rows(tmp_path, 120).read_text().splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) == 120
