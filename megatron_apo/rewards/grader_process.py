"""One reward process from its parent's side: start, ask, read, kill.

A plain subprocess that speaks JSON lines, not ``multiprocessing``: nothing of the parent (torch, a process group, an
engine, its threads) is inherited or imported again, so it starts alike under torchrun, vLLM and pytest. Nothing here
blocks: neither a process that does not read nor one that does not answer can hold up its parent.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 120.0  # to load the grader's libraries, also on a busy machine

# The process reads model output: it gets no credentials that may stand in the environment.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "VIRTUAL_ENV")
# Sets of text are walked in the same order in every process, so that each computes the same way.
_HASH_SEED = "0"
# One of these keys is in everything that ``worker`` writes.
_REPLIES = {"ready", "failed", "outcome", "value", "error"}


class RewardError(RuntimeError):
    """Rewards cannot be computed; the run must stop."""


def worker_command(timeout_seconds: float, memory_mib: int, rewards: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The command of a reward process; its own alarm is a little later than the parent's limit.

    ``rewards``: (source, SHA-256) of the user's functions; without any it grades answers.
    """
    return [
        sys.executable,
        "-m",
        "megatron_apo.rewards.worker",
        f"--memory-mib={memory_mib}",
        f"--alarm-seconds={math.ceil(timeout_seconds) + 5}",
        *(part for source, sha256 in rewards for part in ("--reward", source, sha256)),
    ]


class GraderProcess:
    """A running process. ``pending`` are the numbers of the requests it has, in its order; ``deadline``: when the
    first of them must be answered, or the process be ``ready``."""

    def __init__(self, command: Sequence[str]):
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        environment["PYTHONHASHSEED"] = _HASH_SEED
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's affair
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self.ready = False
        self.pending: deque[int] = deque()
        self.deadline = time.monotonic() + START_SECONDS
        self._unsent = b""
        self._unread = b""

    def fileno(self) -> int:
        """Of its replies, for a selector."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def ask(self, requests: Sequence[tuple[int, Mapping[str, Any]]], timeout_seconds: float) -> None:
        """Hands it numbered requests, to be answered one after the other, each within ``timeout_seconds``."""
        self.pending.extend(number for number, _ in requests)
        self.deadline = time.monotonic() + timeout_seconds
        self._unsent = b"".join(json.dumps(request).encode() + b"\n" for _, request in requests)
        self.send()

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def input_fileno(self) -> int:
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    def send(self) -> None:
        """Writes as much as it takes at the moment. That it has ended is seen when its replies are read."""
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self.input_fileno(), self._unsent[:65536]) :]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._unsent = b""

    def read_replies(self) -> list[dict[str, Any]]:
        """The replies that are complete; EOFError when the process has ended. Call it when readable.

        ``{"unreadable": why}`` stands for a line that is no reply.
        """
        chunk = os.read(self.fileno(), 65536)
        if not chunk:
            raise EOFError("the process ended")
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        return [_reply(line) for line in lines]

    def kill(self) -> None:
        """Ends it at once and reaps it; safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _reply(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except ValueError:
        reply = None
    if not isinstance(reply, dict) or not _REPLIES & reply.keys():
        return {"unreadable": f"the process wrote {line[:80].decode(errors='replace')!r}, which is no reply"}
    return reply
