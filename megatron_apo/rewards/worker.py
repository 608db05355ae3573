"""A reward process: ``python -m megatron_apo.rewards.worker``, JSON lines in, JSON lines out.

Without rewards of the user's it grades: it reads ``{"answer", "gold", "options", "tolerance"}`` and writes
``{"outcome", "detail"}``. With ``--reward SOURCE SHA256`` it calls those functions: it reads ``{"reward": SOURCE,
"arguments": {…}}`` and writes ``{"value"}`` or ``{"error"}``. Its first line, ``{"ready": true}``, says that everything
is loaded, or ``{"failed": …}`` why that could not be. It ends when its input does. A process of its own because sympy,
or a reward, can take for ever, or all memory, on what a model writes, and nothing but a kill stops it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from megatron_apo.rewards.accuracy import GraderError, grade
from megatron_apo.rewards.user_rewards import checked_value, load_user_reward

_Handler = Callable[[dict[str, Any]], dict[str, Any]]

# Loads the parsers and what they import late: that must not count as the first answer's time.
_WARM_UP = [("1", "1"), (r"\frac{1}{2}", r"$\frac{2}{4}$"), ("x^2+1", "1+x^2"), ("(1, 2]", "[1, 2)"), ("{1}", r"\{1\}")]


def grading() -> _Handler:
    """Judges an answer."""
    for answer, gold in _WARM_UP:
        grade(answer, gold)
    forbid_running_text()

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome = grade(request["answer"], request["gold"], request["options"], request["tolerance"])
        except (GraderError, ValueError) as error:
            return {"outcome": "grader_error", "detail": str(error)}
        return {"outcome": outcome, "detail": ""}

    return handle


def user_rewards(sources: list[list[str]]) -> _Handler:
    """Calls the user's functions; what they raise is told, not hidden."""
    functions = {source: load_user_reward(source, sha256) for source, sha256 in sources}

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"value": checked_value(functions[request["reward"]](**request["arguments"]))}
        except Exception as error:  # noqa: BLE001 - another's code may raise anything: all of it is told to the parent
            place = traceback.extract_tb(error.__traceback__)[-1]
            return {"error": f"{type(error).__name__}: {error!s:.300} ({place.filename}, line {place.lineno})"}

    return handle


def forbid_running_text() -> None:
    """From here on nothing in this process may compile text, start a process or open a connection.

    A second wall: no model text reaches a compiler anyway (see ``formulas``).
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        # Modules that are imported late are read from files, by their names; text that is run has none.
        runs_text = event == "compile" and not str(arguments[1]).endswith(".py")
        if runs_text or event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "socket.")):
            raise ValueError(f"{event} is not allowed while an answer is graded")

    sys.addaudithook(refuse)


def serve(handle: _Handler, requests: TextIO, replies: TextIO, alarm_seconds: int) -> None:
    """Answers line by line until the end of the input."""
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in requests:
        request = json.loads(line)
        # The default action of SIGALRM ends the process even inside C code, should the parent be gone.
        signal.alarm(alarm_seconds)
        reply = handle(request)
        signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


def keep_pipes() -> tuple[TextIO, TextIO]:
    """Requests and replies on descriptors of their own; standard input is empty from here on, output goes to errors.

    Whatever a library or a reward prints, or a program that it starts reads or writes, must not get among them. The
    new descriptors are inherited by none (``os.dup``).
    """
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def main() -> None:
    """Sets the limits, loads what is asked for, serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mib", type=int, required=True, help="address space of this process")
    parser.add_argument("--alarm-seconds", type=int, required=True, help="end this process after so long on an answer")
    parser.add_argument("--reward", nargs=2, action="append", default=[], metavar=("SOURCE", "SHA256"))
    arguments = parser.parse_args()
    limit = arguments.memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # math-verify warns of every formula it cannot read; model output is full of them.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    requests, replies = keep_pipes()
    try:
        handle = user_rewards(arguments.reward) if arguments.reward else grading()
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error!s:.300}"
        print(json.dumps({"failed": said}), file=replies, flush=True)
        raise
    serve(handle, requests, replies, arguments.alarm_seconds)


if __name__ == "__main__":
    main()
