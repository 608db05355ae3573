"""The command line trains a Qwen2-VL as it does a Qwen2.5-VL: the engine's log-probabilities are the trainer's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from examples.digits.make_policy import make_policy
from tests.distributed.launcher import Case, run_cases
from tests.end_to_end.commands import answers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_train(engine: str, tmp_path: Path, digits_task: Path) -> None:
    policy = make_policy(tmp_path / "policy", seed=0, family="qwen2_vl")
    settings = {
        "run": {"steps": 2, "directory": str(tmp_path / "run"), "save_every": 0},
        "model": {"path": str(policy)},
        "data": {"train": str(digits_task / "train.jsonl"), "max_prompt_tokens": 80, "pixel_workers": 0},
        "sampling": {"group_size": 4, "max_tokens": 16, "temperature": 1.5},
        "rollout": {"engine": engine, "prompts_per_step": 4, "kv_cache_gib": 0.25},
        "objective": {"name": "apo", "kl": {"coefficient": 0.01}},
        "optimizer": {"learning_rate": 1e-3},
        "logging": {"progress": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    words = ["train", "--config", str(tmp_path / "config.yaml")]
    run_cases([Case("tests.end_to_end.commands:command", 1, str(tmp_path / "case"), {"words": words})])
    answer = answers(tmp_path / "case")[0]
    assert answer["status"] == 0, answer["stderr"]
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["sync/version"] for step in steps] == [1, 2]
    assert all(0 <= step["sync/logprob_difference_mean"] < 1e-4 for step in steps)
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert "visual.merger.ln_q.bias" in exported and "visual.blocks.1.mlp.fc1.bias" in exported
    assert json.loads((tmp_path / "run" / "export" / "config.json").read_text())["model_type"] == "qwen2_vl"
