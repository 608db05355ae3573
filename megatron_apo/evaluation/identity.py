"""What an evaluation was made with, so precisely that another sitting, or another person, can make the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_apo.config import Config
from megatron_apo.records import Prompt
from megatron_apo.rewards.user_rewards import find_user_rewards
from megatron_apo.rollout.engine import SamplingSettings

# Of a checkpoint: weights, configuration, tokenizer, processor and chat template.
_MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
# Of the rewards: how many processes grade, and when the errors are too many, change no verdict.
_NO_VERDICT = ("workers", "max_error_rate")


def evaluation_settings(config: Config, prompts: Sequence[Prompt], sampling: SamplingSettings) -> dict[str, Any]:
    """Everything that an evaluation's responses and verdicts depend on, as JSON values."""
    rewards = {key: value for key, value in asdict(config.rewards).items() if key not in _NO_VERDICT}
    own = {reward.source: reward.sha256 for reward in find_user_rewards(config.rewards.user, ())}
    drawn = {key: value for key, value in asdict(sampling).items() if key != "first_position"}
    return {
        "model": {"path": str(Path(config.model.path).resolve()), "sha256": model_digest(config.model.path)},
        "data": {
            "path": str(Path(config.data.test).resolve()),
            "sha256": _file_digest(Path(config.data.test)),
            "rows": len(prompts),
            "prompts_sha256": prompts_digest(prompts),
        },
        "engine": f"{config.rollout.engine} {_version(config.rollout.engine)}",
        "dtype": config.model.dtype,
        "sampling": drawn,
        "batch": config.evaluation.batch,
        "grader": {"math_verify": _version("math_verify"), **rewards, "user_sha256": own},
    }


def model_digest(directory: str | Path) -> str:
    """SHA-256 over name and content of the checkpoint's files, hexadecimal; ValueError when one cannot be read."""
    digest = hashlib.sha256()
    files = sorted(path for path in Path(directory).iterdir() if path.suffix in _MODEL_FILES and path.is_file())
    for path in files:
        digest.update(f"{path.name}\0{_file_digest(path)}\n".encode())
    return digest.hexdigest()


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of all that is asked: ids, images (by their own digests and grids), gold answers, categories, choices."""
    digest = hashlib.sha256()
    for prompt in prompts:
        images = [[image.sha256, *image.grid_thw] for image in prompt.images]
        asked = [prompt.id, prompt.token_ids, images, prompt.gold, prompt.category, prompt.choices]
        digest.update(json.dumps(asked).encode() + b"\n")
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    if not path.is_file():  # rows may be a directory of files: prompts_sha256 tells them apart
        return ""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def _version(module: str) -> str:
    """Of an installed package, whatever its distribution calls itself; ValueError when it is not installed."""
    distributions = metadata.packages_distributions().get(module)
    if not distributions:
        raise ValueError(f"{module}: is not installed; install it, or choose another rollout.engine")
    return metadata.version(distributions[0])
