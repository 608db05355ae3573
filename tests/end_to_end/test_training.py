"""The whole loop through the command line, small: Megatron-Core trains, vLLM draws, on one process and on several."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from megatron_apo.config import DataConfig, OptimizerConfig
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.evaluation.directory import read_responses, read_results
from megatron_apo.records import Prompt, RolloutGroup
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import read_step, write_step
from megatron_apo.training.setup import _scheduler
from tests.distributed.launcher import REPOSITORY, Case, run_cases
from tests.distributed.layouts import record_rollouts
from tests.end_to_end.commands import answers

pytestmark = pytest.mark.slow

STEPS = 4
GATE = 1e-4
COMMAND = "tests.end_to_end.commands:command"
METRICS = [
    "reward/accuracy",
    "reward/format",
    "reward/total",
    "rollout/response_length",
    "rollout/response_length_wrong",
    "policy/entropy",
    "policy/clip_fraction",
    "kl/raw",
    "kl/weighted",
    "kl/coefficient",
    "apo/difficulty",
    "apo/dads_weight",
    "apo/stcr_weight",
    "sync/version",
    "sync/seconds",
    "sync/logprob_difference_mean",
    "time/rollout",
    "time/pixels",
    "time/update",
    "time/sync",
    "time/step",
    "throughput/tokens_per_second",
]


def command(*words: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """``python -m megatron_apo *words``, under torchrun when there are several ranks; it must succeed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    result = subprocess.run(
        [sys.executable, *launch, "-m", "megatron_apo", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
    return result


def steps_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained_steps(run: Path) -> list[dict[str, float]]:
    """Those that had a group with contrast to train on; there must be some."""
    steps = [step for step in steps_of(run) if not step["optimizer/empty_updates"]]
    assert steps, "no step had any group with contrast"
    return steps


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if not k.startswith(("time/", "throughput/", "sync/seconds"))}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def config(root: Path, tiny_policy: Path, digits_task: Path) -> Path:
    """Settings of all runs; the policy is warm enough to answer in the right form."""
    settings: dict[str, Any] = {
        "run": {"steps": STEPS, "save_every": 2, "keep_checkpoints": 9, "evaluate_every": 2},
        "model": {"path": str(tiny_policy)},
        "data": {name: str(digits_task / f"{name}.jsonl") for name in ("train", "validation", "test")},
        "sampling": {"group_size": 4, "max_tokens": 16, "temperature": 1.5},
        "rollout": {"prompts_per_step": 4, "kv_cache_gib": 0.25, "refill_rounds": 2},
        "objective": {"name": "apo", "kl": {"coefficient": 0.01}, "drop_zero_variance": True},
        "optimizer": {"learning_rate": 1e-3},
        "logging": {"progress": True, "wandb": "disabled"},
    }
    settings["data"] |= {"max_prompt_tokens": 80, "pixel_workers": 1}
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    warm = ["--run.steps=40", "--run.save_every=0", "--training.batch_size=32", "--optimizer.learning_rate=3e-3"]
    command("sft", "--config", str(path), f"--run.directory={root}/sft", *warm)
    settings["model"]["path"] = str(root / "sft" / "export")
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def output() -> list[str]:
    return []


@pytest.fixture(scope="module")
def trained(root: Path, config: Path, output: list[str]) -> Path:
    """A whole run, moved aside so that its directory is free for the resumed one."""
    result = command("train", "--config", str(config), f"--run.directory={root}/run")
    output.extend((result.stdout + result.stderr).splitlines())
    (root / "run").rename(root / "whole")
    return root / "whole"


@pytest.fixture(scope="module")
def resumed(root: Path, trained: Path) -> Path:
    """The same run as if it had been interrupted after its third step, resumed from its checkpoint of the second."""
    run = root / "run"
    shutil.copytree(trained, run)
    for gone in ("checkpoints/step_000004", "export", "evaluation/after"):
        shutil.rmtree(run / gone)
    for gone in ("report.html", "rollouts/step_000004.jsonl"):
        (run / gone).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])  # a line cut off while written
    evaluations = json.loads((run / "evaluations.json").read_text())
    (run / "evaluations.json").write_text(json.dumps({"before": evaluations["before"]}))
    command("train", "--config", str(run / "config.yaml"), "--resume")
    return run


