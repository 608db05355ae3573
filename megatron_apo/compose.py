"""Puts the concrete parts together for one run: the command line's ``train``. Import it after
``platform.megatron_on_cpu.install()``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import yaml

from megatron_apo.config import Config
from megatron_apo.config_loading import dump_config
from megatron_apo.data.costs import CostModel
from megatron_apo.data.order import PromptStream
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.reading import check_unchanged, write_data_files
from megatron_apo.data.scan import PromptSet
from megatron_apo.evaluation.evaluate import evaluate_prompts, evaluation_sampling, read_prompts
from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import plain_table, read_evaluations, write_evaluations
from megatron_apo.loop import Controller, LiveRollouts, LoopParts, run_loop, step_sampling
from megatron_apo.objective.objective import needs_reference, scoring_passes
from megatron_apo.objective.samples import ShapedStep
from megatron_apo.observability.alarms import AlarmError, Alarms, build_alarms, stop_metrics
from megatron_apo.observability.console import say
from megatron_apo.observability.progress import Progress
from megatron_apo.observability.report import write_report
from megatron_apo.observability.writers import Writers, open_writers, read_metrics
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.parallel.status import phase
from megatron_apo.planning.work import training_costs
from megatron_apo.records import RolloutGroup
from megatron_apo.rewards.overlong import overlong_punishment
from megatron_apo.rewards.pool import Scorer, check_user_rewards
from megatron_apo.rewards.user_rewards import record_user_rewards
from megatron_apo.rollout.build import build_engine
from megatron_apo.rollout.engine import RolloutEngine
from megatron_apo.rollout.record_files import write_step
from megatron_apo.rollout.replay import ReplayRollouts
from megatron_apo.run_directory import RunDirectory, check_on_controller, claim
from megatron_apo.training.checkpoint import LoopState, checkpoint_path, load_checkpoint, save_checkpoint
from megatron_apo.training.export import export_model
from megatron_apo.training.forward_step import head_settings, unwrap
from megatron_apo.training.setup import TrainingState, build_training_state, check_model_layout, describe_optimizer
from megatron_apo.training.update import Trainer, TrainerSettings
from megatron_apo.weight_sync.export import export_tensors
from megatron_apo.weight_sync.push import push_weights
from megatron_apo.wording import counted
from model_providers.qwen_vl.weight_map import hf_names


class RunLog:
    """A step's numbers and responses: to the writers, the rollouts directory, the progress bar and the alarms."""

    def __init__(
        self, config: Config, directory: RunDirectory, writers: Writers, progress: Progress, alarms: Alarms
    ) -> None:
        self._config = config
        self._alarms = alarms
        self._directory = directory
        self._writers = writers
        self._progress = progress

    def record(
        self, step: int, metrics: dict[str, float], groups: Sequence[RolloutGroup], shaped: ShapedStep, version: int
    ) -> str:
        """Writes step ``step``; ``version`` is that of the weights which drew ``groups``.

        Returns why the run must stop, when a metric stayed beyond a limit of ``alarms.stop``, and else an empty text.
        """
        write_step(
            self._directory.rollouts,
            step,
            groups,
            weight_version=version,
            sampling=step_sampling(self._config, step),
            shaping=shaped.shaping,
        )
        self._alarms, events = self._alarms.after(metrics)
        metrics = metrics | self._alarms.metrics() | stop_metrics(events)
        self._writers.write(step, metrics)
        self._progress.update(step, metrics)
        for event in events:
            if event.kind != "stop":
                self._progress.message(f"step {step}: {event.message}")
        stops = [event.message for event in events if event.kind == "stop"]
        if not stops:
            return ""
        return (
            f"step {step}: {'; '.join(stops)}. The run stops as alarms.stop says, and stands as it is in "
            f"{checkpoint_path(self._directory.checkpoints, step)}: go on with --resume and other limits, or remove "
            "that directory to --resume from the checkpoint before it"
        )

    def close(self) -> None:
        """Flushes and ends writers and progress bar."""
        self._progress.close()
        self._writers.close()


