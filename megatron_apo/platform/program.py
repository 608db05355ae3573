"""How a program of this package ends."""

from __future__ import annotations

import atexit
import os
import select
import sys
from collections.abc import Callable


def run(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with the status that it returns, once the exit handlers have run.

    The interpreter's teardown after them is left out: it looks for garbage in all that torch, transformers and vLLM
    made and takes that apart piece by piece, seconds of work for nothing and on a busy machine a minute. A ``main``
    that raises ends as always; one whose reader went away (``… | head``) ends with status 1 and without a word.
    """
    returned: list[int] = []
    atexit.register(_leave, returned)  # before main registers any: the last one to run
    try:
        returned.append(main())
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():  # another pipe, an engine's: an error like any
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be flushed goes there
        returned[:] = [1]
    sys.exit(returned[0])


def _reader_left() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told of in any case
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _leave(returned: list[int]) -> None:
    if returned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(returned[0])
