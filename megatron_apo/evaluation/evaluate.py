"""``python -m megatron_apo evaluate``, and the evaluations before, during and after training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_apo.config import Config
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.reading import read_data
from megatron_apo.data.scan import PromptSet
from megatron_apo.evaluation.scoring import Evaluation, evaluate_groups
from megatron_apo.evaluation.tables import plain_table
from megatron_apo.records import Prompt, RolloutGroup
from megatron_apo.rewards.accuracy import check_gold
from megatron_apo.rewards.pool import Scorer
from megatron_apo.rollout.engine import RolloutEngine, SamplingSettings


def read_prompts(
    builder: PromptBuilder,
    path: str | Sequence[str],
    image_root: str,
    *,
    setting: str = "data.test",
    demonstrations: bool = False,
    limit: int = 0,
) -> PromptSet:
    """The prompts of the good rows of a data file, or of several; every row is checked, its gold answer too.

    ``setting`` names the data in messages. ``demonstrations``: a row without one is bad. ``limit``: the first so many
    good rows alone, and nothing behind them is read; 0: all.
    """
    return read_data(
        builder,
        [path] if isinstance(path, str) else path,
        setting=setting,
        check_gold=check_gold,
        image_root=image_root,
        demonstrations=demonstrations,
        limit=limit,
    )


def evaluation_sampling(config: Config) -> SamplingSettings:
    """How an evaluation draws: greedily unless ``config.evaluation`` says otherwise."""
    return SamplingSettings(
        group_size=config.evaluation.samples,
        max_tokens=config.sampling.max_tokens,
        temperature=config.evaluation.temperature,
        seed=config.run.seed,
    )


def evaluate_prompts(
    engine: RolloutEngine, scorer: Scorer, prompts: Sequence[Prompt], config: Config
) -> tuple[Evaluation, list[RolloutGroup]]:
    """Draws and scores the responses to ``prompts`` as ``config.evaluation`` says (greedy unless told otherwise)."""
    settings = config.evaluation
    chosen = prompts[: settings.limit] if settings.limit else prompts
    drawn = engine.generate(chosen, evaluation_sampling(config))
    groups = [RolloutGroup(prompt, tuple(rollouts)) for prompt, rollouts in zip(chosen, drawn, strict=True)]
    scored = scorer.score(groups)
    return evaluate_groups(scored, seed=config.run.seed), scored


def evaluate(config: Config, *, output: str | None) -> None:
    """Evaluates ``model.path`` on ``data.test``; prints a table and writes ``output`` (JSON, every response) if given.

    Raises ValueError when ``output`` exists: an earlier evaluation is never overwritten.
    """
    from megatron_apo.rollout.build import build_engine

    if output is not None and Path(output).exists():
        raise ValueError(f"--output {output}: exists already; give another name or move it away")
    if output is not None and not Path(output).parent.is_dir():
        raise ValueError(f"--output {output}: no directory {Path(output).parent}; make it first")
    builder = PromptBuilder(config.model.path, config.data)
    prompts = read_prompts(builder, config.data.test, config.data.image_root)
    engine = build_engine(config, builder.forbidden_token_ids, in_process=True)
    try:
        with Scorer(config.rewards) as scorer:
            result, groups = evaluate_prompts(engine, scorer, prompts, config)
    finally:
        engine.close()
    print(plain_table({Path(config.model.path).name: result}))
    if output is not None:
        responses = [
            {
                "id": group.prompt.id,
                "question": group.prompt.question,
                "gold": group.prompt.gold,
                "response": rollout.text,
                "outcome": score.outcome,
            }
            for group in groups
            for rollout, score in zip(group.rollouts, group.scores, strict=True)
        ]
        Path(output).write_text(
            json.dumps({"evaluation": asdict(result), "responses": responses}, indent=2, ensure_ascii=False),
            encoding="utf-8",
        )
