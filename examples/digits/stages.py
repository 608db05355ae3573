"""Stages of an example: runs of ``python -m megatron_apo`` in directories of their own, each done once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def say(text: str) -> None:
    """A line between the stages."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


def make_task_and_policy(
    directory: Path, *, digits: tuple[int, int] = (2, 2), styles: tuple[str, ...] = ("steps",), **rows: int
) -> None:
    """Writes the digits task of so many ``rows`` and ``digits`` to ``directory``/task and the policy's checkpoint to
    ``directory``/policy, where they are not there yet; ValueError as `write_digits_task` has it."""
    from examples.digits.make_policy import make_policy
    from megatron_apo.data.tasks.digits import write_digits_task

    write_digits_task(directory / "task", digits=digits, styles=styles, seed=0, **rows)
    if not (directory / "policy" / "config.json").is_file():
        make_policy(directory / "policy", seed=0)


def run_example(work: Callable[[], str]) -> int:
    """Exit status of an example's ``work``, which returns what to open: 2 after an error that the user can mend, that
    of the command when one failed."""
    started = time.monotonic()
    try:
        found = work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[:4]))} ended with status {error.returncode}", file=sys.stderr)
        return error.returncode
    say(f"done in {time.monotonic() - started:.0f} s; open {found}")
    return 0


def remove_unfinished(target: Path) -> None:
    """Removes a run that was interrupted before its first checkpoint: nothing in it can be continued.

    Raises ValueError, and removes nothing, when ``target`` is not the directory of a run.
    """
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not (target / "config.yaml").is_file()):
        raise ValueError(f"{target} was not written by a run; move it away, or give another --directory")
    shutil.rmtree(target)


def run_stage(command: str, config: Path, target: Path, settings: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Runs ``python -m megatron_apo <command>`` into ``target``; goes on where an earlier one stopped, and does nothing
    when it was done. ``settings`` of the file ``config`` are overridden where they are not empty; ``more`` are options.

    subprocess.CalledProcessError when the command fails, ValueError when ``target`` holds something else.
    """
    if (target / "export" / "config.json").is_file() and (command == "sft" or (target / "report.html").is_file()):
        say(f"{target.name}: already done, see {target}")
        return
    options = []
    if any((target / "checkpoints").glob("step_*/loop_state.json")):
        options.append("--resume")
    elif target.exists():
        remove_unfinished(target)
    line = [sys.executable, "-m", "megatron_apo", command, "--config", str(config), *options]
    line += [f"--{key}={value}" for key, value in {"run.directory": target, **settings}.items() if str(value)]
    subprocess.run([*line, *more], cwd=REPOSITORY, check=True)