class Run:
    """One training run on this rank; the controller's parts are None elsewhere, the engine also in a replay."""

    def __init__(self, config: Config, groups: Groups, directory: RunDirectory) -> None:
        self.config = config
        self.groups = groups
        self.directory = directory
        self.builder = PromptBuilder(config.model.path, config.data)
        training = config.training
        self.updates_per_step = training.updates_per_rollout * training.epochs_per_rollout
        self.state: TrainingState = build_training_state(
            config,
            groups,
            updates=config.run.steps * self.updates_per_step,
            reference=needs_reference(config.objective),
        )
        workers = config.data.pixel_workers if groups.first_stage else 0  # later stages see no pixels
        self.pixels = self.builder.pixel_source(workers=workers, device=groups.device)
        self.trainer = Trainer(
            self.state,
            groups,
            TrainerSettings(
                config.objective,
                head_settings(config, self.builder.forbidden_token_ids, self.state.shape.vocab),
                max_skipped_in_a_row=training.max_skipped_in_a_row,
            ),
            pixel_values=self.pixels,
        )
        self.engine: RolloutEngine | None = None
        self.scorer: Scorer | None = None
        self.log: RunLog | None = None
        self._evaluation_prompts: dict[str, PromptSet] = {}

    def start_controller(self, resume_step: int | None) -> Controller | None:
        """Builds what only rank 0 holds: data, engine, grader, writers."""
        controller = None
        with phase(self.groups, "start"):
            if self.groups.is_controller:
                controller = self._build_controller(resume_step)
        return controller

    def _build_controller(self, resume_step: int | None) -> Controller:
        config, root = self.config, self.config.data.image_root
        prompts = read_prompts(self.builder, config.data.train, root, setting="data.train")
        read = {"data.train": prompts}
        for setting, path in (("data.validation", config.data.validation), ("data.test", config.data.test)):
            if path and path not in self._evaluation_prompts:
                found = read_prompts(self.builder, path, root, setting=setting, limit=config.evaluation.limit)
                read[setting] = self._evaluation_prompts[path] = found
        if resume_step is not None:
            check_unchanged(self.directory.root, read)
        stream = PromptStream(
            prompts.sizes, config.rollout.prompts_per_step, config.run.seed, config.data.shuffle, config.data.weights
        )
        self.scorer = Scorer(config.rewards, overlong=overlong_punishment(config))
        source: LiveRollouts | ReplayRollouts
        if config.rollout.replay:
            source = ReplayRollouts(config.rollout.replay)
        else:
            alone = self.groups.world_size == 1
            placement = config.rollout.placement
            if placement == "in_process" and not alone:
                raise ValueError(
                    f"rollout.placement=in_process: needs a single process, this job has {self.groups.world_size}; "
                    "use process or auto"
                )
            in_process = alone if placement == "auto" else placement == "in_process"
            say(f"starting the {config.rollout.engine} engine{'' if in_process else ' in a process of its own'} …")
            self.engine = build_engine(
                config,
                self.builder.forbidden_token_ids,
                in_process=in_process,
                max_images=max(found.most_images for found in (prompts, *self._evaluation_prompts.values())),
            )
            source = LiveRollouts(self.engine, config)
        # Last: a run that could not start leaves no directory behind.
        claim(config, resume=resume_step is not None)
        write_data_files(self.directory.root, read)
        record_user_rewards(self.scorer.user_rewards, self.directory.user_rewards)
        digests = {reward.source: reward.sha256 for reward in self.scorer.user_rewards}
        for name, sha256 in digests.items():
            say(f"reward {name}: SHA-256 {sha256}")
        writers = open_writers(
            self.directory.root,
            config.logging,
            resume_step,
            settings={**yaml.safe_load(dump_config(config)), "user_rewards_sha256": digests},
        )
        alarms = build_alarms(config.alarms, read_metrics(self.directory.root))
        progress = Progress(config.run.steps, initial=resume_step or 0, label="train", enabled=config.logging.progress)
        self.log = RunLog(config, self.directory, writers, progress, alarms)
        return Controller(prompts, stream, source, self.scorer, self.log)

    def sync(self, version: int) -> dict[str, float]:
        """Sends the trainer's weights to the engine and verifies what arrived."""
        if self.config.rollout.replay:
            return {}
        tensors = export_tensors([unwrap(chunk) for chunk in self.state.model], self.groups)
        metrics: dict[str, float] = {}
        if self.groups.world_size > 1:
            # The iterator is collective: exhaust it before anything on the controller alone can fail.
            tensors = iter([(name, tensor.clone()) for name, tensor in tensors])
        with phase(self.groups, "weight sync"):
            if self.engine is not None:
                report = push_weights(
                    self.engine,
                    version,
                    tensors,
                    hf_names(self.state.shape),
                    verify=self.config.sync.verify,
                )
                metrics = {"sync/version": float(report.version), "sync/seconds": report.seconds}
        return metrics

    def evaluate(self, path: str) -> tuple[Evaluation, list[RolloutGroup]] | None:
        """Evaluates the rows of ``path`` on the engine's present weights; None off the controller or in a replay."""
        result = None
        with phase(self.groups, "evaluation"):
            if self.engine is not None and self.scorer is not None and path:
                result = evaluate_prompts(self.engine, self.scorer, self._evaluation_prompts[path], self.config)
        return result

    def evaluate_validation(self, step: int) -> dict[str, float]:
        """The evaluation during training: metrics on the controller, empty elsewhere."""
        found = self.evaluate(self.config.data.validation)
        if found is None:
            return {}
        result = found[0]
        self._keep_responses("validation", step, found[1])
        say(f"step {step}: validation accuracy {result.accuracy:.3f} on {counted(result.rows, 'row', 'rows')}")
        return {"evaluation/accuracy": result.accuracy, "evaluation/response_length": result.mean_length}

    def evaluate_held_out(self, label: str) -> None:
        """Before and after: ``evaluations.json`` and a line on the terminal."""
        found = self.evaluate(self.config.data.test)
        if found is None:
            return
        write_evaluations(self.directory.root, {label: found[0]})
        self._keep_responses(label, 0, found[1])
        say(f"held-out accuracy {label} training: {found[0].accuracy:.3f} on {counted(found[0].rows, 'row', 'rows')}")

    def _keep_responses(self, label: str, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Writes an evaluation's responses, in the form of a step's rollouts, under ``evaluation/``."""
        write_step(
            self.directory.root / "evaluation" / label,
            step,
            groups,
            weight_version=self.engine.weight_version if self.engine else 0,
            sampling=evaluation_sampling(self.config),
        )

    def costs(self) -> CostModel:
        """What a step spends on sequences and images: the update, and what is scored before it."""
        scored = scoring_passes(self.config.objective, self.updates_per_step)
        return training_costs(self.state.shape, self.config.model, extra_forward=scored)

    def save(self, step: int, version: int, *, keep_all: bool = False) -> None:
        """Writes a checkpoint and removes the oldest beyond ``run.keep_checkpoints``, unless ``keep_all``."""
        updates, skipped = step * self.updates_per_step, self.trainer.skipped_in_a_row
        loop = LoopState(step=step, weight_version=version, updates=updates, skipped_in_a_row=skipped)
        keep = None if keep_all else self.config.run.keep_checkpoints
        save_checkpoint(self.state, self.groups, self.directory.checkpoints, loop, keep=keep)

    def close(self) -> None:
        """Ends log, engine, graders and the processes that cut pictures."""
        if self.log is not None:
            self.log.close()
        if self.engine is not None:
            self.engine.close()
        if self.scorer is not None:
            self.scorer.close()
        self.pixels.close()


def train(config: Config, *, resume: bool) -> None:
    """Trains by reinforcement learning as ``config`` says; everything it makes is in ``run.directory``.

    Raises ValueError for what the user can mend, WeightSyncError or LogprobGateError when engine and trainer differ,
    AlarmError when a limit of ``alarms.stop`` was crossed.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    check_model_layout(config)
    groups = initialise(config.parallel, seed=config.run.seed)
    run: Run | None = None
    try:
        directory = check_on_controller(config, groups, resume=resume)
        with phase(groups, "rewards"):
            if groups.is_controller:
                check_user_rewards(config.rewards)
        run = Run(config, groups, directory)
        _run(run, resume=resume)
    finally:
        if run is not None:
            run.close()
        shut_down()


def _run(run: Run, *, resume: bool) -> None:
    config = run.config
    loop = LoopState(step=0, weight_version=0, updates=0)
    if resume:
        loop = load_checkpoint(run.state, run.groups, run.directory.checkpoints)
        run.trainer.skipped_in_a_row = loop.skipped_in_a_row
    controller = run.start_controller(loop.step if resume else None)
    if controller is not None:
        say(f"optimizer: {describe_optimizer(run.state.optimizer)}; layout: {_layout(run)}")
    # Version 0 is pushed too: the engine read the same files, but only a verified sync says so.
    run.sync(loop.weight_version)
    if not resume:
        run.evaluate_held_out("before")
    parts = LoopParts(
        config=config,
        groups=run.groups,
        trainer=run.trainer,
        controller=controller,
        sync=run.sync,
        save=run.save,
        evaluate=run.evaluate_validation,
        enforce_gate=not config.rollout.replay,
        costs=run.costs(),
        pixels=run.pixels,
    )
    stopped = run_loop(parts, first_step=loop.step + 1, version=loop.weight_version)
    if not stopped:
        export_model(run.state, run.groups, config.model.path, run.directory.export)
        run.evaluate_held_out("after")
    with phase(run.groups, "report"):
        if controller is not None:
            evaluations = read_evaluations(run.directory.root)  # a replay has no engine to evaluate with
            if evaluations and not stopped:
                say(plain_table(evaluations))
            say(f"report: {write_report(run.directory.root)}")
    with phase(run.groups, "alarms"):
        if controller is not None and stopped:
            raise AlarmError(stopped)


def _layout(run: Run) -> str:
    groups, chunks = run.groups, len(run.state.model)
    stages = f"pipeline {groups.pipeline_size}" + (f" (of {chunks} chunks)" if chunks > 1 else "")
    return f"tensor {groups.tensor_size} x {stages} x context {groups.context_size} x data {groups.data_size}"
