"""Pictures examined in processes of their own, each with a limit of memory and time; see ``image_worker``."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_apo.data.images import ExaminedImage, examine_image, examined_from

MEMORY_MIB = 1024
SECONDS = 60.0  # of one picture, on a busy machine
_BATCH = 16

# The files are anybody's: the process that decodes them gets no credentials that may stand in the environment.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")

Examined = ExaminedImage | str  # the text says what is wrong


def examine_here(paths: Sequence[str]) -> list[Examined]:
    """Every picture examined in this process, without limits of memory and time."""
    found: list[Examined] = []
    for path in paths:
        try:
            found.append(examine_image(path))
        except ValueError as error:
            found.append(str(error))
    return found


class ImageExaminers:
    """``processes`` of them, started when the first picture comes. Close it, or use it in a ``with``."""

    def __init__(self, processes: int) -> None:
        assert processes >= 1, processes
        self._idle: queue.SimpleQueue[_Examiner | None] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._count = processes
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="examine")

    def __enter__(self) -> ImageExaminers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, paths: Sequence[str]) -> list[Examined]:
        """What each picture is, or what is wrong with it, in order; no picture can raise, hang or end the caller."""
        size = max(1, min(_BATCH, -(-len(paths) // self._count)))
        batches = [paths[start : start + size] for start in range(0, len(paths), size)]
        return [found for batch in self._threads.map(self._batch, batches) for found in batch]

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown()
        for _ in range(self._count):
            examiner = self._idle.get()
            if examiner is not None:
                examiner.end()

    def _batch(self, paths: Sequence[str]) -> list[Examined]:
        examiner = self._idle.get()
        try:
            examiner, found = _asked(examiner, paths)
            if found is not None:
                return found
            if len(paths) == 1:
                return [f"image {paths[0]}: examining it ended its process, or took {SECONDS:.0f} s; remove its row"]
            alone: list[Examined] = []  # one of them did it
            for path in paths:
                examiner, found = _asked(examiner, [path])
                alone += found or [f"image {path}: examining it ended its process, or took {SECONDS:.0f} s; remove it"]
            return alone
        finally:
            self._idle.put(examiner)


def _asked(examiner: _Examiner | None, paths: Sequence[str]) -> tuple[_Examiner | None, list[Examined] | None]:
    """The examiner to ask next (None: a new one) and its answer (None: it ended)."""
    examiner = examiner or _Examiner()
    found = examiner.ask(paths)
    return (None if found is None else examiner), found


class _Examiner:
    """One process; nothing of the parent (torch, a process group, its threads) is inherited or imported again."""

    def __init__(self) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megatron_apo.data.image_worker", f"--memory-mib={MEMORY_MIB}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs write notes on damaged files there
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's affair
        )

    def ask(self, paths: Sequence[str]) -> list[Examined] | None:
        """The answers; None when the process ended or took too long, and it is ended then."""
        assert self._process.stdin is not None and self._process.stdout is not None
        alarm = threading.Timer(SECONDS * len(paths), self._process.kill)
        alarm.start()
        try:
            self._process.stdin.write(json.dumps({"paths": list(paths)}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            alarm.cancel()
        if not line.endswith(b"\n"):
            self.end()
            return None
        return [found if isinstance(found, str) else examined_from(found) for found in json.loads(line)]

    def end(self) -> None:
        """Kills and reaps it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a request was still buffered
                continue
