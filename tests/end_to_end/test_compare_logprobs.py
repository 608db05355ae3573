"""tools/compare_logprobs.py with all three backends on recorded rollouts with images, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.digits.make_policy import make_policy
from megatron_apo.comparison.command import main
from tests.distributed.layouts import randomised_checkpoint, record_rollouts

pytestmark = pytest.mark.slow


def test_three_backends_agree(tmp_path: Path, digits_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained = make_policy(tmp_path / "untrained", seed=0)
    policy = randomised_checkpoint(untrained, tmp_path / "policy", seed=3)
    recorded = record_rollouts(policy, digits_task, tmp_path / "rollouts", steps=1, prompts=6, group=4)
    output = tmp_path / "output"
    arguments = [str(policy), str(recorded), "--limit", "1e-4", "--kv-cache-gib", "0.25", "--output", str(output)]
    assert main(arguments) == 0
    pairs = json.loads((output / "summary.json").read_text())["pairs"]
    found = {(pair["first"], pair["second"]): pair["maximum"] for pair in pairs}
    with capsys.disabled():
        print(f"\nlargest differences: {found}")
    assert set(found) == {("transformers", "megatron"), ("transformers", "vllm"), ("megatron", "vllm")}
    assert all(0 < maximum <= 1e-4 for maximum in found.values())
    assert (output / "differences.png").is_file()
    assert "every difference is within the limit" in capsys.readouterr().out
