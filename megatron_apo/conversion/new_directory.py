"""Directories that exist whole or not at all: written under another name, synced to disk, renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SPARE_BYTES = 64 * 1024**2  # for configuration, indices, metadata beside the weights


def aside(target: Path) -> Path:
    """Where ``target`` is written until it is whole; the leading dot keeps it from looking like a checkpoint."""
    return target.with_name(f".{target.name}.partial")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def check_target(target: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """ValueError when ``target`` would be overwritten without ``force``, or would touch one of ``sources``."""
    if not target.exists() and _old(target).exists():  # killed while it was being replaced
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
    """An empty directory beside ``target``; what an interrupted attempt left there is removed."""
    partial = aside(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def discard(target: Path) -> None:
    """Removes what was written aside."""
    shutil.rmtree(aside(target), ignore_errors=True)


def publish(target: Path) -> None:
    """Gives what was written aside its name, once it is on the disk; an older ``target`` goes away after that."""
    partial, old = aside(target), _old(target)
    _sync(partial)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
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