def test_a_run_leaves_what_scripts_rely_on(trained: Path, root: Path) -> None:
    assert yaml.safe_load((trained / "config.yaml").read_text())["run"]["directory"] == str(root / "run")
    steps = steps_of(trained)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    # A step whose groups are all of one mind has no positive or negative advantage to take a mean over.
    sometimes = {"apo/dads_weight", "apo/stcr_weight", "rollout/response_length_wrong"}
    for step in trained_steps(trained):
        assert not set(METRICS) - sometimes - step.keys()
    assert sometimes <= {name for step in steps for name in step}
    assert ["evaluation/accuracy" in step for step in steps] == [False, True, False, True]
    assert any(step["optimizer/gradient_norm"] > 0.1 for step in trained_steps(trained))
    for number in range(1, STEPS + 1):
        groups = read_step(trained / "rollouts", number)
        assert [len(group.rollouts) for group in groups] == [4] * len(groups)
        assert [group.round for group in groups[:5]] == [0] * 4 + [1] * (len(groups) > 4)
        assert {rollout.weight_version for group in groups for rollout in group.rollouts} == {number - 1}
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step_000002", "step_000004"]
    evaluations = json.loads((trained / "evaluations.json").read_text())
    assert [evaluations[label]["rows"] for label in ("before", "after")] == [16, 16]
    assert list((trained / "tensorboard").glob("events.*"))


def test_groups_without_contrast_are_replaced(trained: Path) -> None:
    """Where the run stopped to draw, it had four groups with contrast or had drawn as often as it may."""
    refilled = 0
    for step in steps_of(trained):
        groups = read_step(trained / "rollouts", int(step["step"]))
        varied = [len({score.total for score in group.scores}) > 1 for group in groups]
        kept = [place for place, group in enumerate(groups) if not group.dropped]
        first_four = [place for place, has in enumerate(varied) if has][:4]
        assert kept == first_four
        assert {group.dropped for group, has in zip(groups, varied, strict=True) if not has} <= {"no_contrast", ""}
        assert sum(varied) >= 4 or step["rollout/rounds"] == 3
        assert len({group.prompt.id for group in groups}) == len(groups) == step["rollout/groups_drawn"]
        assert step["rollout/groups_dropped"] == len(groups) - len(kept)
        assert step["apo/zero_variance_groups"] == pytest.approx(1 - sum(varied) / len(groups))
        refilled += step["rollout/rounds"] > 1
    assert refilled, "every group of every step had contrast: nothing was tested"


def test_engine_and_trainer_stay_together(trained: Path) -> None:
    assert [step["sync/version"] for step in steps_of(trained)] == [1, 2, 3, 4]
    steps = trained_steps(trained)
    assert all(0 <= step["sync/logprob_difference_mean"] < GATE for step in steps)
    assert steps[-1]["kl/raw"] > 1e-3  # the policy has moved, and the engine with it


def test_the_report_opens_offline(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    assert "<svg" in page and "data:image/" in page and "held-out" in page.lower()
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)


def test_the_terminal_is_readable(trained: Path, output: list[str]) -> None:
    own = r"starting |optimizer: |held-out accuracy |train \d|step \d+: |report: |before |after |\s+accuracy "
    numa = r"\[(rank0\]:\[)?W.*NUMA binding"  # of vLLM's native code, about where memory comes from
    assert [line for line in output if line and not re.match(f"{own}|{numa}", line)] == []


