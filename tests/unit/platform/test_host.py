"""A program that prepared its host ends without looking for garbage once more."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc
{prepare}
class Cycle:
    def __del__(self):
        print("looked for", flush=True)
gc.disable()
one = Cycle()
one.itself = one
del one
atexit.register(print, "handlers run", flush=True)
"""


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("", ["handlers run", "looked for"]),
        ("from megatron_apo.platform.host import prepare; prepare(); prepare()", ["handlers run"]),
    ],
)
def test_the_end_is_prompt(prepare: str, said: list[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(prepare=prepare)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == said
