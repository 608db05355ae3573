"""tools/compare_logprobs.py with all three backends on recorded rollouts with images, in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.digits.make_policy import make_policy
from tests.distributed.layouts import randomised_checkpoint, record_rollouts

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_three_backends_agree(tmp_path: Path, digits_task: Path) -> None:
    untrained = make_policy(tmp_path / "untrained", seed=0)
    policy = randomised_checkpoint(untrained, tmp_path / "policy", seed=3)
    recorded = record_rollouts(policy, digits_task, tmp_path / "rollouts", steps=1, prompts=6, group=4)
    output = tmp_path / "output"
    arguments = [str(policy), str(recorded), "--limit", "1e-4", "--kv-cache-gib", "0.25", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "tools/compare_logprobs.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pairs = json.loads((output / "summary.json").read_text())["pairs"]
    found = {(pair["first"], pair["second"]): pair["maximum"] for pair in pairs}
    print(f"largest differences: {found}")
    assert set(found) == {("transformers", "megatron"), ("transformers", "vllm"), ("megatron", "vllm")}
    assert all(0 < maximum <= 1e-4 for maximum in found.values())
    assert (output / "differences.png").is_file()
    assert "every difference is within the limit" in done.stdout
