"""``python -m megatron_apo evaluate``, and the evaluations before, during and after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tqdm import tqdm

from megatron_apo.config import Config
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.reading import read_data
from megatron_apo.data.scan import PromptSet
from megatron_apo.evaluation.directory import appending, begin, check_place, write_results
from megatron_apo.evaluation.identity import evaluation_settings
from megatron_apo.evaluation.responses import AnsweredRow, answered_row
from megatron_apo.evaluation.scoring import Evaluation, evaluate_rows
from megatron_apo.evaluation.tables import detail_table, model_name
from megatron_apo.observability.console import say
from megatron_apo.observability.evaluation_page import write_evaluation_page
from megatron_apo.records import Prompt, RolloutGroup
from megatron_apo.rewards.accuracy import check_row
from megatron_apo.rewards.pool import RewardError, Scorer, check_user_rewards
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
        check_gold=check_row,
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
    drawn = [group for groups in _draw(engine, _chosen(prompts, config), config) for group in groups]
    scored = scorer.score(drawn)
    return evaluate_rows([answered_row(group) for group in scored], seed=config.run.seed), scored


def evaluate(config: Config, *, output: str | None) -> None:
    """Evaluates ``model.path`` on ``data.test``; prints a table and keeps every response in ``output`` if given.

    In a directory that holds the beginning of the same evaluation it goes on where that stopped. Raises ValueError for
    a directory of anything else, and RewardError, with everything written, when more than ``rewards.max_error_rate``
    of the responses could not be graded.
    """
    if output is not None:
        check_place(output)
    check_user_rewards(config.rewards)
    builder = PromptBuilder(config.model.path, config.data)
    prompts = _chosen(read_prompts(builder, config.data.test, config.data.image_root), config)
    if output is None:
        rows = [row for batch in _answers(config, builder, prompts, done=0) for row in batch]
        result = evaluate_rows(rows, seed=config.run.seed)
    else:
        directory = begin(output, evaluation_settings(config, prompts, evaluation_sampling(config)))
        with appending(directory, prompts, batch=config.evaluation.batch, samples=config.evaluation.samples) as kept:
            if kept.rows:
                say(f"{directory}: goes on after {len(kept.rows)} of {len(prompts)} rows")
            for batch in _answers(config, builder, prompts, done=len(kept.rows)):
                kept.append(batch)
            rows = kept.rows
        result = evaluate_rows(rows, seed=config.run.seed)
        write_results(directory, result)
        say(f"report: {write_evaluation_page(directory)}")
    print(detail_table(model_name(config.model.path), result))
    _check_error_rate(rows, config.rewards.max_error_rate)


def _chosen(prompts: Sequence[Prompt], config: Config) -> Sequence[Prompt]:
    return prompts[: config.evaluation.limit] if config.evaluation.limit else prompts


def _answers(
    config: Config, builder: PromptBuilder, prompts: Sequence[Prompt], *, done: int
) -> Iterator[list[AnsweredRow]]:
    """The answered rows from ``done`` on, batch by batch; no engine is started when none is left."""
    from megatron_apo.rollout.build import build_engine

    if done >= len(prompts):
        return
    most_images = max(len(prompt.images) for prompt in prompts)
    engine = build_engine(config, builder.forbidden_token_ids, in_process=True, max_images=max(1, most_images))
    try:
        # An answer that cannot be graded must not lose the others: the share of errors is looked at in the end.
        with Scorer(replace(config.rewards, max_error_rate=1.0)) as scorer:
            for reward in scorer.user_rewards:
                say(f"reward {reward.source}: SHA-256 {reward.sha256}")
            told = False
            for groups in _draw(engine, prompts, config, done=done):
                scored = scorer.score(groups)
                if scorer.first_error and not told:
                    say(f"a response could not be graded: {scorer.first_error}")
                    told = True
                yield [answered_row(group) for group in scored]
    finally:
        engine.close()


def _draw(
    engine: RolloutEngine, prompts: Sequence[Prompt], config: Config, *, done: int = 0
) -> Iterator[list[RolloutGroup]]:
    """The responses to the prompts from ``done`` on, ``evaluation.batch`` prompts at a time."""
    sampling = evaluation_sampling(config)
    progress = tqdm(total=len(prompts), initial=done, desc="evaluating", unit="row", delay=2, leave=False, disable=None)
    with progress:
        for start in range(done, len(prompts), config.evaluation.batch):
            batch = prompts[start : start + config.evaluation.batch]
            drawn = engine.generate(batch, replace(sampling, first_position=start))
            yield [RolloutGroup(prompt, tuple(rollouts)) for prompt, rollouts in zip(batch, drawn, strict=True)]
            progress.update(len(batch))


def _check_error_rate(rows: Sequence[AnsweredRow], most: float) -> None:
    """RewardError when more than ``most`` of the responses could not be graded."""
    errors = [(row.id, one.answer) for row in rows for one in row.responses if one.outcome == "grader_error"]
    responses = sum(len(row.responses) for row in rows)
    if len(errors) > most * responses:
        raise RewardError(
            f"{len(errors)} of {responses} responses could not be graded, more than rewards.max_error_rate={most:g} "
            f"allows: the accuracy is too low by up to as many. For example row {errors[0][0]!r}, answer "
            f"{(errors[0][1] or '')[:80]!r}"
        )
