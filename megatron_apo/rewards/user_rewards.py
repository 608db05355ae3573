"""Rewards of the user's own: a function by ``module:function`` or ``path/to/file.py:function``.

Named by an explicit setting (``rewards.user``) alone, and tied to the SHA-256 of its file: a file that changes under a
run is refused by the next process that would load it. Loaded in the reward processes only, never in the trainer.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

# What a reward may ask for by the names of its parameters.
ARGUMENTS = ("response", "answer", "gold", "question", "outcome", "row_id", "category", "tokens", "finish_reason")


@dataclass(frozen=True)
class UserReward:
    """``name``: the function's, and the reward part's; ``source``: as in the settings; ``file`` and its ``sha256``."""

    name: str
    source: str
    file: str
    sha256: str
    weight: float


def find_user_rewards(settings: Mapping[str, float], taken: tuple[str, ...]) -> list[UserReward]:
    """The rewards that ``rewards.user`` names, none of them loaded; ValueError for what cannot be found.

    ``taken``: names of parts that a function must not have.
    """
    found: list[UserReward] = []
    for source, weight in settings.items():
        setting = f"rewards.user={source}"
        place, colon, name = source.rpartition(":")
        if not colon or not name.isidentifier() or not place:
            raise ValueError(f"{setting}: must be module:function or path/to/file.py:function")
        if not math.isfinite(weight):
            raise ValueError(f"{setting}: its weight {weight} must be a finite number")
        if name in taken or name in (reward.name for reward in found):
            raise ValueError(f"{setting}: the part {name} exists already; give the function another name")
        file = _file_of(place, setting)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"{setting}: {file} cannot be read ({error.strerror or error})") from error
        found.append(UserReward(name, source, str(file), hashlib.sha256(content).hexdigest(), weight))
    return found


def record_user_rewards(rewards: Sequence[UserReward], file: Path) -> None:
    """Writes down which files the run's rewards are, by SHA-256; ValueError when the run began with others.

    ``file`` exists from the run's first start on, where it has rewards of the user's.
    """
    digests = {reward.source: {"file": reward.file, "sha256": reward.sha256} for reward in rewards}
    if file.is_file():
        begun = json.loads(file.read_text(encoding="utf-8"))
        for source, now in digests.items():
            before = begun.get(source, {}).get("sha256")
            if before != now["sha256"]:
                raise ValueError(
                    f"rewards.user={source}: {now['file']} has changed since the run began ({now['sha256']}, was "
                    f"{before}); put it back, or start a new run"
                )
    elif digests:
        file.write_text(json.dumps(digests, indent=2), encoding="utf-8")


def load_user_reward(source: str, sha256: str) -> Callable[..., object]:
    """The function, called by keywords that it names; ValueError when its file is not the one of ``sha256``."""
    place, _, name = source.rpartition(":")
    file = _file_of(place, f"rewards.user={source}")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"rewards.user={source}: {file} has changed since the run began ({found}, was {sha256})")
    try:
        module = _load(place, file)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - another's code may raise anything as it is loaded
        raise ValueError(f"rewards.user={source}: {file} cannot be loaded ({_told(error)})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"rewards.user={source}: {file} has no function {name}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"rewards.user={source}: {name} does not tell its arguments ({error}); wrap it") from error
    wanted = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    must = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = [p.name for p in must if p.name not in ARGUMENTS]
    if unknown:
        raise ValueError(
            f"rewards.user={source}: no such argument: {', '.join(unknown)}; known are {', '.join(ARGUMENTS)}"
        )
    unnamed = [p.name for p in must if p.name not in wanted]
    if unnamed:
        raise ValueError(f"rewards.user={source}: {', '.join(unnamed)} must be given by name; remove the / behind it")
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function
    return lambda **given: function(**{key: value for key, value in given.items() if key in wanted})


def checked_value(value: object) -> float:
    """A reward as a finite float; ValueError for anything else."""
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"returned {value!r:.80}, which is no number") from error
    if not math.isfinite(number):
        raise ValueError(f"returned {value!r:.80}; a reward must be a finite number")
    return number


def _file_of(place: str, setting: str) -> Path:
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"{setting}: no file {place}; give its path from the directory where the run starts")
        return Path(place).resolve()
    try:
        spec = _spec_of(place)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{setting}: no module {place} ({error})") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"{setting}: no module {place} on the path; set PYTHONPATH, or give its file's path")
    return Path(spec.origin)


def _spec_of(place: str) -> ModuleSpec | None:
    """Where a module is, without running anything of it or of the packages that it is in.

    ``importlib.util.find_spec`` imports the packages; it is asked for the outermost name alone, which is in none.
    """
    outermost, *names = place.split(".")
    if not all(name.isidentifier() for name in (outermost, *names)):
        return None
    spec = importlib.util.find_spec(outermost)
    for name in names:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its last name: a directory without __init__.py would look its parent up among the imported modules.
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _told(error: BaseException) -> str:
    """What another's code raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error!s:.300}, {place.filename}, line {place.lineno}"


def _load(place: str, file: Path) -> ModuleType:
    name = f"user_reward_{file.stem}" if place.endswith(".py") else place
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    package = "" if place.endswith(".py") else name.rpartition(".")[0]
    if package:
        importlib.import_module(package)  # as an import would; for what the module imports from beside it
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
