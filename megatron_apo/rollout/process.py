"""An engine in a process of its own, for runs of several ranks and for engines that must not share the trainer's.

The trainer and its child share one end each of an anonymous AF_UNIX socket pair: it has no name in the file system,
nobody else can connect to it, and it closes by itself when either side dies. Weights go as the path of a private file
in shared memory. The child starts in the background: whoever calls first waits for it.

``python -m megatron_apo.rollout.process --socket FD --parent PID`` is the child.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from megatron_apo.records import Prompt, Rollout
from megatron_apo.rollout import wire
from megatron_apo.rollout.build import engine_here
from megatron_apo.rollout.engine import EngineSettings, SamplingSettings, WeightReceipt
from megatron_apo.rollout.weight_file import weight_file

KINDS = ("vllm", "transformers")
_LAUNCHER_VARIABLES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "PMI_", "PMIX_", "OMPI_")
# What the trainer's services are opened with: an engine reads a local directory and needs none of it.
_SECRET = re.compile(r"(^|_)((API_KEY|TOKEN)$|SECRET|PASSWORD)", re.IGNORECASE)
_LOG_TAIL_LINES = 30
_CLOSE_SECONDS = 10.0
_POLL_SECONDS = 1.0


class EngineProcessError(RuntimeError):
    """The engine process died, or did not answer in time; the message ends with its log's last lines."""


