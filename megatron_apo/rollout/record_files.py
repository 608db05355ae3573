"""Rollouts on disk: one JSON-lines file per step, readable by eye and by ``rollout.replay``.

The first line is a header (record version, step, weight version, sampling settings, number of groups); then each line
is one group: the prompt, its rollouts and their scores. Floats are written so that they read back to the last bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apo.records import RECORD_VERSION, Prompt, PromptImage, Rollout, RolloutGroup, Score
from megatron_apo.rollout.engine import SamplingSettings

_FILE = re.compile(r"step_(\d{6,})\.jsonl")


@dataclass(frozen=True)
class StepHeader:
    """What a step's file says of itself. ``weight_version``: of the weights that sampled the rollouts."""

    record_version: int
    step: int
    weight_version: int
    sampling: SamplingSettings
    groups: int


def step_path(directory: str | Path, step: int) -> Path:
    """The file of step ``step``."""
    return Path(directory) / f"step_{step:06d}.jsonl"


def recorded_steps(directory: str | Path) -> list[int]:
    """The steps recorded in ``directory``, ascending; ValueError when there is no such directory."""
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"rollout.replay={directory}: no such directory; give the rollouts/ directory of a run")
    matches = (_FILE.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def write_step(
    directory: str | Path,
    step: int,
    groups: Sequence[RolloutGroup],
    *,
    weight_version: int,
    sampling: SamplingSettings,
    shaping: Sequence[Sequence[dict[str, float]]] | None = None,
) -> Path:
    """Writes the file of ``step`` whole or not at all; one that is there already (a resumed run) is replaced.

    ``shaping``: what the objective made of each response (advantage, STCR, DADS weight), per group, for people to
    read: a replay makes it anew. A log-probability that is not finite is written as null and read as NaN: such a
    response shows why its update was skipped. Raises ValueError for any other number that is not finite.
    """
    header = StepHeader(RECORD_VERSION, step, weight_version, sampling, len(groups))
    path = step_path(directory, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(_line(dataclasses.asdict(header)))
            for place, group in enumerate(groups):
                record = dataclasses.asdict(group)
                for rollout in record["rollouts"]:
                    rollout["logprobs"] = [value if math.isfinite(value) else None for value in rollout["logprobs"]]
                if shaping is not None:
                    record["shaping"] = list(shaping[place])
                file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def read_header(directory: str | Path, step: int) -> StepHeader:
    """The header of one step's file; ValueError as for ``read_step``."""
    path = step_path(directory, step)
    return _header(path, _lines(path)[0], step)


def read_step(directory: str | Path, step: int) -> list[RolloutGroup]:
    """The groups of one step, as they were written.

    Raises ValueError for a file that is missing, cut short, damaged, or of another record version.
    """
    path = step_path(directory, step)
    first, *rest = _lines(path)
    header = _header(path, first, step)
    if len(rest) != header.groups:
        raise ValueError(
            f"{path}: holds {len(rest)} of {header.groups} groups, it was cut short; restore it or leave the step out"
        )
    return [_parsed(path, number, line, _group) for number, line in enumerate(rest, start=2)]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); recorded steps lie in a run's rollouts/ directory"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); restore the file") from error
    if not text.endswith("\n"):
        raise ValueError(f"{path}: does not end with a whole line, it was cut short; restore it or leave the step out")
    return text.split("\n")[:-1]  # not splitlines: a response may hold other line separators


def _header(path: Path, line: str, step: int) -> StepHeader:
    def build(value: dict[str, Any]) -> StepHeader:
        if value["record_version"] != RECORD_VERSION:
            raise ValueError(
                f"record version {value['record_version']}, this program reads {RECORD_VERSION}; record the rollouts "
                "again with it"
            )
        return StepHeader(**{**value, "sampling": SamplingSettings(**value["sampling"])})

    header = _parsed(path, 1, line, build)
    if header.step != step:
        raise ValueError(f"{path}: its header says step {header.step}; give the file its own name back")
    return header


def _group(value: dict[str, Any]) -> RolloutGroup:
    prompt = value["prompt"]
    images = tuple(PromptImage(**{**image, "grid_thw": tuple(image["grid_thw"])}) for image in prompt["images"])
    ids = {name: tuple(prompt.get(name, ())) for name in ("token_ids", "collapsed_ids", "choices")}

    def rollout(entry: dict[str, Any]) -> Rollout:
        logprobs = tuple(math.nan if one is None else one for one in entry["logprobs"])
        return Rollout(**{**entry, "token_ids": tuple(entry["token_ids"]), "logprobs": logprobs})

    return RolloutGroup(
        prompt=Prompt(**{**prompt, **ids, "images": images}),
        rollouts=tuple(rollout(entry) for entry in value["rollouts"]),
        scores=tuple(Score(**score) for score in value["scores"]),
        round=value.get("round", 0),  # absent from recordings without refills
        dropped=value.get("dropped", ""),
    )


def _parsed(path: Path, number: int, line: str, build: Any) -> Any:
    try:
        return build(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}, line {number}: not a record of rollouts ({error}); restore the file") from error