def full_forward(model: Any, builder: PromptBuilder, prompt: Prompt, response: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of ``response`` by one forward pass of transformers, forbidden tokens left out."""
    ids = torch.tensor([prompt.token_ids + response])
    types = (ids == builder.image_token_id).int()
    types[:, len(prompt.token_ids) :] = 0
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=types,
            pixel_values=torch.cat([builder.pixel_values(image) for image in prompt.images]),
            image_grid_thw=torch.tensor([image.grid_thw for image in prompt.images]),
        ).logits[0, len(prompt.token_ids) - 1 : -1]
    logits[:, list(builder.forbidden_token_ids)] = -torch.inf
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def test_transformers_loads_the_export_with_the_engines_logprobs(trained: Path) -> None:
    """The last evaluation was drawn by vLLM with synced weights: the exported ones must give the same numbers."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(trained / "export", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    builder = PromptBuilder(trained / "export", DataConfig())
    groups = read_step(trained / "evaluation" / "after", 0)
    for group in groups:
        for rollout in group.rollouts:
            found = full_forward(model.eval(), builder, group.prompt, rollout.token_ids)
            assert (found - torch.tensor(rollout.logprobs)).abs().max() < GATE


def test_vllm_loads_the_export_and_answers_the_same(trained: Path, config: Path, root: Path) -> None:
    words = ["--model", str(trained / "export"), "--output", str(root / "evaluated")]
    shown = command("evaluate", "--config", str(config), *words).stdout
    after = read_step(trained / "evaluation" / "after", 0)
    assert [row.responses[0].text for row in read_responses(root / "evaluated")] == [g.rollouts[0].text for g in after]
    accuracy = json.loads((trained / "evaluations.json").read_text())["after"]["accuracy"]
    assert read_results(root / "evaluated").accuracy == accuracy and f"{accuracy:.3f}" in shown


def test_validation_responses_are_kept(trained: Path) -> None:
    for step in (2, 4):
        groups = read_step(trained / "evaluation" / "validation", step)
        correct = [group.scores[0].correct for group in groups]
        measured = next(one for one in steps_of(trained) if one["step"] == step)["evaluation/accuracy"]
        assert len(groups) == 16 and sum(correct) / 16 == measured


def test_a_resumed_run_is_the_whole_run_bit_for_bit(trained: Path, resumed: Path) -> None:
    assert [untimed(step) for step in steps_of(resumed)] == [untimed(step) for step in steps_of(trained)]
    for step in (3, 4):
        assert read_step(resumed / "rollouts", step) == read_step(trained / "rollouts", step)
    expected, found = (load_file(run / "export" / "model.safetensors") for run in (trained, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (resumed / "evaluations.json").read_text() == (trained / "evaluations.json").read_text()


def test_a_replay_drops_and_trains_on_the_same_groups(trained: Path, config: Path, root: Path) -> None:
    words = [f"--run.directory={root}/again", f"--rollout.replay={trained}/rollouts", "--data.test="]
    command("train", "--config", str(config), *words)
    for step in range(1, STEPS + 1):
        assert read_step(root / "again" / "rollouts", step) == read_step(trained / "rollouts", step)
    expected, found = (load_file(run / "export" / "model.safetensors") for run in (trained, root / "again"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_resumed_run_may_be_longer() -> None:
    def scheduler(updates: int) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
        return _scheduler(optimizer, OptimizerConfig(learning_rate=1.0, schedule="linear"), updates), optimizer

    short, _ = scheduler(4)
    short.step(2)
    longer, optimizer = scheduler(8)
    longer.load_state_dict(short.state_dict())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 - 2 / 8)


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        (("tensor=2",), 2),
        (("pipeline=2",), 2),
        (("tensor=1",), 2),  # two data-parallel replicas
        (("tensor=2", "pipeline=2"), 4),
    ],
    ids=["tensor", "pipeline", "data", "tensor-pipeline"],
)
def test_several_ranks_train_live_with_one_engine(
    layout: tuple[str, ...], ranks: int, config: Path, root: Path
) -> None:
    run = root / f"{'_'.join(layout)}_of_{ranks}"
    words = [f"--parallel.{size}" for size in layout]
    words += [f"--run.directory={run}", "--run.steps=2", "--run.evaluate_every=0", "--data.test="]
    command("train", "--config", str(config), *words, ranks=ranks)
    found = steps_of(run)
    assert [step["sync/version"] for step in found] == [1, 2]
    assert all(0 <= step["sync/logprob_difference_mean"] < GATE for step in found)
    assert found[-1]["kl/raw"] > 1e-4
    exported = load_file(run / "export" / "model.safetensors")
    initial = load_file(root / "sft" / "export" / "model.safetensors")
    assert {n: t.shape for n, t in exported.items()} == {n: t.shape for n, t in initial.items()}
    assert any(not torch.equal(exported[name], tensor) for name, tensor in initial.items())


def test_transformers_serves_where_vllm_has_no_build(config: Path, root: Path) -> None:
    words = ["--rollout.engine=transformers", f"--run.directory={root}/hf", "--run.steps=2", "--data.test="]
    command("train", "--config", str(config), *words)
    steps = steps_of(root / "hf")
    assert [step["sync/version"] for step in steps] == [1, 2]
    assert all(0 <= step["sync/logprob_difference_mean"] < GATE for step in steps)


@pytest.fixture(scope="module")
def recorded(root: Path, config: Path, digits_task: Path) -> Path:
    return record_rollouts(root / "sft" / "export", digits_task, root / "recorded", steps=1, prompts=4, group=4)


def replay_words(config: Path, recorded: Path, run: Path, *more: str) -> list[str]:
    words = ["train", "--config", str(config), f"--rollout.replay={recorded}", f"--run.directory={run}"]
    return [*words, "--run.steps=1", "--data.validation=", "--data.test=", *more]


def test_a_tampered_or_partial_update_stops_the_run_before_its_step(config: Path, root: Path) -> None:
    run_cases([Case("tests.end_to_end.tampering:tamper", 1, str(root / "tampered"), {"config": str(config)})])


def test_vision_tokens_in_a_response_do_not_break_the_trainer(config: Path, root: Path, recorded: Path) -> None:
    builder = PromptBuilder(root / "sft" / "export", DataConfig())
    first, *others = read_step(recorded, 1)
    image, video = builder.image_token_id, builder.forbidden_token_ids[-1]
    spoilt = [
        replace(rollout, token_ids=(token, token, *rollout.token_ids), logprobs=(-1.0, -1.0, *rollout.logprobs))
        for rollout, token in zip(first.rollouts[:2], (image, video), strict=True)
    ]
    groups = [RolloutGroup(first.prompt, (*spoilt, *first.rollouts[2:])), *(replace(g, scores=()) for g in others)]
    write_step(root / "spoilt", 1, groups, weight_version=0, sampling=SamplingSettings(4, 32, 1.0))
    words = replay_words(config, root / "spoilt", root / "spoilt_run")
    run_cases([Case(COMMAND, 1, str(root / "spoilt_case"), {"words": words})])
    (answer,) = answers(root / "spoilt_case")
    assert answer["status"] == 0, answer["stderr"]
    (step,) = steps_of(root / "spoilt_run")
    assert step["rollout/forbidden_tokens"] == 2
    assert step["loss/total"] == step["loss/total"] and step["optimizer/gradient_norm"] > 0


def test_a_failure_on_one_rank_reaches_the_others(config: Path, root: Path, recorded: Path) -> None:
    lost, failing = root / "lost_images", root / "failing_grader"
    grader, here = "--rewards.timeout_seconds=0.000001", "--data.pixel_workers=0"
    run_cases(
        [
            Case(
                COMMAND,
                2,
                str(lost),
                {"words": replay_words(config, recorded, lost / "run", here), "lose_images_on": 1},
            ),
            Case(COMMAND, 2, str(failing), {"words": replay_words(config, recorded, failing / "run", grader)}),
        ],
        timeout=60,
    )
    controller, loser = answers(lost)
    assert loser["status"] == 2 and ".gone" in loser["stderr"]
    assert controller["status"] == 3
    assert "error: rank 1 failed in phase 'microbatches': ValueError: " in controller["stderr"]
    controller, other = answers(failing)
    assert controller["status"] == 3 and "could not be graded" in controller["stderr"]
    assert other["status"] == 3 and "error: rank 0 failed in phase 'rollout': RewardError: " in other["stderr"]
    assert not list((failing / "run" / "checkpoints").iterdir())


def test_rows_of_two_pictures_are_drawn_by_vllm_and_trained_on(config: Path, root: Path, digits_task: Path) -> None:
    rows = [json.loads(line) for line in (digits_task / "train.jsonl").read_text().splitlines()[:16]]
    rows = [one | {"images": one["images"] + other["images"]} for one, other in zip(rows[::2], rows[1::2], strict=True)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"--run.directory={root / 'pairs'}", f"--data.train={root / 'pairs.jsonl'}", "--run.steps=1"]
    words += [f"--data.image_root={digits_task}", "--data.validation=", "--data.test=", "--run.evaluate_every=0"]
    words += ["--objective.drop_zero_variance=false", "--rollout.refill_rounds=0"]
    command("train", "--config", str(config), *words)
    (step,) = trained_steps(root / "pairs")
    assert step["sync/logprob_difference_mean"] < GATE
    groups = read_step(root / "pairs" / "rollouts", 1)
    assert all(len(group.prompt.images) == 2 for group in groups)
