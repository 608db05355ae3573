"""Files written at the same time by threads that stop when one of them fails, or the user interrupts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

Result = TypeVar("Result")
Progress = Callable[[int], object]


class Stopped(RuntimeError):
    """Raised in a task because another one failed."""


def together(tasks: Sequence[Callable[[Progress], Result]], progress: Progress) -> list[Result]:
    """Results of ``tasks``, each run in a thread; raises what the first that fails does.

    A task calls what it is given with every so many bytes that it has written; there it is stopped.
    """
    stop, lock = Event(), Lock()

    def step(count: int) -> None:
        if stop.is_set():
            raise Stopped
        with lock:
            progress(count)

    with ThreadPoolExecutor(max(1, len(tasks))) as threads:
        futures = [threads.submit(task, step) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    failed = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(failed, key=lambda error: isinstance(error, Stopped)):
        raise error
    return [future.result() for future in futures]
