"""Reads the settings: a YAML file, dotted overrides, the objective's preset beneath both; then checks every value.

Knows no torch. Every refusal is a ValueError of the form ``section.key=value: what it must be; why, or what to do``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from megatron_apo.config import Config
from megatron_apo.objective.presets import PRESETS
from megatron_apo.objective.validation import validate_objective

_Tree = dict[str, Any]
_Section = TypeVar("_Section")


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number (PyYAML alone reads text) and a repeated key is an error."""


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back equal."""


_FLOAT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> _Tree:
    mapping: _Tree = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise ValueError(f"{key}: written twice (line {key_node.start_mark.line + 1}); keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The settings of a run: defaults, then the objective's preset, then the file, then the overrides; validated.

    ``path``: a YAML file with the sections of ``Config``; None: the defaults alone. ``overrides``:
    ``--section.key=value`` (or without the dashes); the value is read as YAML, text as it stands (or quoted). An
    override of ``objective.name`` takes the file's objective out of its old preset: what the file repeats of that
    preset and of the defaults makes room for the new one, what it says otherwise stays. Raises ValueError for a file
    that cannot be read, an unknown key (the nearest is suggested), a wrong type and a value that cannot work.
    """
    tree = {} if path is None else _read(Path(path))
    given: _Tree = {}
    for override in overrides:
        _apply(given, override)
    _leave_preset(tree, given)
    for override in overrides:
        _apply(tree, override)
    objective = tree.get("objective")
    name = objective.get("name", "apo") if isinstance(objective, dict) else "apo"
    if isinstance(name, str):
        preset = {"objective": {"name": name, **_preset(name)}}
        tree = _merged(preset, tree)
    config = _build(Config, tree, "")
    validate(config)
    return config


def dump_config(config: Config) -> str:
    """YAML with every setting, in the order of the sections; ``load_config`` reads it back equal."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def known_keys() -> list[str]:
    """Every setting's dotted name, in order."""
    return [key for key, _ in _leaves(Config(), "")]


def _read(path: Path) -> _Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config={path}: cannot be read ({error}); give a YAML file of settings") from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--config={path}: is not valid YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"--config={path}: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"--config={path}: holds a {type(tree).__name__}; expected sections such as run and model")
    return tree


def _apply(tree: _Tree, override: str) -> None:
    """Writes one ``--section.key=value`` into the tree."""
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals:
        raise ValueError(f"{override}: expected --section.key=value, for example --run.steps=100")
    defaults = dict(_leaves(Config(), ""))
    if key not in defaults:
        raise ValueError(_unknown(key))
    is_text = isinstance(defaults[key], str)
    value: Any = text.strip()  # text needs no quotes here: --run.directory=2026, --data.instruction=Answer: a number #1
    if not is_text or value[:1] in ("'", '"'):
        try:
            read = yaml.load(text, Loader=_Loader) if text else ""
        except (yaml.YAMLError, ValueError) as error:
            if not is_text:
                raise ValueError(f"{key}={text}: is not a YAML value") from error
            read = value
        value = read if isinstance(read, str) or not is_text else value
    *sections, name = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ValueError(f"{section}={tree!r}: must be a section of settings")
    tree[name] = value


def _preset(name: str) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"objective.name={name}: must be one of {', '.join(PRESETS)}{_nearest(name, list(PRESETS))}")
    return PRESETS[name]


def _leave_preset(tree: _Tree, given: _Tree) -> None:
    """Drops from the file's ``tree`` what its own objective resolves to, when the overrides ``given`` name another.

    A written-out file (``dump_config``) holds every value of its preset: they would hold on to it under a new name.
    """
    objective, name = tree.get("objective"), given.get("objective", {}).get("name")
    if not isinstance(objective, dict):
        return
    own = objective.get("name", "apo")
    if name is not None and name != own and isinstance(own, str) and own in PRESETS:
        resolved = _merged(dataclasses.asdict(Config().objective), PRESETS[own])
        tree["objective"] = _without(objective, {**resolved, "name": own})


def _without(tree: _Tree, known: Mapping[str, Any]) -> _Tree:
    """``tree`` without the values that ``known`` holds too."""
    kept: _Tree = {}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(known.get(key), Mapping):
            kept[key] = _without(value, known[key])
        elif key not in known or value != known[key]:
            kept[key] = value
    return kept


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> _Tree:
    """``above`` over ``below``; sections are merged, values replaced."""
    result: _Tree = dict(below)
    for key, value in above.items():
        base = result.get(key)
        if isinstance(base, Mapping) and (value is None or isinstance(value, Mapping)):
            result[key] = _merged(base, value or {})  # None: a section with all its keys commented out
        else:
            result[key] = value
    return result


