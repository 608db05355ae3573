"""A process of ours that handles picture files: JSON lines go in, lines come out."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# The files are anybody's: the process that decodes them gets no credentials that may stand in the environment.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")


# One picture is much like the next: memory that is given back to the system after each has to be cleared anew.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**28)}
_CHUNK = 65536


class ProcessEnded(Exception):
    """The process ended, or was ended because it took too long."""


class ImageProcess:
    """``python -m module arguments``; nothing of the parent (torch, a process group, its threads) is inherited.

    It is to end when its input does, so none outlives the parent. ``end`` it, whatever it has answered. The file
    descriptors ``pass_fds`` are open in it.
    """

    def __init__(self, module: str, *arguments: str, pass_fds: Sequence[int] = ()) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        environment |= _KEEP_MEMORY
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs write notes on damaged files there
            pass_fds=pass_fds,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's affair
        )
        self._read = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: object) -> None:
        """Raises ProcessEnded when it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:  # ValueError: ended by another thread
            raise ProcessEnded from error

    def line(self, seconds: float) -> bytes:
        """Its next line, waited for at most so long; then, or when it is gone, ProcessEnded: it does not live on."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            try:
                descriptor = self._process.stdout.fileno()
                ready = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]
                data = os.read(descriptor, _CHUNK) if ready else b""
            except (OSError, ValueError) as error:  # ended by another thread
                raise ProcessEnded from error
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
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a request was still buffered
                continue
