"""What supervised training makes of its settings: the weights of a batch's tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_apo.config_loading import load_config
from megatron_apo.data.costs import CostModel
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.evaluation.evaluate import read_prompts
from megatron_apo.sft import _works


@pytest.mark.parametrize("sequences", [1, 2, 3])
def test_the_microbatch_of_the_reduction_is_the_settings(sequences: int, tiny_policy: Path, digits_task: Path) -> None:
    """Four demonstrations of different lengths: 1 / (tokens of its microbatch * microbatches) a token."""
    overrides = ["--objective.name=sft", "--objective.reduction=microbatch_token_mean"]
    config = load_config(None, [*overrides, f"--objective.microbatch_sequences={sequences}"])
    builder = PromptBuilder(str(tiny_policy), config.data)
    rows = read_prompts(builder, str(digits_task / "train.jsonl"), "")[:4]
    prompts = [replace(row, demonstration="7" * (place + 1)) for place, row in enumerate(rows)]
    one_rank: Any = SimpleNamespace(data_size=1)
    (work,) = _works(prompts, builder, config, one_rank, CostModel())
    lengths = [len(builder.response_ids(prompt.demonstration)) for prompt in prompts]
    assert len(set(lengths)) == 4
    batches = [lengths[start : start + sequences] for start in range(0, 4, sequences)]
    expected = [1 / (sum(batch) * len(batches)) for batch in batches for _ in batch]
    given = {len(sample.response_ids): sample.policy_weight for sample in work.samples}
    assert [given[length] for length in lengths] == pytest.approx(expected)
