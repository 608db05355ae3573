"""The supervised loop: imitates the rows' demonstrations through the same model, packing and loss adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import yaml

from megatron_apo.config import Config
from megatron_apo.config_loading import dump_config
from megatron_apo.data.costs import CostModel
from megatron_apo.data.distribution import distribute
from megatron_apo.data.order import PromptStream
from megatron_apo.data.pixels import images_of
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
from megatron_apo.parallel.scatter import scatter_work, share_images
from megatron_apo.parallel.status import phase
from megatron_apo.planning.work import training_costs
from megatron_apo.records import Prompt, PromptImage, ReplicaWork, TrainingSample
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


@dataclass(frozen=True)
class _Controller:
    """What only rank 0 holds."""

    prompts: PromptSet
    stream: PromptStream
    writers: Writers


class _Run:
    """One supervised run on this rank."""

    def __init__(self, config: Config, groups: Groups, directory: RunDirectory) -> None:
        self.config, self.groups, self.directory = config, groups, directory
        self.builder = PromptBuilder(config.model.path, config.data)
        self.state = build_training_state(config, groups, updates=config.run.steps, reference=False)
        head = head_settings(config, self.builder.forbidden_token_ids, self.state.shape.vocab)
        settings = TrainerSettings(
            config.objective,
            # Imitation is of the plain softmax, whatever temperature the policy is sampled at later.
            replace(head, temperature=1.0),
            supervised=True,
            max_skipped_in_a_row=config.training.max_skipped_in_a_row,
        )
        workers = config.data.pixel_workers if groups.first_stage else 0  # later stages see no pixels
        self.pixels = self.builder.pixel_source(workers=workers, device=groups.device)
        self.trainer = Trainer(self.state, groups, settings, pixel_values=self.pixels)
        self.evaluates = bool(config.run.evaluate_every and config.data.validation)
        self.costs = training_costs(self.state.shape, config.model)

    def start_controller(self, done: LoopState, *, resume: bool) -> tuple[_Controller, list[ReplicaWork] | None]:
        """Reads the data and opens the writers; and what evaluation will run on, by replica."""
        config, root = self.config, self.directory.root
        read = _read(config, self.builder, evaluates=self.evaluates)
        validation = self._works(list(read["data.validation"])) if self.evaluates else None
        if resume:
            check_unchanged(root, read)
        claim(config, resume=resume)
        write_data_files(root, read)
        resumed = done.step if resume else None
        writers = open_writers(root, config.logging, resumed, settings=yaml.safe_load(dump_config(config)))
        prompts, data = read["data.train"], config.data
        stream = PromptStream(prompts.sizes, config.training.batch_size, config.run.seed, data.shuffle, data.weights)
        return _Controller(prompts, stream, writers), validation

    def batch(self, controller: _Controller, step: int) -> list[ReplicaWork]:
        """The work of step ``step`` (from 1)."""
        return self._works([controller.prompts[i] for i in controller.stream.indices(step - 1)])

    def announce(self, controller: _Controller | None, work: ReplicaWork, step: int) -> None:
        """Lets this step's images be cut, and then those of the next, of which every rank hears; collective."""
        upcoming: list[PromptImage] = []
        if self.config.data.pixel_workers and step < self.config.run.steps:
            images = None
            with phase(self.groups, "images"):
                if controller is not None:
                    prompts = [controller.prompts[i] for i in controller.stream.indices(step)]
                    images = [image for prompt in prompts for image in prompt.images]
            upcoming = share_images(images, self.groups)
        self.pixels.ahead([*images_of(work), *upcoming])

    def evaluate(self, work: ReplicaWork) -> dict[str, float]:
        """The metrics of the validation rows, the same on every rank; collective."""
        self.pixels.ahead(images_of(work))
        return self.trainer.evaluate(work)

    def save(self, step: int) -> None:
        """Writes a checkpoint; collective."""
        loop = LoopState(step, step, step, self.trainer.skipped_in_a_row)
        keep = self.config.run.keep_checkpoints
        save_checkpoint(self.state, self.groups, self.directory.checkpoints, loop, keep=keep)

    def _works(self, prompts: Sequence[Prompt]) -> list[ReplicaWork]:
        return _works(prompts, self.builder, self.config, self.groups, self.costs)


def _train(run: _Run, *, resume: bool) -> None:
    config, groups = run.config, run.groups
    done = LoopState(0, 0, 0)
    if resume:
        done = load_checkpoint(run.state, groups, run.directory.checkpoints)
        run.trainer.skipped_in_a_row = done.skipped_in_a_row
    controller: _Controller | None = None
    validation_works: list[ReplicaWork] | None = None
    with phase(groups, "start"):
        if groups.is_controller:
            controller, validation_works = run.start_controller(done, resume=resume)
    validation = scatter_work(validation_works, groups) if run.evaluates else None
    _steps(run, controller, validation, done.step)
    export_model(run.state, groups, config.model.path, run.directory.export)
    with phase(groups, "end"):
        if controller is not None:
            controller.writers.close()
            say(f"exported {run.directory.export}")


def _steps(run: _Run, controller: _Controller | None, validation: ReplicaWork | None, done: int) -> None:
    config, groups, timer = run.config, run.groups, PhaseTimer()
    shown = config.logging.progress and groups.is_controller
    with Progress(config.run.steps, initial=done, label="sft", enabled=shown) as progress:
        for step in range(done + 1, config.run.steps + 1):
            timer.collect()
            works = None
            with phase(groups, "batch"):
                if controller is not None:
                    with timer.phase("batch"):
                        works = run.batch(controller, step)
            work = scatter_work(works, groups)
            run.announce(controller, work, step)
            with timer.phase("update"):
                metrics = run.trainer.step(work)[0]
            seconds = timer.collect() | {"time/pixels": run.pixels.take_seconds()}
            if validation is not None and step % config.run.evaluate_every == 0:
                metrics |= run.evaluate(validation)
                run.pixels.take_seconds()  # the step's alone are its own
            with phase(groups, "log"):  # a full disk on the controller must not leave the others waiting
                if controller is not None:
                    kept = {name: value for name, value in metrics.items() if not name.startswith("count/")} | seconds
                    controller.writers.write(step, kept)
                    progress.update(step, kept)
            if step == config.run.steps or (config.run.save_every and step % config.run.save_every == 0):
                run.save(step)


def sft(config: Config, *, resume: bool) -> None:
    """Supervised training as ``config`` says: ``run.steps`` updates of ``training.batch_size`` rows, then an export.

    Raises ValueError for what the user can mend.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    check_model_layout(config)
    groups = initialise(config.parallel, seed=config.run.seed)
    run: _Run | None = None
    try:
        run = _Run(config, groups, check_on_controller(config, groups, resume=resume))
        _train(run, resume=resume)
    finally:
        if run is not None:
            run.pixels.close()
        shut_down()
