"""Lines for the person at the terminal, on stderr: stdout is for results."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line, at once."""
    print(text, file=sys.stderr, flush=True)
