"""A grader process: ``python -m megatron_apo.rewards.worker``, JSON lines in, JSON lines out.

Reads ``{"answer": …, "gold": …}``, writes ``{"outcome": …, "detail": …}``; its first line, ``{"ready": true}``, says
that the grader is loaded. It ends when its input does. A process of its own because sympy can take for ever, or all
memory, on what a model writes, and nothing but a kill stops it.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys

from megatron_apo.rewards.accuracy import GraderError, grade


def main() -> None:
    """Serves until the end of the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mib", type=int, required=True, help="address space of this process")
    parser.add_argument("--alarm-seconds", type=int, required=True, help="end this process after so long on an answer")
    arguments = parser.parse_args()
    limit = arguments.memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # math-verify warns of every formula it cannot read; model output is full of them.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not get among the replies
    grade("1", "1")  # loads the parsers: their start-up must not count as the first answer's time
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        # The default action of SIGALRM ends the process even inside C code, should the parent be gone.
        signal.alarm(arguments.alarm_seconds)
        try:
            reply = {"outcome": grade(request["answer"], request["gold"]), "detail": ""}
        except (GraderError, ValueError) as error:
            reply = {"outcome": "grader_error", "detail": str(error)}
        signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
