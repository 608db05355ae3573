"""Where a step's metrics go: ``metrics.jsonl`` always; TensorBoard and wandb when asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from uuid import uuid4

from megatron_apo.config import LoggingConfig

METRICS_FILE = "metrics.jsonl"


class MetricsWriter(Protocol):
    """One destination of metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step."""
        ...

    def close(self) -> None:
        """Flushes and lets go; safe to call twice."""
        ...


class JsonlWriter:
    """One JSON object a line: ``{"step": …, "<metric>": …}``, on disk when ``write`` returns.

    A value that is not finite is written as null: JSON has no NaN. With ``resume_step`` the lines of later steps, and
    a line that a killed run left half written, are dropped; without, a file that holds steps is refused.
    """

    def __init__(self, path: str | Path, *, resume_step: int | None = None):
        self._path = Path(path)
        if resume_step is not None:
            _keep_steps_until(self._path, resume_step)
        elif self._path.exists() and self._path.stat().st_size:
            raise ValueError(
                f"{self._path}: already holds the metrics of a run; resume it, or choose another run.directory"
            )
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line."""
        line = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """Scalars under ``directory``; on resume, later steps of the earlier run are hidden."""

    def __init__(self, directory: str | Path, *, resume_step: int | None = None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "logging.tensorboard=true: the package tensorboard is not installed; install it or set it to false"
            ) from error
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)  # type: ignore[no-untyped-call]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WandbWriter:
    """A wandb run in ``run_dir/wandb``; a resumed run keeps its id, so the service shows one run.

    ``mode`` is "offline" or "online". Credentials are wandb's own affair (its environment variable or its login):
    none is read or passed on here, and ``settings`` is the run's configuration only.
    """

    def __init__(
        self, run_dir: str | Path, *, project: str, mode: str, resumed: bool, settings: Mapping[str, Any] | None = None
    ):
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"logging.wandb={mode}: the package wandb is not installed; install it or set it to disabled"
            ) from error
        run_dir = Path(run_dir)
        id_file = run_dir / "wandb" / "run_id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not (resumed and id_file.exists()):
            id_file.write_text(uuid4().hex[:16] + "\n")
        self._run: Any = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            id=id_file.read_text().strip(),
            dir=str(run_dir),
            mode="online" if mode == "online" else "offline",
            resume="allow" if mode == "online" else None,
            config=dict(settings or {}),
            save_code=False,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class Writers:
    """Several writers as one; a context manager."""

    def __init__(self, writers: Sequence[MetricsWriter]):
        self._writers = list(writers)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives the metrics of a step to each writer."""
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Closes each of them, also when one fails; safe to call twice."""
        with ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)
        self._writers = []

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_writers(
    run_dir: str | Path,
    config: LoggingConfig,
    resume_step: int | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Writers:
    """The writers that ``config`` asks for. ``resume_step``: the last step that counts, None for a new run.

    ``settings`` (the resolved configuration as plain values) is shown with the run where a writer can.
    """
    if config.wandb not in ("disabled", "offline", "online"):
        raise ValueError(f"logging.wandb={config.wandb!r}: must be disabled, offline or online")
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    writers: list[MetricsWriter] = [JsonlWriter(run_dir / METRICS_FILE, resume_step=resume_step)]
    if config.tensorboard:
        writers.append(TensorBoardWriter(run_dir / "tensorboard", resume_step=resume_step))
    if config.wandb != "disabled":
        writers.append(
            WandbWriter(
                run_dir,
                project=config.wandb_project,
                mode=config.wandb,
                resumed=resume_step is not None,
                settings=settings,
            )
        )
    return Writers(writers)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl`` in order, empty when it has none; a half-written last line is left out.

    Raises ValueError for a line before the last that is not a JSON object with a step.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); restore the file") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a line of metrics ({error!r}); remove the line") from error
        rows.append(row)
    return rows


def _keep_steps_until(path: Path, step: int) -> None:
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    temporary = path.with_suffix(".jsonl.part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, path)
