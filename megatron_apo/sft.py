"""The supervised loop: imitates the rows' demonstrations through the same model, packing and loss adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import yaml

from megatron_apo.config import Config
from megatron_apo.config_loading import dump_config
from megatron_apo.data.costs import CostModel
from megatron_apo.data.distribution import distribute
from megatron_apo.data.order import PromptStream
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.reading import check_unchanged, write_data_files
from megatron_apo.data.scan import PromptSet
from megatron_apo.evaluation.evaluate import read_prompts
from megatron_apo.objective.reductions import token_weights
from megatron_apo.observability.console import say
from megatron_apo.observability.progress import Progress
from megatron_apo.observability.timers import PhaseTimer
from megatron_apo.observability.writers import Writers, open_writers
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.parallel.scatter import scatter_work
from megatron_apo.parallel.status import phase
from megatron_apo.planning.work import training_costs
from megatron_apo.records import Prompt, ReplicaWork, TrainingSample
from megatron_apo.run_directory import RunDirectory, check_on_controller, claim
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.export import export_model
from megatron_apo.training.forward_step import head_settings
from megatron_apo.training.setup import build_training_state, check_model_layout
from megatron_apo.training.update import Trainer, TrainerSettings


def supervised_samples(
    prompts: Sequence[Prompt],
    builder: PromptBuilder,
    *,
    reduction: str = "token_mean",
    microbatch_sequences: int = 2,
) -> list[TrainingSample]:
    """Samples that imitate each prompt's demonstration, weighted for a mean over this batch.

    ``microbatch_sequences`` is for the reduction "microbatch_token_mean".

    Raises ValueError for a prompt without a demonstration.
    """
    responses = []
    for prompt in prompts:
        if not prompt.demonstration:
            raise ValueError(f"row {prompt.id!r} has no demonstration: supervised training needs one in every row")
        responses.append(builder.response_ids(prompt.demonstration))
    lengths = torch.tensor([len(response) for response in responses])
    weights = token_weights(
        lengths,
        torch.ones(len(responses), dtype=torch.bool),
        kind=reduction,
        microbatch_sequences=microbatch_sequences,
    ).tolist()
    return [
        TrainingSample(prompt.token_ids, response, prompt.images, policy_weight=weight)
        for prompt, response, weight in zip(prompts, responses, weights, strict=True)
    ]


def _works(
    prompts: Sequence[Prompt], builder: PromptBuilder, config: Config, groups: Groups, costs: CostModel
) -> list[ReplicaWork]:
    samples = supervised_samples(
        prompts,
        builder,
        reduction=config.objective.reduction,
        microbatch_sequences=config.objective.microbatch_sequences,
    )
    return distribute(
        samples,
        [range(len(samples))],
        tokens_per_microbatch=config.training.tokens_per_microbatch,
        data_parallel=groups.data_size,
        sequence_multiple=config.parallel.sequence_multiple,
        microbatch_multiple=config.parallel.microbatch_multiple,
        pipeline=config.parallel.pipeline,
        costs=costs,
        scalars={"kl_coefficient": 0.0},
    )


def _read(config: Config, builder: PromptBuilder, *, evaluates: bool) -> dict[str, PromptSet]:
    """The rows by setting, each with a demonstration to imitate."""
    data, root = config.data, config.data.image_root
    read = {"data.train": read_prompts(builder, data.train, root, setting="data.train", demonstrations=True)}
    if evaluates:
        read["data.validation"] = read_prompts(
            builder,
            data.validation,
            root,
            setting="data.validation",
            demonstrations=True,
            limit=config.evaluation.limit,
        )
    return read


def _train(config: Config, groups: Groups, directory: RunDirectory, *, resume: bool) -> None:
    builder = PromptBuilder(config.model.path, config.data)
    state = build_training_state(config, groups, updates=config.run.steps, reference=False)
    settings = TrainerSettings(
        config.objective,
        # Imitation is of the plain softmax, whatever temperature the policy is sampled at later.
        replace(head_settings(config, builder.forbidden_token_ids, state.shape.vocab), temperature=1.0),
        supervised=True,
        max_skipped_in_a_row=config.training.max_skipped_in_a_row,
    )
    trainer = Trainer(state, groups, settings, pixel_values=builder.pixel_values)
    done = LoopState(0, 0, 0)
    if resume:
        done = load_checkpoint(state, groups, directory.checkpoints)
        trainer.skipped_in_a_row = done.skipped_in_a_row
    prompts: Sequence[Prompt] = []
    writers: Writers | None = None
    stream: PromptStream | None = None
    evaluates = bool(config.run.evaluate_every and config.data.validation)
    validation_works: list[ReplicaWork] | None = None
    costs = training_costs(state.shape, config.model)
    with phase(groups, "start"):
        if groups.is_controller:
            read = _read(config, builder, evaluates=evaluates)
            prompts = read["data.train"]
            if evaluates:
                validation_works = _works(list(read["data.validation"]), builder, config, groups, costs)
            if resume:
                check_unchanged(directory.root, read)
            claim(config, resume=resume)
            write_data_files(directory.root, read)
            writers = open_writers(
                directory.root,
                config.logging,
                done.step if resume else None,
                settings=yaml.safe_load(dump_config(config)),
            )
            stream = PromptStream(
                read["data.train"].sizes,
                config.training.batch_size,
                config.run.seed,
                config.data.shuffle,
                config.data.weights,
            )
    validation = scatter_work(validation_works, groups) if evaluates else None
    shown = config.logging.progress and groups.is_controller
    timer = PhaseTimer()
    with Progress(config.run.steps, initial=done.step, label="sft", enabled=shown) as progress:
        for step in range(done.step + 1, config.run.steps + 1):
            timer.collect()
            works = None
            with phase(groups, "batch"):
                if stream is not None:
                    with timer.phase("batch"):
                        works = _works([prompts[i] for i in stream.indices(step - 1)], builder, config, groups, costs)
            work = scatter_work(works, groups)
            with timer.phase("update"):
                metrics = trainer.step(work)[0]
            seconds = timer.collect()
            if validation is not None and step % config.run.evaluate_every == 0:
                metrics |= trainer.evaluate(validation)
            with phase(groups, "log"):  # a full disk on the controller must not leave the others waiting
                if writers is not None:
                    kept = {name: value for name, value in metrics.items() if not name.startswith("count/")} | seconds
                    writers.write(step, kept)
                    progress.update(step, kept)
            if step == config.run.steps or (config.run.save_every and step % config.run.save_every == 0):
                loop = LoopState(step, step, step, trainer.skipped_in_a_row)
                save_checkpoint(state, groups, directory.checkpoints, loop, keep=config.run.keep_checkpoints)
    export_model(state, groups, config.model.path, directory.export)
    with phase(groups, "end"):
        if writers is not None:
            writers.close()
    if groups.is_controller:
        say(f"exported {directory.export}")


def sft(config: Config, *, resume: bool) -> None:
    """Supervised training as ``config`` says: ``run.steps`` updates of ``training.batch_size`` rows, then an export.

    Raises ValueError for what the user can mend.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    check_model_layout(config)
    groups = initialise(config.parallel, seed=config.run.seed)
    try:
        _train(config, groups, check_on_controller(config, groups, resume=resume), resume=resume)
    finally:
        shut_down()
