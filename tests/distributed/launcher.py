"""Runs functions on several gloo ranks of this machine: one process imports everything, then forks the ranks.

``run_cases`` starts ``python -m tests.distributed.launcher``, which imports Megatron once and, case after case, forks
``world`` ranks that call ``function(directory, **arguments)`` with torchrun's environment variables set. A rank that
fails or hangs ends its case: the others are killed, and its traceback is in the error. As under torchrun the ranks meet
in a store that is there before them: a port that rank 0 were to open could be somebody else's by then.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """``function`` is "module:name"; ``directory`` is where its ranks put what the test looks at."""

    function: str
    world: int
    directory: str
    arguments: dict[str, Any] = field(default_factory=dict)


def run_cases(cases: Sequence[Case], *, timeout: float = 240.0) -> None:
    """Runs the cases one after the other; AssertionError with the ranks' output when one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.launcher", str(timeout)],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=timeout * len(cases) + 120,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"


@contextmanager
def _store() -> Iterator[int]:
    """The port of a store for one case, in a process of its own: a fork would not take its threads along."""
    told, tell = os.pipe()
    held, hold = os.pipe()
    server = os.fork()
    if server == 0:
        os.close(hold)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(tell, f"{store.port}\n".encode())
        os.read(held, 1)  # returns when everybody who could need it has ended
        os._exit(0)
    os.close(tell)
    os.close(held)
    try:
        with os.fdopen(told) as answer:
            yield int(answer.readline())
    finally:
        os.close(hold)
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _rank_main(case: Case, rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(case.world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    module, name = case.function.split(":")
    getattr(importlib.import_module(module), name)(Path(case.directory), **case.arguments)


def _fork_ranks(case: Case, port: int, imported: Path) -> list[int]:
    """Process ids of the ranks; the first of them leaves the names of its modules in ``imported``."""
    children = []
    for rank in range(case.world):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _rank_main(case, rank, port)
                if rank == 0:
                    imported.write_text("\n".join(sys.modules))
                status = 0
            except BaseException:
                print(f"--- rank {rank} of {case.world}, {case.function}", file=sys.stderr)
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    return children


def _wait(case: Case, children: list[int], timeout: float) -> bool:
    deadline, running, fine = time.monotonic() + timeout, set(children), True
    while running and fine and time.monotonic() < deadline:
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                running.discard(child)
                fine = fine and status == 0
        time.sleep(0.02)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if running:
        print(f"{case.function} on {case.world} ranks: {'a rank failed' if not fine else 'timed out'}", file=sys.stderr)
    return fine and not running


def _inherit(imported: Path) -> None:
    """Imports, in their order, the modules that ``imported`` names; some are made by others and cannot be.

    None of those of ranks that put a double of Transformer Engine in place: Megatron-Core would be imported without.
    """
    names = imported.read_text().splitlines() if imported.exists() else []
    if "transformer_engine" in names:
        return
    for name in names:
        if name not in sys.modules:
            with suppress(ImportError):
                importlib.import_module(name)


def main() -> int:
    cases = [Case(**case) for case in json.loads(sys.stdin.read())]
    from megatron_apo.platform.host import prepare

    prepare()
    for module in {case.function.split(":")[0] for case in cases}:
        importlib.import_module(module)  # imported once here, inherited by every rank
    with tempfile.TemporaryDirectory() as directory:
        imported = Path(directory, "imported")
        for case in cases:
            Path(case.directory).mkdir(parents=True, exist_ok=True)
            _inherit(imported)
            with _store() as port:
                if not _wait(case, _fork_ranks(case, port, imported), float(sys.argv[1])):
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