def _build(section: type[_Section], tree: Any, prefix: str) -> _Section:
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        raise ValueError(f"{prefix.rstrip('.')}={tree!r}: must be a section of settings, not a {type(tree).__name__}")
    types = get_type_hints(section)
    for key in tree:
        if key not in types:
            raise ValueError(_unknown(f"{prefix}{key}"))
    values: _Tree = {}
    for key, value in tree.items():
        kind = types[key]
        name = f"{prefix}{key}"
        is_section = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        values[key] = _build(kind, value, f"{name}.") if is_section else _typed(name, value, kind)
    return section(**values)


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool) or not isinstance(value, kind):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        hint = "; put it in quotes" if kind is str and value is not None else ""
        raise ValueError(f"{name}={value!r}: must be {expected} ({kind.__name__}), this is {_yaml_type(value)}{hint}")
    if kind is float and value != value:
        raise ValueError(f"{name}={value}: must be a number")
    return value


def _yaml_type(value: Any) -> str:
    names = {type(None): "empty", bool: "true/false", str: "text", dict: "a section", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def _unknown(key: str) -> str:
    keys = known_keys()
    if any(known.startswith(f"{key}.") for known in keys):
        return f"{key}: is a section; set one of its keys, such as {next(k for k in keys if k.startswith(f'{key}.'))}"
    elsewhere = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    sections = sorted({known.rpartition(".")[0] for known in keys})
    return f"{key}: unknown setting{_nearest(key, elsewhere or keys + sections)}"


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


def _leaves(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
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
    *_at_least(1, "", "evaluation.samples"),
    *_at_least(1, " (1: the first one stops the run)", "training.max_skipped_in_a_row"),
    *_at_least(1, "; the newest is what --resume continues", "run.keep_checkpoints"),
    *_at_least(0, "", "run.seed", "run.threads", "data.min_pixels", "data.max_pixels", "evaluation.limit"),
    *_at_least(0, " (0: no refills)", "rollout.refill_rounds"),
    *_at_least(0, " (0: never)", "run.save_every", "run.evaluate_every"),
    *_at_least(0, "", "optimizer.warmup_steps", "optimizer.minimum_learning_rate", "optimizer.weight_decay"),
    *_at_least(0, " (0: no clipping)", "optimizer.clip_gradient"),
    *_at_least(0, " (0: greedy)", "evaluation.temperature"),
    *_at_least(0, "", "rewards.accuracy", "rewards.format", "logging.report_samples"),
    *_at_least(1, "", "alarms.steps"),
    *_shares("zero_variance_groups", "clip_fraction", "truncated", "effective_sample_size", "corrected"),
    *_at_least(
        0, " (0: none)", *(f"alarms.{action}.{name}" for action in ("warn", "stop") for name in ("entropy", "kl"))
    ),
    *_above_zero("sampling.temperature", "rollout.kv_cache_gib", "rewards.timeout_seconds"),
    *_above_zero("optimizer.learning_rate", "optimizer.epsilon", "sync.logprob_gate"),
    ("sampling.top_p", lambda p: p == 1, "must be 1; log-probabilities are trained under the whole distribution"),
    ("rollout.gpu_memory_utilization", lambda u: 0 < u < 1, "must lie between 0 and 1; training needs the rest"),
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
    values = dict(_leaves(config, ""))
    for key, accepts, reason in _CHECKS:
        if not accepts(values[key]):
            raise ValueError(f"{key}={values[key]}: {reason}")
    validate_objective(config.objective, config.sampling.group_size, config.run.steps)
    data, optimizer = config.data, config.optimizer
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


def require(config: Config, *keys: str) -> None:
    """ValueError for the first of these settings that is empty; for what only some commands need."""
    values = dict(_leaves(config, ""))
    for key in keys:
        if values[key] == "":
            raise ValueError(f"{key}: is required; set it in the YAML file or with --{key}=…")


def check_files(config: Config) -> None:
    """ValueError for the first path among the settings that leads nowhere: told before a run writes anything."""
    if config.model.path and not Path(config.model.path, "config.json").is_file():
        raise ValueError(
            f"model.path={config.model.path}: no config.json there; give the directory of a Hugging Face checkpoint"
        )
    for key, path in (("train", config.data.train), ("validation", config.data.validation), ("test", config.data.test)):
        if path and not Path(path).is_file():
            raise ValueError(f"data.{key}={path}: no such file; give rows as JSON lines")
    for key, path in (("data.image_root", config.data.image_root), ("rollout.replay", config.rollout.replay)):
        if path and not Path(path).is_dir():
            raise ValueError(f"{key}={path}: no such directory")


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
            f"{path}: holds a {type(settings).__name__}, expected an object; copy the file again from where the "
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
