"""Requests spread over processes that can be killed, each request within its time."""

from __future__ import annotations

import selectors
import shlex
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_apo.rewards.grader_process import START_SECONDS, GraderProcess, RewardError

BATCH = 32  # requests handed to a process at once, so that it need not wait for its parent after each
FEW = 4  # requests that are not worth a further process

Request = Mapping[str, Any]
Reply = dict[str, Any]
_Queue = deque[tuple[int, Request]]


class NotReadyError(RewardError):
    """A process could not be started: ``why``, and the ``command`` that shows more when it is run by hand."""

    def __init__(self, why: str, command: Sequence[str]):
        self.why = why
        self.command = shlex.join(command)
        super().__init__(f"a reward process is not ready: {why}; run it by hand to see more: {self.command}")


class ProcessPool:
    """Up to ``workers`` processes of ``command`` (see ``worker``) that answer requests.

    A process that takes longer than ``timeout_seconds`` over one request, dies over it or writes what is no reply is
    replaced; that request's reply is ``{"error": why}``, those behind it go to another. After the first such loss as
    many processes as workers are kept ready in reserve: a model that hangs the grader again and again costs the time
    limits, not the restarts. Safe to call from any thread, one at a time.
    """

    def __init__(self, command: Sequence[str], workers: int, timeout_seconds: float):
        self._command = list(command)
        self._workers = workers
        self._timeout_seconds = timeout_seconds
        self._active: list[GraderProcess] = []
        self._reserve: deque[GraderProcess] = deque()
        self._lost = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Waits until one process is ready; RewardError when none can be started."""
        with self._lock:
            if not self._active:
                self._active.append(GraderProcess(self._command))
            while not any(process.ready for process in self._active):
                self._wait([], deque(), {})

    def run(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in order; RewardError when no process can be started."""
        with self._lock:
            replies: dict[int, Reply] = {}
            queue: _Queue = deque(enumerate(requests))
            try:
                while len(replies) < len(requests):
                    self._hand_out(queue)
                    self._wait(requests, queue, replies)
            finally:
                # Only after an exception: late replies would answer the next call's requests.
                for process in [process for process in self._active if process.pending]:
                    self._drop(process)
            return [replies[number] for number in range(len(requests))]

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        for process in (*self._active, *self._reserve):
            process.kill()
        self._active.clear()
        self._reserve.clear()

    def _hand_out(self, queue: _Queue) -> None:
        """Starts what is needed and gives every idle process a batch."""
        for process in [process for process in (*self._active, *self._reserve) if process.has_ended]:
            self._drop(process)  # while it had nothing to do: no request is to blame
        idle = [process for process in self._active if process.ready and not process.pending]
        starting = sum(not process.ready for process in self._active)
        needed = min(self._workers, -(-len(queue) // FEW)) - len(idle) - starting
        for _ in range(min(needed, self._workers - len(self._active))):
            process = self._reserve.popleft() if self._reserve else GraderProcess(self._command)
            self._active.append(process)
            if process.ready:
                idle.append(process)
        while self._lost and len(self._reserve) < self._workers:
            self._reserve.append(GraderProcess(self._command))
        for process in idle:
            # Small batches at the end, so that no process has much to do while the others have nothing.
            size = max(1, min(BATCH, len(queue) // (2 * self._workers)))
            batch = [queue.popleft() for _ in range(min(size, len(queue)))]
            if batch:
                process.ask(batch, self._timeout_seconds)

    def _wait(self, requests: Sequence[Request], queue: _Queue, replies: dict[int, Reply]) -> None:
        """Blocks until something happens or the first deadline passes; takes replies, replaces what is lost."""
        watched = [process for process in self._active if process.pending or not process.ready]
        starting = [process for process in self._reserve if not process.ready]
        first = min(process.deadline for process in watched)
        with selectors.DefaultSelector() as selector:
            for process in (*watched, *starting):
                selector.register(process.fileno(), selectors.EVENT_READ, process)
                if process.has_unsent:
                    selector.register(process.input_fileno(), selectors.EVENT_WRITE, process)
            events = selector.select(max(0.0, first - time.monotonic()))
        for key, event in events:
            if event & selectors.EVENT_WRITE:
                key.data.send()
        for key, event in events:
            if event & selectors.EVENT_READ:
                self._take(key.data, requests, queue, replies)
        for process in watched:
            waits = process in self._active and (process.pending or not process.ready)
            if waits and time.monotonic() >= process.deadline:
                self._drop(process)
                seconds = self._timeout_seconds if process.ready else START_SECONDS
                self._lose(process, f"no reply after {seconds:g} s", requests, queue, replies)

    def _take(
        self, process: GraderProcess, requests: Sequence[Request], queue: _Queue, replies: dict[int, Reply]
    ) -> None:
        try:
            found = process.read_replies()
        except EOFError:
            self._drop(process)
            why = f"the process ended (exit code {process.process.returncode})"
            self._lose(process, why, requests, queue, replies)
            return
        for reply in found:
            if "unreadable" in reply:
                self._drop(process)
                self._lose(process, reply["unreadable"], requests, queue, replies)
                return
            if process.ready:
                replies[process.pending.popleft()] = reply
                process.deadline = time.monotonic() + self._timeout_seconds
            elif "failed" in reply:
                self._drop(process)
                self._lose(process, reply["failed"], requests, queue, replies)
            else:
                process.ready = True

    def _lose(
        self,
        process: GraderProcess,
        why: str,
        requests: Sequence[Request],
        queue: _Queue,
        replies: dict[int, Reply],
    ) -> None:
        """After a process was dropped: its first request gets the blame, the others wait again."""
        if not process.ready:
            raise NotReadyError(why, self._command)
        if process.pending:
            self._lost = True
            first, *others = process.pending
            replies[first] = {"error": why}
            queue.extendleft((number, requests[number]) for number in reversed(others))
            process.pending.clear()

    def _drop(self, process: GraderProcess) -> None:
        process.kill()
        if process in self._active:
            self._active.remove(process)
        if process in self._reserve:
            self._reserve.remove(process)
