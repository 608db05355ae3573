"""Directories that exist whole or not at all: written under another name, synced to disk, renamed.

Who writes one holds a lock on it, which ends with the process, however that ends: two that write the same target at the
same time would rename a mixture of both.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

SPARE_BYTES = 64 * 1024**2  # for configuration, indices, metadata beside the weights

_held: dict[Path, int] = {}  # locked directories of this process, by the path that they are written under


def aside(target: Path) -> Path:
    """Where ``target`` is written until it is whole; the leading dot keeps it from looking like a checkpoint."""
    return target.with_name(f".{target.name}.partial")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def check_target(target: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """ValueError when ``target`` would be overwritten without ``force``, or would touch one of ``sources``."""
    if target.name in ("", ".."):
        raise ValueError(f"{target}: name the directory to write, as its parent knows it")
    if not target.exists() and _old(target).exists():  # killed while it was being replaced
        with suppress(FileNotFoundError):  # another rank of this job was faster
            os.replace(_old(target), target)
    resolved = target.resolve()
    for source in (source.resolve() for source in sources):
        if resolved == source or resolved in source.parents or source in resolved.parents:
            raise ValueError(f"{target}: lies within, or holds, the source {source}; give a directory of its own")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target}: exists and is not a directory; give another name")
    if target.exists() and not force:
        raise ValueError(f"{target}: exists already; give another name, or --force to replace it")


def check_space(target: Path, needed: int) -> None:
    """ValueError when the disk of ``target`` has less than ``needed`` bytes (and a little) free."""
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"{target}: {existing} is not a directory; give another name")
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE_BYTES:
        raise ValueError(
            f"{target}: {(needed + SPARE_BYTES) / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free on "
            f"the disk of {existing}; make room or write elsewhere"
        )


def prepare(target: Path, needed: int) -> Path:
    """``begin`` if there is room for ``needed`` bytes; else ValueError, and nothing is made."""
    check_space(target, needed)
    target.parent.mkdir(parents=True, exist_ok=True)
    return begin(target)


def begin(target: Path) -> Path:
    """An empty directory beside ``target``; what an interrupted attempt left there is removed.

    ValueError when another process is writing it, or something else has its name.
    """
    partial = aside(target)
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise ValueError(
            f"{partial}: {target.name} is to be written there first, but it exists and is not a directory; remove it, "
            "or give another name"
        )
    if partial.exists():
        left = _lock(partial, target)
        try:
            shutil.rmtree(partial)
        finally:
            os.close(left)
    partial.mkdir(parents=True)
    _held[partial] = _lock(partial, target)
    return partial


def _lock(partial: Path, target: Path) -> int:
    """A descriptor of ``partial`` that holds its lock, where the file system has locks."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"{target}: another process is writing it; wait until it ends, or give another name"
        ) from error
    except OSError:  # some network file systems have none
        pass
    return descriptor


def discard(target: Path) -> None:
    """Removes what this process was writing aside, if it was."""
    partial = aside(target)
    if partial in _held:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(_held.pop(partial))


def publish(target: Path) -> None:
    """Gives what was written aside its name, once it is on the disk; an older ``target`` goes away after that."""
    partial, old = aside(target), _old(target)
    _sync(partial)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    os.close(_held.pop(partial))
    _sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_directory(Path(folder))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
