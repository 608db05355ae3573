"""Pictures examined in processes of their own, each with a limit of memory and time; see ``image_worker``."""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megatron_apo.data.image_process import ImageProcess, ProcessEnded
from megatron_apo.data.images import ExaminedImage, examine_image, examined_from

MEMORY_MIB = 1024
SECONDS = 60.0  # of one picture, on a busy machine
START_SECONDS = 300.0  # of a process: a shared file system may be slow with its libraries
_BATCH = 16
_MOST_PROCESSES = 8

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
    """``processes`` of them (0: one for each core, eight at most), started when the first picture comes.

    Close it, or use it in a ``with``.
    """

    def __init__(self, processes: int) -> None:
        processes = processes or min(_MOST_PROCESSES, os.cpu_count() or 1)
        self._idle: queue.SimpleQueue[ImageProcess | None] = queue.SimpleQueue()
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
        self._threads.shutdown(cancel_futures=True)
        for _ in range(self._count):
            examiner = self._idle.get()
            if examiner is not None:
                examiner.end()

    def _batch(self, paths: Sequence[str]) -> list[Examined]:
        examiner = self._idle.get()
        found: list[Examined] = []
        try:
            while len(found) < len(paths):
                if examiner is None:
                    examiner = ImageProcess("megatron_apo.data.image_worker", f"--memory-mib={MEMORY_MIB}")
                    examiner.wait_until_up(START_SECONDS)
                found += _ask(examiner, paths[len(found) :])
                if len(found) < len(paths):  # it did not come further than this one
                    examiner.end()
                    examiner = None
                    reason = f"examining it ended its process, or took {SECONDS:g} s; remove its row"
                    found.append(f"image {paths[len(found)]}: {reason}")
        finally:
            self._idle.put(examiner)
        return found


def _ask(examiner: ImageProcess, paths: Sequence[str]) -> list[Examined]:
    """The answers in order, up to the picture over which it ended or took too long."""
    found: list[Examined] = []
    try:
        examiner.send({"paths": list(paths)})
        for _ in paths:
            answer = json.loads(examiner.line(SECONDS))
            found.append(answer if isinstance(answer, str) else examined_from(answer))
    except ProcessEnded:
        return found
    return found
