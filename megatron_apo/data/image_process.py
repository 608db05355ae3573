"""A process of ours that handles picture files: JSON lines go in, lines come out."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

# The files are anybody's: the process that decodes them gets no credentials that may stand in the environment.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
# Memory that is given back to the system after one picture has to be cleared anew for the next.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**28)}
_CHUNK = 65536
_TAIL = 2000  # bytes
_END_SECONDS = 10.0


class ProcessEnded(Exception):
    """The process ended, or was ended because it took too long."""


class ImageProcessError(RuntimeError):
    """A process for pictures cannot be started; the message says why."""


def open_replies() -> TextIO:
    """In the process itself: tells the parent that it is up, and gives what its answers go to.

    Whatever else writes to standard output or error is dropped from here on: no library gets among the answers, and
    codecs write notes on damaged files without end.
    """
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    print(file=replies, flush=True)
    return replies


class ImageProcess:
    """``python -m module arguments``; nothing of the parent (torch, a process group, its threads) is inherited.

    It is to begin with ``open_replies`` and to end when its input does, so none outlives the parent. Wait until it is
    up before asking, and ``end`` it, whatever it has answered. The file descriptors ``pass_fds`` are open in it,
    and ``environment`` is added to the little that it inherits.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        self._command = ["-m", module, *arguments]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self._process = subprocess.Popen(
            [sys.executable, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=pass_fds,
            env={**inherited, **environment},
            start_new_session=True,  # Ctrl-C is the parent's affair
        )
        self._read = b""

    def wait_until_up(self, seconds: float) -> None:
        """Raises ImageProcessError, with what it wrote last, when it is not within so many seconds."""
        try:
            self.line(seconds)
        except ProcessEnded:
            code = self._process.wait(_END_SECONDS)
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL))
            tail = self._errors.read().decode("utf-8", errors="replace").strip()
            raise ImageProcessError(
                f"a process that reads pictures did not start within {seconds:g} s (python {' '.join(self._command)}: "
                f"exit status {code}); its last words:\n{tail or '(none)'}"
            ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: object) -> None:
        """Raises ProcessEnded when it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ProcessEnded from error

    def line(self, seconds: float) -> bytes:
        """Its next line, waited for at most so long; then, or when it is gone, ProcessEnded: it does not live on."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            waiting = select.poll()  # select knows no descriptor above 1,023
            waiting.register(self._process.stdout, select.POLLIN)
            ready = waiting.poll(1000 * max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), _CHUNK) if ready else b""
            if not data:
                self._process.kill()
                raise ProcessEnded
            self._read += data
        line, self._read = self._read.split(b"\n", 1)
        return line

    def kill(self) -> None:
        """Ends it from any thread; whoever waits for an answer gets ProcessEnded."""
        self._process.kill()

    def end(self) -> None:
        """Kills and reaps it."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that a file system holds up ends later
            self._process.wait(_END_SECONDS)
        self._errors.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a request was still buffered
                continue