class EngineProcess:
    """A ``RolloutEngine`` whose work is done by a child process.

    ``kind``: "vllm" or "transformers". ``timeout_seconds``: of each call, the wait for the start not counted;
    ``start_timeout_seconds``: of the start. ``log_file``: where the child's output goes; when None a temporary file,
    removed at ``close`` unless the child failed. A child that dies or does not answer in time raises
    EngineProcessError, and from then on every call does.
    """

    def __init__(
        self,
        kind: str,
        settings: EngineSettings,
        *,
        timeout_seconds: float = 1800.0,
        start_timeout_seconds: float = 600.0,
        log_file: str | Path | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"rollout.engine={kind}: must be one of {', '.join(KINDS)}")
        self._timeout = timeout_seconds
        self._start_deadline = time.monotonic() + start_timeout_seconds
        self._start_timeout = start_timeout_seconds
        self._weight_version = 0
        self._ready = False
        self._failure = ""
        self._own_log = log_file is None
        self._log = Path(log_file) if log_file is not None else _temporary_log()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, self._log.open("ab") as log:
            command = [sys.executable, "-m", "megatron_apo.rollout.process"]
            self._child = subprocess.Popen(
                [*command, "--socket", str(theirs.fileno()), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env=child_environment(os.environ),
                start_new_session=True,  # the terminal's Ctrl-C is the trainer's to answer
            )
        self._finalizer = weakref.finalize(self, _kill, self._child, self._connection)
        self._exchange_out({"call": "start", "kind": kind, "settings": asdict(settings)}, {})

    @property
    def weight_version(self) -> int:
        return self._weight_version

    def wait_until_ready(self) -> None:
        """Returns once the engine is up; raises what building it raised. Every call does this first."""
        if self._failure:
            raise EngineProcessError(self._failure)
        if self._ready:
            return
        try:
            self._exchange_in(self._start_deadline - time.monotonic(), f"start within {self._start_timeout:g} s")
        except ValueError as error:
            self._failure = str(error)
            raise
        self._ready = True

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        plain, tensors = wire.pack_prompts(prompts)
        answer, arrived = self._call({"call": "generate", "prompts": plain, "sampling": asdict(sampling)}, tensors)
        return wire.unpack_rollouts(answer["rollouts"], arrived)

    def update_weights(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> WeightReceipt:
        with weight_file(weights) as path:
            answer, _ = self._call({"call": "update_weights", "version": version, "path": str(path)}, {})
        receipt = answer["receipt"]
        self._weight_version = receipt["version"]
        names = {field: tuple(receipt[field]) for field in ("loaded", "missing", "unknown")}
        return WeightReceipt(**{**receipt, **names})

    def close(self) -> None:
        if not self._finalizer.alive:
            return
        if self._child.poll() is None and not self._failure:
            self._connection.close()  # the child ends its engine and itself when it sees this
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_CLOSE_SECONDS)
        self._failure = self._failure or "this engine is closed"
        self._finalizer()
        if self._own_log:
            self._log.unlink(missing_ok=True)

    def _call(
        self, body: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        self.wait_until_ready()
        deadline = time.monotonic() + self._timeout
        self._failure = f"the call {body['call']} to the engine process was interrupted; build a new one"
        self._exchange_out(body, tensors)
        try:
            answer = self._exchange_in(deadline - time.monotonic(), f"{body['call']} within {self._timeout:g} s")
        except ValueError:  # the engine's answer: it is ready for the next call
            self._failure = ""
            raise
        self._failure = ""
        return answer

    def _exchange_out(self, body: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        try:
            wire.send(self._connection, body, tensors, self._timeout)
        except wire.ConnectionLost:
            self._fail("died")
        except TimeoutError:
            self._fail(f"did not take {body['call']} within {self._timeout:g} s (rollout.timeout_seconds)")

    def _exchange_in(self, seconds: float, what: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        try:
            answer, tensors = wire.receive(self._connection, seconds)
        except wire.ConnectionLost:
            self._fail("died")
        except TimeoutError:
            self._fail(f"did not answer {what} (rollout.timeout_seconds)")
        if "value_error" in answer:
            raise ValueError(answer["value_error"])
        return answer, tensors

    def _fail(self, what: str) -> NoReturn:
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        state = "is still running and is now ended" if code is None else _exit_words(code)
        tail = _tail(self._log)
        self._finalizer()
        self._failure = (
            f"the engine process {self._child.pid} {what}; it {state}. The end of its log ({self._log}):\n{tail}"
        )
        raise EngineProcessError(self._failure)


def of_launcher(name: str) -> bool:
    """Whether a launcher (torchrun, MPI) sets the environment variable ``name`` to tell a process of its ranks."""
    return name in _LAUNCHER_VARIABLES or name.startswith(_LAUNCHER_PREFIXES)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what a launcher says of ranks and without secrets, and with this package importable."""
    kept = {name: value for name, value in environment.items() if not of_launcher(name) and not _SECRET.search(name)}
    root = str(Path(__file__).resolve().parents[2])
    inherited = kept.get("PYTHONPATH")
    kept["PYTHONPATH"] = os.pathsep.join([root, inherited]) if inherited else root
    return kept


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="megatron_apo-engine-", suffix=".log")
    os.close(handle)
    return Path(name)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:]) or "(empty)"


def _exit_words(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _kill(child: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """Ends the child and what it started; safe to call for a dead one."""
    connection.close()
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(engine: Any, body: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> tuple[Any, Any]:
    if body["call"] == "generate":
        prompts = wire.unpack_prompts(body["prompts"], tensors)
        plain, arrays = wire.pack_rollouts(engine.generate(prompts, SamplingSettings(**body["sampling"])))
        return {"rollouts": plain}, arrays
    if body["call"] == "update_weights":
        return {"receipt": asdict(engine.update_weights_from_file(body["version"], Path(body["path"])))}, {}
    raise AssertionError(f"unknown call {body['call']}")


def _serve(connection: socket.socket) -> None:
    """Answers calls until the trainer closes the connection. What a user can cause goes back as an answer; any other
    error ends this process, and the trainer shows the traceback from the log."""
    engine: Any = None
    try:
        while True:
            body, tensors = wire.receive(connection, None)
            answer: Any = {}
            arrays: Any = {}
            try:
                if body["call"] == "start":
                    settings = body["settings"]
                    forbidden = tuple(settings["forbidden_token_ids"])
                    engine = engine_here(body["kind"], EngineSettings(**{**settings, "forbidden_token_ids": forbidden}))
                else:
                    answer, arrays = _answer(engine, body, tensors)
            except ValueError as error:
                answer, arrays = {"value_error": str(error)}, {}
            wire.send(connection, answer, arrays, 60.0)
    except wire.ConnectionLost:
        pass
    finally:
        if engine is not None:
            engine.close()


def _watch_parent(parent: int) -> None:
    """Ends this process when the trainer is gone, also in the middle of a call."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """The engine process."""
    parser = argparse.ArgumentParser(description="An engine that answers a trainer over a socket; started by one.")
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of a connected AF_UNIX socket")
    parser.add_argument("--parent", type=int, required=True, help="process id of the trainer")
    arguments = parser.parse_args()
    threading.Thread(target=_watch_parent, args=(arguments.parent,), daemon=True).start()
    with socket.socket(fileno=arguments.socket) as connection:
        _serve(connection)


if __name__ == "__main__":
    main()
