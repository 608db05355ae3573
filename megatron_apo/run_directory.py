"""A run's directory: claimed once, resumed on purpose, never shared by two runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_apo.config import Config
from megatron_apo.config_loading import dump_config
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.status import phase

# What a run is made of stays; how long, where and on what it runs may change.
_MAY_DIFFER = (
    *("run.directory", "run.steps", "run.save_every", "run.keep_checkpoints", "run.evaluate_every", "run.threads"),
    *("parallel.tensor", "parallel.pipeline", "parallel.sequence", "parallel.timeout_seconds"),
    *("parallel.context", "parallel.virtual_pipeline", "parallel.first_stage_layers"),
    *("rollout.placement", "rollout.kv_cache_gib", "rollout.gpu_memory_utilization", "rollout.timeout_seconds"),
    *("rewards.workers", "rewards.timeout_seconds", "rewards.memory_mib"),
    *("training.tokens_per_microbatch", "training.logits_chunk_tokens"),
    *("data.workers", "data.pixel_workers", "data.cache", "data.max_bad_share", "evaluation.batch"),
    *("model.reference", "training.max_skipped_in_a_row", "alarms.", "logging."),
)


@dataclass(frozen=True)
class RunDirectory:
    """The parts of a run directory that scripts rely on."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def rollouts(self) -> Path:
        return self.root / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def user_rewards(self) -> Path:
        return self.root / "user_rewards.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _differences(saved: str, current: str) -> list[str]:
    # A setting that is younger than the run had its default then.
    old = _flat(yaml.safe_load(dump_config(Config()))) | _flat(yaml.safe_load(saved))
    new = _flat(yaml.safe_load(current))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if not key.startswith(_MAY_DIFFER)]


def check_claim(config: Config, *, resume: bool) -> None:
    """Refuses a directory that the run must not write into; writes nothing.

    Raises ValueError when a new run would write into another run's directory, and when a resumed run has other
    settings than it began with (its length, layout, resources and logging may change).
    """
    directory = RunDirectory(Path(config.run.directory))
    if resume:
        if not directory.config.is_file():
            raise ValueError(f"run.directory={directory.root}: no run there to resume; leave --resume out to start one")
        changed = _differences(directory.config.read_text(encoding="utf-8"), dump_config(config))
        if changed:
            raise ValueError(
                f"run.directory={directory.root}: a resumed run must keep its settings, but these differ: "
                f"{'; '.join(changed)}; put them back, or start a new run in another directory"
            )
    elif directory.root.exists() and (not directory.root.is_dir() or any(directory.root.iterdir())):
        if directory.config.exists() and not any(directory.checkpoints.glob("step_*")):
            raise ValueError(
                f"run.directory={directory.root}: holds a run without a checkpoint, which cannot be continued; remove "
                "the directory if that run has ended, or give another --run.directory"
            )
        what = "holds another run" if directory.config.exists() else "is not empty"
        raise ValueError(
            f"run.directory={directory.root}: {what}; continue it with --resume, or give another --run.directory"
        )


def claim(config: Config, *, resume: bool) -> RunDirectory:
    """Makes the run's directory and writes the resolved settings into it, once everything else could be read.

    Raises ValueError as ``check_claim``.
    """
    check_claim(config, resume=resume)
    directory = RunDirectory(Path(config.run.directory))
    for path in (directory.root, directory.rollouts, directory.checkpoints):
        path.mkdir(parents=True, exist_ok=True)
    directory.config.write_text(dump_config(config), encoding="utf-8")
    return directory


def check_on_controller(config: Config, groups: Groups, *, resume: bool) -> RunDirectory:
    """``check_claim`` on the controller, its verdict on every rank; the directory's paths."""
    with phase(groups, "run directory"):
        if groups.is_controller:
            check_claim(config, resume=resume)
    return RunDirectory(Path(config.run.directory))
