"""Reads the settings: a YAML file, dotted overrides, the objective's preset beneath both.

``config_checks`` then looks at every value. Knows no torch. Every refusal is a ValueError of the form
``section.key=value: what it must be; why, or what to do``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from megatron_apo import wording
from megatron_apo.config import Config, KlConfig
from megatron_apo.config_checks import leaves, validate
from megatron_apo.objective.presets import PRESETS
from megatron_apo.objective.validation import SCHEDULE_KEYS

_Tree = dict[str, Any]
_Section = TypeVar("_Section")


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number (PyYAML alone reads text) and a repeated key is an error."""


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back equal."""


def _written_list(dumper: _Dumper, values: tuple[Any, ...]) -> yaml.Node:
    """A setting that is a list; a single text is written alone, as a user would."""
    alone = len(values) == 1 and isinstance(values[0], str)
    return dumper.represent_data(values[0]) if alone else dumper.represent_list(values)


_Dumper.add_representer(tuple, _written_list)

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
        tree = _merged(_for_schedule(preset, tree), tree)
    config = _build(Config, tree, "")
    validate(config)
    return config


def dump_config(config: Config) -> str:
    """YAML with every setting, in the order of the sections; ``load_config`` reads it back equal."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def known_keys() -> list[str]:
    """Every setting's dotted name, in order."""
    return [key for key, _ in leaves(Config(), "")]


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
        raise ValueError(f"--config={path}: holds {_yaml_kind(tree)}; expected sections such as run and model")
    return tree


def _apply(tree: _Tree, override: str) -> None:
    """Writes one ``--section.key=value`` into the tree."""
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals:
        raise ValueError(f"{override}: expected --section.key=value, for example --run.steps=100")
    defaults = dict(leaves(Config(), ""))
    if key not in defaults:
        raise ValueError(_unknown(key))
    is_text = isinstance(defaults[key], str) or (key in _text_lists(Config, "") and not text.strip().startswith("["))
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
        raise ValueError(
            f"objective.name={name}: must be one of {', '.join(PRESETS)}{wording.nearest(name, list(PRESETS))}"
        )
    return PRESETS[name]


def _for_schedule(preset: _Tree, tree: _Tree) -> _Tree:
    """The preset without the numbers of its schedule of the KL coefficient, when the ``tree`` above asks for another.

    Only what the preset says makes room: a number of the other schedule that is given is refused (``validation``).
    """
    merged = _merged(preset, tree)["objective"]
    below, above = preset["objective"].get("kl", {}), merged.get("kl") if isinstance(merged, dict) else None
    schedule = below.get("schedule", KlConfig().schedule)
    if not isinstance(above, dict) or above.get("schedule", schedule) == schedule:
        return preset
    kept = {key: value for key, value in below.items() if key not in SCHEDULE_KEYS[schedule]}
    return {"objective": {**preset["objective"], "kl": kept}}


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
        raise ValueError(f"{prefix.rstrip('.')}={tree!r}: must be a section of settings, this is {_yaml_kind(tree)}")
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


def _text_lists(section: type, prefix: str) -> set[str]:
    """The settings that are lists of texts, and may be given as one text."""
    found = set()
    for key, kind in get_type_hints(section).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= _text_lists(kind, f"{prefix}{key}.")
        elif kind == tuple[str, ...]:
            found.add(f"{prefix}{key}")
    return found


def _list(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [value] if value else []
    if not isinstance(value, list):
        what = "text or a list of texts" if kind is str else "a list of numbers"
        raise ValueError(f"{name}={value!r}: must be {what}, this is {_yaml_kind(value)}")
    return tuple(_typed(name, item, kind) for item in value)


def _typed(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return _list(name, value, get_args(kind)[0])
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name}={value!r}: must be a mapping of names to values")
        return {key: _typed(f"{name}.{key}", item, get_args(kind)[1]) for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool) or not isinstance(value, kind):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        hint = "; put it in quotes" if kind is str and value is not None else ""
        raise ValueError(f"{name}={value!r}: must be {expected} ({kind.__name__}), this is {_yaml_kind(value)}{hint}")
    if kind is float and value != value:
        raise ValueError(f"{name}={value}: must be a number")
    return value


def _yaml_kind(value: Any) -> str:
    return wording.kind(value, mapping="a section", nothing="empty")


def _unknown(key: str) -> str:
    keys = known_keys()
    if any(known.startswith(f"{key}.") for known in keys):
        return f"{key}: is a section; set one of its keys, such as {next(k for k in keys if k.startswith(f'{key}.'))}"
    elsewhere = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    sections = sorted({known.rpartition(".")[0] for known in keys})
    return f"{key}: unknown setting{wording.nearest(key, elsewhere or keys + sections)}"
