"""Which responses are scored: rows of a data file, or the newest recorded ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_apo.comparison.inputs import Scored, from_rollouts, read_samples, token_places
from megatron_apo.config import DataConfig
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.records import Prompt, Rollout, RolloutGroup
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import write_step


def group(name: str, *responses: tuple[int, ...]) -> RolloutGroup:
    prompt = Prompt(name, (5, 6), (5, 6), (), "?", "4")
    return RolloutGroup(
        prompt,
        tuple(Rollout(name, i, ids, tuple(-1.0 for _ in ids), "", "stop", 0) for i, ids in enumerate(responses)),
    )


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    for step, groups in {
        1: [group("a", (1,)), group("b", (2,))],
        2: [group("c", (3, 4), ()), group("d", (5,))],
    }.items():
        write_step(tmp_path, step, groups, weight_version=0, sampling=SamplingSettings(2, 8, 1.0))
    return tmp_path


def test_the_newest_step_comes_first_and_empty_responses_are_left_out(recorded: Path) -> None:
    found = from_rollouts(recorded, 3)
    assert [sample.id for sample in found] == ["step2/c#0", "step2/d#0", "step1/a#0"]
    assert token_places(found) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert len(from_rollouts(recorded, 100)) == 4


@pytest.fixture(scope="module")
def builder(tiny_policy: Path) -> PromptBuilder:
    return PromptBuilder(tiny_policy, DataConfig())


@pytest.fixture
def read(builder: PromptBuilder, digits_task: Path) -> Callable[[Path, int], list[Scored]]:
    vocab = len(builder.tokenizer)
    return lambda source, limit: read_samples(source, builder, image_root=str(digits_task), limit=limit, vocab=vocab)


def test_a_row_answers_with_its_demonstration(
    digits_task: Path, builder: PromptBuilder, tmp_path: Path, read: Callable[[Path, int], list[Scored]]
) -> None:
    rows = [json.loads(line) for line in (digits_task / "train.jsonl").read_text().splitlines()[:3]]
    rows[0]["images"] *= 2
    del rows[1]["demonstration"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path / "rows.jsonl", 2)
    assert [sample.id for sample in found] == [row["id"] for row in rows[:2]]
    assert [len(sample.prompt.images) for sample in found] == [2, 1]
    assert found[0].response_ids == builder.response_ids(rows[0]["demonstration"])
    assert found[1].response_ids == builder.response_ids(rows[1]["answer"])


def test_a_response_that_not_all_can_score(
    tmp_path: Path, builder: PromptBuilder, read: Callable[[Path, int], list[Scored]]
) -> None:
    for token, words in ((builder.image_token_id, "is a vision token"), (9999, "outside the vocabulary")):
        write_step(tmp_path, 1, [group("a", (1, token))], weight_version=0, sampling=SamplingSettings(1, 8, 1.0))
        with pytest.raises(ValueError, match=f"sample 'step1/a#0', response token 1: id {token} .*{words}"):
            read(tmp_path, 5)
    with pytest.raises(ValueError, match="--samples 0"):
        read(tmp_path, 0)
