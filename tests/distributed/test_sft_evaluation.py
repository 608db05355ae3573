"""Supervised training evaluates itself: transformers' numbers, the same in every layout, and nothing is moved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_apo.config import DataConfig
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.evaluation.evaluate import read_prompts
from tests.distributed.launcher import Case, run_cases
from tests.end_to_end.commands import answers

LAYOUTS = {
    "one": (1, []),
    "tp2_dp2": (4, ["--parallel.tensor=2", "--parallel.sequence=true", "--data.pixel_workers=1"]),
    "pp2_cp2": (4, ["--parallel.pipeline=2", "--parallel.context=2"]),
}
COMMAND = "tests.end_to_end.commands:command"
NAMES = ("evaluation/loss", "evaluation/perplexity", "evaluation/token_accuracy")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """A policy that has begun to learn, with and without evaluations; and its evaluation in every layout."""
    root = tmp_path_factory.mktemp("sft_evaluation")
    settings = {
        "run": {"steps": 6, "save_every": 0},
        "model": {"path": str(tiny_policy)},
        "data": {name: str(digits_task / f"{name}.jsonl") for name in ("train", "validation")} | {"pixel_workers": 0},
        "sampling": {"temperature": 0.7},  # of the policy later: imitation is of the plain softmax
        "training": {"batch_size": 16, "tokens_per_microbatch": 300},
        "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
        "logging": {"progress": False, "tensorboard": False},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    without = [json.loads(line) for line in (digits_task / "validation.jsonl").read_text().splitlines()]
    del without[2]["demonstration"]
    (root / "without.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without))

    def case(name: str, world: int, *words: str) -> Case:
        given = ["sft", "--config", str(root / "config.yaml"), f"--run.directory={root / name / 'run'}", *words]
        return Case(COMMAND, world, str(root / name), {"words": given})

    cases = [case("silent", 1), case("trained", 1, "--run.evaluate_every=3", "--logging.progress=true")]
    still = [f"--model.path={root / 'trained' / 'run' / 'export'}", "--optimizer.learning_rate=1e-12"]
    for name, (world, layout) in LAYOUTS.items():
        cases.append(case(name, world, *still, *layout, "--run.steps=1", "--run.evaluate_every=1"))
    images = f"--data.image_root={digits_task}"
    rows = f"--data.validation={root / 'without.jsonl'}"
    cases.append(case("refused", 1, rows, images, "--run.evaluate_every=1"))
    cases.append(
        case("limited", 1, rows, images, *still, "--run.steps=1", "--run.evaluate_every=1", "--evaluation.limit=2")
    )
    cases.append(case("nothing", 1, "--data.validation=", "--run.evaluate_every=1"))
    run_cases(cases)
    return root


def steps_of(directory: Path) -> list[dict[str, Any]]:
    (answer, *_) = answers(directory)
    assert answer["status"] == 0, answer["stderr"]
    return [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]


def transformers_numbers(policy: Path, data: Path, limit: int | None = None) -> tuple[float, float]:
    """Mean loss and token accuracy of the demonstrations, one row at a time."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(policy).eval()
    builder = PromptBuilder(policy, DataConfig())
    losses, right = [], []
    for prompt in read_prompts(builder, str(data), "")[:limit]:
        response = torch.tensor(builder.response_ids(prompt.demonstration))
        ids = torch.cat([torch.tensor(prompt.token_ids), response])[None]
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == builder.image_token_id).int(),
                pixel_values=torch.cat([builder.pixel_values(image) for image in prompt.images]),
                image_grid_thw=torch.tensor([image.grid_thw for image in prompt.images]),
            ).logits[0, len(prompt.token_ids) - 1 : -1]
        logits[:, list(builder.forbidden_token_ids)] = -torch.inf
        losses.append(-logits.log_softmax(-1).gather(1, response[:, None])[:, 0])
        right.append(logits.argmax(-1) == response)
    return float(torch.cat(losses).double().mean()), float(torch.cat(right).double().mean())


def test_evaluations_come_when_asked_and_are_transformers_numbers(root: Path, digits_task: Path) -> None:
    steps = steps_of(root / "trained")
    assert [all(name in step for name in NAMES) for step in steps] == [False, False, True] * 2
    last = steps[-1]
    loss, accuracy = transformers_numbers(root / "trained" / "run" / "export", digits_task / "validation.jsonl")
    assert last["evaluation/loss"] == pytest.approx(loss, rel=1e-5)
    assert last["evaluation/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert last["evaluation/token_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert 0.1 < accuracy < 0.95 and last["evaluation/loss"] < steps[2]["evaluation/loss"]
    (answer,) = answers(root / "trained")
    assert f"val loss {last['evaluation/loss']:.4f} val tokens {accuracy:.3f}" in answer["stderr"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_numbers(root: Path, layout: str) -> None:
    expected, (found,) = steps_of(root / "trained")[-1], steps_of(root / layout)
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_training_does_not_notice(root: Path) -> None:
    silent, evaluated = steps_of(root / "silent"), steps_of(root / "trained")
    for one, other in zip(silent, evaluated, strict=True):
        left_out = (*NAMES, "time/batch", "time/update", "time/step", "time/pixels")
        assert one.keys() - {*left_out} == other.keys() - {*left_out}
        assert all(one[name] == other[name] for name in one if name not in left_out)


def test_rows_that_cannot_be_evaluated_are_refused(root: Path) -> None:
    (refused,), (nothing,) = answers(root / "refused"), answers(root / "nothing")
    assert refused["status"] == 2 and "1 of 16 rows is bad" in refused["stderr"]
    assert "(data.validation)" in refused["stderr"] and "demonstration is missing; supervised" in refused["stderr"]
    assert nothing["status"] == 2 and "run.evaluate_every=1: needs data.validation" in nothing["stderr"]
    assert not (root / "refused" / "run").exists() and not (root / "nothing" / "run").exists()


def test_evaluation_limit_takes_the_first_rows(root: Path, digits_task: Path) -> None:
    (found,) = steps_of(root / "limited")
    loss, _ = transformers_numbers(root / "trained" / "run" / "export", digits_task / "validation.jsonl", 2)
    assert found["evaluation/loss"] == pytest.approx(loss, rel=1e-5)
