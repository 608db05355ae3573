"""Bad input through the command line: one clear error, exit status 2, nothing written, nothing overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from megatron_apo.config_loading import dump_config, load_config
from tests.distributed.launcher import REPOSITORY, Case, run_cases
from tests.end_to_end.commands import answers

pytestmark = pytest.mark.slow

COMMAND = "tests.end_to_end.commands:command"
LOST = "model.layers.1.self_attn.k_proj.bias"

# name -> (words behind the good settings, what the one error must say). "{root}" is the directory of the bad files; the
# command is train unless the first word names another.
REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown_key": (["--sampling.grup_size=4"], r"sampling.grup_size: unknown.*did you mean sampling.group_size\?"),
    "wrong_type": (["--run.steps=many"], r"run.steps='many': must be a whole number"),
    "group_of_one": (["--sampling.group_size=1"], r"sampling.group_size=1: must be at least 2; a group of one"),
    "dads_without_kl": (
        ["--objective.dads.enabled=true", "--objective.kl.coefficient=0"],
        r"objective.kl.coefficient=0.*: must be above 0 with objective.dads.enabled=true",
    ),
    "no_data_file": (["--data.train={root}/absent.jsonl"], r"data.train=.*absent.jsonl: no such file"),
    "layout": (
        ["--parallel.tensor=4", "--parallel.pipeline=3"],
        r"tensor 4 × pipeline 3 × context 1 × data \? = world 1, sequence false, virtual_pipeline 1, "
        r"first_stage_layers 0, vision_ffn_multiple 128: world 1 is not a multiple of tensor × pipeline × context = 12"
        r"; .*layers 2 is not .* pipeline 3",
    ),
    "other_model": (
        ["--model.path={root}/other"],
        r"model_type is 'llava' \(.*\), expected 'qwen2_5_vl' or 'qwen2_vl'",
    ),
    "not_a_model": (["--model.path={root}"], r"model.path=.*: no config.json there"),
    "no_weights": (["--model.path={root}/no_weights"], r"no_weights: no \*.safetensors file there"),
    "truncated": (["--model.path={root}/truncated"], r"truncated/model.safetensors: not a whole safetensors file"),
    "no_tensor": (["--model.path={root}/no_tensor"], rf"no_tensor: {LOST} is missing"),
    "no_image": (["--data.train={root}/no_image.jsonl"], r"line 3, row '\S+': images=None: must be a list"),
    "no_answer": (["--data.train={root}/no_answer.jsonl"], r"line 3, row '\S+': answer is missing"),
    "bad_gold": (
        ["--data.train={root}/bad_gold.jsonl"],
        r"line 3, row '\S+': answer='9\^9\^9\^9': the grader reads no number",
    ),
    "lost_image": (["--data.train={root}/lost_image.jsonl"], r"line 3, row '\S+': image 'absent.png' does not exist"),
    "no_such_form": (["--data.format=clevr"], r"data.format=clevr: must be one of r1v_counting, r1v_geoqa, mmk12, or"),
    "other_form": (["--data.format=mmk12"], r"line 1, row '\S+': data.format=mmk12: .*the record's keys are id, "),
    "wrong_reward": (
        ["--rewards.user={{{root}/own.py:even: 1.0}}", "--data.train={root}/no_answer.jsonl"],
        r"rewards.user=.*own.py:even: .*own.py cannot be loaded \(ModuleNotFoundError: .*; correct it, or leave it out",
    ),
    "wrong_reward_evaluated": (
        ["evaluate", "--rewards.user={{{root}/own.py:even: 1.0}}", "--data={root}/no_answer.jsonl"],
        r"rewards.user=.*own.py:even: .*own.py cannot be loaded \(ModuleNotFoundError: .*; correct it, or leave it out",
    ),
    "no_recording": (["--rollout.replay={root}"], r"rollout.replay=.*: no step_\*.jsonl there"),
    "taken": (
        ["--run.directory={root}/taken"],
        r"run.directory=.*/taken: holds another run; continue it with --resume",
    ),
    "not_empty": (["--run.directory={root}/other"], r"run.directory=.*/other: is not empty"),
    "nothing_to_resume": (["--resume"], r"run.directory=.*/run: no run there to resume; leave --resume out"),
    "nothing_to_evaluate": (["--run.evaluate_every=1"], r"run.evaluate_every=1: needs data.validation; give rows"),
    "no_checkpoint": (
        ["--resume", "--run.directory={root}/unsaved"],
        r"unsaved/checkpoints: the run has no checkpoint to resume from; remove its directory",
    ),
    "no_demonstration": (
        ["sft", "--data.train={root}/no_demonstration.jsonl"],
        r"1 of 4 rows is bad.*line 3, row '\S+': demonstration is missing; supervised training needs one in every row",
    ),
    "results_taken": (
        ["evaluate", "--data={root}/no_demonstration.jsonl", "--output={root}/good.yaml"],
        r"--output .*/good.yaml: exists already and is no evaluation's directory; give another name",
    ),
    "results_nowhere": (
        ["evaluate", "--data={root}/no_demonstration.jsonl", "--output={root}/good.yaml/evaluation"],
        r"--output .*/evaluation: .*/good.yaml is no directory; give another name",
    ),
    "resumed_otherwise": (
        ["--resume", "--run.directory={root}/taken", "--optimizer.learning_rate=0.5", "--sampling.max_tokens=15"],
        r"a resumed run must keep its settings, but these differ: optimizer.learning_rate: 1e-06 -> 0.5; "
        r"sampling.max_tokens: 16 -> 15; put them back",
    ),
}


def copy_of(policy: Path, target: Path) -> Path:
    shutil.copytree(policy, target)
    return target


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """Bad checkpoints and bad data files."""
    root = tmp_path_factory.mktemp("bad")
    config = copy_of(tiny_policy, root / "other") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llava"}))
    (copy_of(tiny_policy, root / "no_weights") / "model.safetensors").unlink()
    weights = copy_of(tiny_policy, root / "truncated") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    weights = copy_of(tiny_policy, root / "no_tensor") / "model.safetensors"
    tensors = load_file(weights)
    del tensors[LOST]
    save_file(tensors, weights, metadata={"format": "pt"})

    def rows(name: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
        records = [json.loads(line) for line in (digits_task / "train.jsonl").read_text().splitlines()[:4]]
        spoil(records[2])
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))

    (root / "own.py").write_text("import no_such_module_at_all\n")
    rows("no_image", lambda row: row.pop("images"))
    rows("no_answer", lambda row: row.pop("answer"))
    rows("bad_gold", lambda row: row.update(answer="9^9^9^9"))
    rows("no_demonstration", lambda row: row.pop("demonstration"))
    rows("lost_image", lambda row: row.update(images=["absent.png"]))
    settings = {
        "run": {"steps": 2, "directory": str(root / "run")},
        "model": {"path": str(tiny_policy)},
        "data": {
            "train": str(digits_task / "train.jsonl"),
            "image_root": str(digits_task),
            "max_prompt_tokens": 80,
            "pixel_workers": 0,
        },
        "sampling": {"max_tokens": 16},
        "objective": {"kl": {"coefficient": 0.01}},
    }
    (root / "good.yaml").write_text(yaml.safe_dump(settings))
    (root / "taken").mkdir()
    taken = load_config(root / "good.yaml", [f"--run.directory={root}/taken"])
    (root / "taken" / "config.yaml").write_text(dump_config(taken))
    (root / "taken" / "checkpoints" / "step_000001").mkdir(parents=True)
    (root / "unsaved").mkdir()
    unsaved = load_config(root / "good.yaml", [f"--run.directory={root}/unsaved"])
    (root / "unsaved" / "config.yaml").write_text(dump_config(unsaved))
    return root


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def refused(root: Path) -> Path:
    """Every case of ``REFUSED``, run once; nothing was written or overwritten by any of them."""
    cases = []
    for name, (given, _) in REFUSED.items():
        command, settings = (given[0], given[1:]) if given[0] in ("sft", "evaluate") else ("train", given)
        words = [command, "--config", str(root / "good.yaml"), *(word.format(root=root) for word in settings)]
        cases.append(Case(COMMAND, 1, str(root / "cases" / name), {"words": words}))
    words = ["train", "--config", str(root / "good.yaml"), "--parallel.tensor=3"]
    cases.append(Case(COMMAND, 2, str(root / "cases" / "two_ranks"), {"words": words}))
    before = snapshot(root / "taken")
    run_cases(cases)
    assert snapshot(root / "taken") == before
    assert not (root / "run").exists()
    return root / "cases"


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(refused: Path, name: str) -> None:
    (answer,) = answers(refused / name)
    assert answer["status"] == 2
    lines = answer["stderr"].splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[:1]
    assert all(line.startswith("  ") for line in lines[1:])  # the bad rows, one each
    assert re.search(REFUSED[name][1], " ".join(lines))


def test_a_layout_is_refused_on_every_rank(refused: Path) -> None:
    for answer in answers(refused / "two_ranks"):
        assert answer["status"] == 2
        assert "tensor 3 × pipeline 1 × context 1 × data ? = world 2" in answer["stderr"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_apo", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_terminal_shows_the_error_alone(root: Path) -> None:
    result = run("train", "--config", str(root / "good.yaml"), f"--data.train={root}/no_answer.jsonl")
    assert result.returncode == 2 and result.stdout == ""
    file = rf"{root}/no_answer\.jsonl"
    expected = rf"error: {file}: 1 of 4 rows is bad, .*:\n  {file}: line 3, row '\S+': answer is missing\n"
    assert re.fullmatch(expected, result.stderr)


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    result = run("train", "--config", str(tmp_path / "absent.yaml"))
    assert result.returncode == 2
    assert re.fullmatch(r"error: --config=\S+absent.yaml: cannot be read .*\n", result.stderr)
