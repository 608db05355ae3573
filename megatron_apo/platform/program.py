"""How a program of this package ends."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable


def run(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with the status that it returns, once the exit handlers have run.

    The interpreter's teardown after them is left out: it looks for garbage in all that torch, transformers and vLLM
    made and takes that apart piece by piece, seconds of work for nothing and on a busy machine a minute. A ``main``
    that raises ends as always.
    """
    returned: list[int] = []
    atexit.register(_leave, returned)  # before main registers any: the last one to run
    returned.append(main())
    sys.exit(returned[0])


def _leave(returned: list[int]) -> None:
    if returned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(returned[0])
