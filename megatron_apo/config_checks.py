"""Refuses settings that cannot work, alone or beside another; the objective's own are in ``objective/validation.py``.

Knows no torch. Every refusal is a ValueError of the form ``section.key=value: what it must be; why, or what to do``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_apo import wording
from megatron_apo.config import Config
from megatron_apo.data.benchmarks import FORMATS
from megatron_apo.objective.validation import has_kl, validate_objective


def leaves(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


_Check = tuple[str, Callable[[Any], bool], str]


def _at_least(minimum: int, reason: str, *keys: str) -> list[_Check]:
    return [(key, lambda value: value >= minimum, f"must be at least {minimum}{reason}") for key in keys]


def _one_of(key: str, *choices: str) -> _Check:
    return key, lambda value: value in choices, f"must be one of {', '.join(choices)}"


def _above_zero(*keys: str) -> list[_Check]:
    return [(key, lambda value: value > 0, "must be above 0") for key in keys]


def _shares(*alarms: str) -> list[_Check]:
    reason = "must lie between 0 (none) and 1; it is a limit on a share"
    return [
        (f"alarms.{action}.{name}", lambda share: 0 <= share <= 1, reason)
        for action in ("warn", "stop")
        for name in alarms
    ]


_ALARMS = ("entropy", "kl", "kl_old", "logprob_difference", "logprob_difference_max", "weight_mean")  # no shares
_CHECKS: list[_Check] = [
    ("run.directory", bool, "must name the directory that the run writes"),
    *_at_least(1, "", "run.steps", "parallel.tensor", "parallel.pipeline", "parallel.context"),
    *_at_least(1, "", "parallel.virtual_pipeline"),
    *_at_least(0, " (0: as many as the other stages)", "parallel.first_stage_layers"),
    *_at_least(1, "", "model.vision_ffn_multiple"),
    *_at_least(1, "", "data.max_prompt_tokens", "sampling.max_tokens", "rollout.prompts_per_step"),
    *_at_least(1, "", "rollout.max_num_sequences", "rollout.timeout_seconds", "parallel.timeout_seconds"),
    *_at_least(1, "", "rewards.workers", "training.updates_per_rollout", "training.epochs_per_rollout"),
    *_at_least(1, "", "training.tokens_per_microbatch", "training.logits_chunk_tokens", "training.batch_size"),
    *_at_least(1, "", "evaluation.samples", "evaluation.batch"),
    *_at_least(1, " (1: the first one stops the run)", "training.max_skipped_in_a_row"),
    *_at_least(1, "; the newest is what --resume continues", "run.keep_checkpoints"),
    *_at_least(0, "", "run.seed", "run.threads", "data.min_pixels", "data.max_pixels", "evaluation.limit"),
    *_at_least(0, " (0: no refills)", "rollout.refill_rounds"),
    *_at_least(0, " (0: never)", "run.save_every", "run.evaluate_every"),
    *_at_least(0, "", "optimizer.warmup_steps", "optimizer.minimum_learning_rate", "optimizer.weight_decay"),
    *_at_least(0, " (0: no clipping)", "optimizer.clip_gradient"),
    *_at_least(0, " (0: greedy)", "evaluation.temperature"),
    *_at_least(0, "", "rewards.accuracy", "rewards.format", "rewards.tolerance", "logging.report_samples"),
    *_at_least(1, "", "alarms.steps"),
    *_shares("zero_variance_groups", "clip_fraction", "truncated", "effective_sample_size", "corrected"),
    *_at_least(0, " (0: none)", *(f"alarms.{action}.{name}" for action in ("warn", "stop") for name in _ALARMS)),
    *_above_zero("sampling.temperature", "rollout.kv_cache_gib", "rewards.timeout_seconds"),
    *_above_zero("optimizer.learning_rate", "optimizer.epsilon", "sync.logprob_gate"),
    ("sampling.top_p", lambda p: p == 1, "must be 1; log-probabilities are trained under the whole distribution"),
    ("rollout.gpu_memory_utilization", lambda u: 0 < u < 1, "must lie between 0 and 1; training needs the rest"),
    ("data.max_bad_share", lambda share: 0 <= share < 1, "must lie between 0 and 1; it is a share of the rows"),
    (
        "data.weights",
        lambda weights: all(0.001 <= weight <= 100 for weight in weights),
        "must each lie between 0.001 and 100; they are relative",
    ),
    *_at_least(0, " (0: one for each core, eight at most)", "data.workers"),
    ("data.pixel_workers", lambda n: 0 <= n <= 64, "must lie between 0 (each rank cuts its pictures itself) and 64"),
    (
        "data.format",
        lambda name: name in ("", *FORMATS),
        f"must be one of {', '.join(FORMATS)}, or empty for rows as docs/data.md has them",
    ),
    (
        "data.formats",
        lambda names: all(name in ("", *FORMATS) for name in names.values()),
        f"each must be one of {', '.join(FORMATS)}, or empty for rows as docs/data.md has them",
    ),
    ("data.cache", bool, "must name a directory for pictures that come as bytes"),
    *_at_least(512, " (a grader's libraries alone take as much)", "rewards.memory_mib"),
    ("rewards.user", lambda user: all(map(math.isfinite, user.values())), "each weight must be a finite number"),
    ("rewards.max_error_rate", lambda r: 0 <= r <= 1, "must lie between 0 and 1; it is a share of the responses"),
    ("optimizer.beta1", lambda b: 0 <= b < 1, "must lie between 0 and 1"),
    ("optimizer.beta2", lambda b: 0 <= b < 1, "must lie between 0 and 1"),
    _one_of("model.dtype", "float32", "bfloat16"),
    _one_of("model.layer_spec", "local", "transformer_engine"),
    _one_of("model.reference", "resident", "host"),
    _one_of("model.recompute", "none", "selective", "full"),
    _one_of("rollout.engine", "vllm", "transformers"),
    _one_of("rollout.placement", "auto", "in_process", "process"),
    _one_of("optimizer.schedule", "constant", "linear", "cosine"),
    _one_of("logging.wandb", "disabled", "offline", "online"),
]


def validate(config: Config) -> None:
    """ValueError for the first setting that cannot work, alone or beside another."""
    values = dict(leaves(config, ""))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{key}={value}: must be a finite number; what is computed with it would soon be infinite or no number "
                "(for next to no bound give a large one)"
            )
    for key, accepts, reason in _CHECKS:
        if not accepts(values[key]):
            raise ValueError(f"{key}={values[key]}: {reason}")
    validate_objective(config.objective, config.sampling.group_size, config.run.steps)
    _check_stops(config)
    data, optimizer = config.data, config.optimizer
    if data.weights and len(data.weights) != len(data.train):
        raise ValueError(
            f"data.weights={list(data.weights)}: must have one weight for each of the {len(data.train)} file(s) of "
            "data.train, or none at all"
        )
    if data.min_pixels and data.max_pixels and data.min_pixels > data.max_pixels:
        raise ValueError(f"data.min_pixels={data.min_pixels}: must not exceed data.max_pixels={data.max_pixels}")
    if optimizer.minimum_learning_rate > optimizer.learning_rate:
        raise ValueError(
            f"optimizer.minimum_learning_rate={optimizer.minimum_learning_rate}: must not exceed "
            f"optimizer.learning_rate={optimizer.learning_rate}"
        )
    if config.evaluation.samples > 1 and config.evaluation.temperature == 0:
        raise ValueError(
            f"evaluation.samples={config.evaluation.samples}: must be 1 with evaluation.temperature=0; greedy "
            "responses are all the same"
        )
    updates, prompts = config.training.updates_per_rollout, config.rollout.prompts_per_step
    if updates > prompts:
        raise ValueError(
            f"training.updates_per_rollout={updates}: must not exceed rollout.prompts_per_step={prompts}; an update "
            "needs a prompt of its own"
        )
    if config.rollout.refill_rounds and not config.objective.drop_zero_variance:
        raise ValueError(
            f"rollout.refill_rounds={config.rollout.refill_rounds}: needs objective.drop_zero_variance=true; it draws "
            "others for the groups that this drops"
        )
    model = config.model
    if model.freeze_vision and model.freeze_merger and model.freeze_language:
        raise ValueError(
            "model.freeze_language=true: must be false with model.freeze_vision=true and model.freeze_merger=true; "
            "nothing would be trained"
        )
    if config.parallel.sequence and config.parallel.tensor == 1:
        raise ValueError(
            "parallel.sequence=true: must be false with parallel.tensor=1; it splits the sequence over the tensor ranks"
        )


def _check_stops(config: Config) -> None:
    """A limit that is to stop the run must be one that can: what it watches is measured."""
    stop, objective = config.alarms.stop, config.objective
    if stop.kl and not has_kl(objective.kl):
        raise ValueError(
            f"alarms.stop.kl={stop.kl:g}: must be 0 without a KL coefficient, as there is no initial policy to measure "
            "kl/raw against; set alarms.stop.kl_old, or a small objective.kl.coefficient"
        )
    if stop.corrected and objective.mismatch.correction == "none":
        raise ValueError(
            f"alarms.stop.corrected={stop.corrected:g}: must be 0 with objective.mismatch.correction=none, which "
            "corrects nothing; set alarms.stop.effective_sample_size, or a correction"
        )


def require(config: Config, *keys: str) -> None:
    """ValueError for the first of these settings that is empty; for what only some commands need."""
    values = dict(leaves(config, ""))
    for key in keys:
        if values[key] in ("", ()):
            raise ValueError(f"{key}: is required; set it in the YAML file or with --{key}=…")


def check_files(config: Config) -> None:
    """ValueError for the first path among the settings that leads nowhere: told before a run writes anything."""
    if config.model.path and not Path(config.model.path, "config.json").is_file():
        raise ValueError(
            f"model.path={config.model.path}: no config.json there; give the directory of a Hugging Face checkpoint"
        )
    named = [("train", path) for path in config.data.train]
    named += [("validation", config.data.validation), ("test", config.data.test)]
    for key, path in named:
        if path and not Path(path).exists():
            raise ValueError(
                f"data.{key}={path}: no such file; give rows as JSON lines, JSON, parquet or saved datasets"
            )
    for key, path in (("data.image_root", config.data.image_root), ("rollout.replay", config.rollout.replay)):
        if path and not Path(path).is_dir():
            raise ValueError(f"{key}={path}: no such directory")


def check_formats(config: Config, others: Sequence[str] = ()) -> None:
    """ValueError for a key of ``data.formats`` that names no file of the settings, nor any of ``others``.

    Such a file would be read in the format of the rest, and that be noticed late or never.
    """
    data = config.data
    files = [*dict.fromkeys(file for file in (*data.train, data.validation, data.test, *others) if file)]
    for name in data.formats:
        if name not in files:
            raise ValueError(
                f"data.formats.{name}: names none of the data files, which are {', '.join(files) or 'none'}; write it "
                f"as it is written there{wording.nearest(name, files)}"
            )


def check_purpose(config: Config, *, supervised: bool) -> None:
    """ValueError for an objective that ``train`` (or, ``supervised``, ``sft``) has no use for."""
    if supervised and config.objective.reduction == "constant":
        raise ValueError(
            "objective.reduction=constant: must be another with sft; it divides by the longest response that sampling "
            "could draw, and nothing is sampled"
        )
    if not supervised and config.objective.name == "sft":
        raise ValueError(
            "objective.name=sft: is for demonstrations; run the command sft, or choose an objective of rewards"
        )
    rewards = config.rewards
    paid = rewards.accuracy or rewards.format or any(rewards.user.values())
    if not supervised and not paid and config.objective.overlong.policy != "punish":
        raise ValueError(
            "rewards.accuracy=0: must be above 0 with rewards.format=0 and no rewards.user; every response would earn "
            "the same and teach nothing"
        )


def notices(config: Config) -> list[str]:
    """Of settings that work and hardly do what was meant: ``section.key=value: …``, to be shown before the run."""
    kl = config.objective.kl
    if kl.estimator == "k1" and kl.placement == "loss" and has_kl(kl):
        return [
            "objective.kl.estimator=k1: its gradient in the loss is 0 in the mean and holds no policy near the initial "
            "one; use k3 or k2, or objective.kl.placement=reward"
        ]
    return []


def check_evaluation(config: Config) -> None:
    """ValueError when evaluations during training are asked for that would not take place."""
    every = config.run.evaluate_every
    if every and not config.data.validation and not config.rollout.replay:
        raise ValueError(f"run.evaluate_every={every}: needs data.validation; give rows to evaluate, or set 0")


def check_length(config: Config) -> None:
    """ValueError when the longest prompt and response together exceed the positions of the model in ``model.path``."""
    path = Path(config.model.path, "config.json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={config.model.path}: its config.json cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path}: holds {wording.kind(settings)}, expected an object; copy the file again from where the "
            "weights came from"
        )
    nested = settings.get("text_config")
    positions = (nested if isinstance(nested, dict) else {}).get(
        "max_position_embeddings", settings.get("max_position_embeddings")
    )
    prompt, response = config.data.max_prompt_tokens, config.sampling.max_tokens
    if isinstance(positions, int) and prompt + response > positions:
        raise ValueError(
            f"data.max_prompt_tokens={prompt} + sampling.max_tokens={response}: must not exceed the {positions} "
            f"positions of {config.model.path}; lower one of them"
        )
