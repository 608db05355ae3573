"""One grader process from its parent's side: start, ask, read, kill.

A plain subprocess that speaks JSON lines, not ``multiprocessing``: nothing of the parent (torch, a process group, an
engine, its threads) is inherited or imported again, so it starts alike under torchrun, vLLM and pytest.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 120.0  # to load the grader's libraries, also on a busy machine
MEMORY_MIB = 4096

# The grader reads model output: it gets no credentials that may stand in the environment.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "VIRTUAL_ENV")


class RewardError(RuntimeError):
    """Rewards cannot be computed; the run must stop."""


def worker_command(timeout_seconds: float) -> list[str]:
    """The command of a grader process; its own alarm is a little later than the parent's limit."""
    return [
        sys.executable,
        "-m",
        "megatron_apo.rewards.worker",
        f"--memory-mib={MEMORY_MIB}",
        f"--alarm-seconds={math.ceil(timeout_seconds) + 5}",
    ]


class GraderProcess:
    """A running grader. ``pending`` is the (answer, gold) it works on, ``deadline`` when that must be done."""

    def __init__(self, command: Sequence[str]):
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's affair
        )
        self.pending: tuple[str, str] | None = None
        self.deadline = 0.0
        self._unread = b""
        self._lines: deque[bytes] = deque()
        self._await_ready()

    def ask(self, pair: tuple[str, str], timeout_seconds: float) -> bool:
        """Sends an answer and its gold; False when the process has ended."""
        assert self.process.stdin is not None
        self.pending = pair
        self.deadline = time.monotonic() + timeout_seconds
        try:
            self.process.stdin.write(json.dumps({"answer": pair[0], "gold": pair[1]}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def fileno(self) -> int:
        """Of its replies, for a selector."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def read_reply(self) -> dict[str, object] | None:
        """The next reply if it is complete; EOFError when the process has ended. Call it when readable."""
        chunk = os.read(self.fileno(), 65536)
        if not chunk:
            raise EOFError("the grader process ended")
        self._unread += chunk
        *complete, self._unread = self._unread.split(b"\n")
        self._lines.extend(complete)
        return json.loads(self._lines.popleft()) if self._lines else None

    def kill(self) -> None:
        """Ends it at once and reaps it; safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                # A dead reader makes closing raise when a request is still buffered.
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise RewardError(f"a grader process was not ready after {START_SECONDS:.0f} s")
                try:
                    reply = self.read_reply()
                except EOFError as error:
                    self.kill()
                    raise RewardError(
                        f"a grader process ended with exit code {self.process.returncode} before it was ready; "
                        f"run it by hand to see why: {' '.join(self.process.args)}"  # type: ignore[arg-type]
                    ) from error
                if reply is not None:
                    return
