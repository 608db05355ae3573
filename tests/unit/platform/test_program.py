"""A program ends with its status and its exit handlers, and without looking for garbage once more."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
from megatron_apo.platform.program import run

class Cycle:
    def __del__(self):
        print("garbage", flush=True)

def main():
    gc.disable()
    one = Cycle()
    one.itself = one
    atexit.register(print, "handler")
    print("main")
    {end}

if {plainly}:
    sys.exit(main())
run(main)
"""


@pytest.mark.parametrize(
    ("end", "plainly", "status", "said"),
    [
        ("return 3", True, 3, ["main", "handler", "garbage"]),
        ("return 3", False, 3, ["main", "handler"]),
        ("return 0", False, 0, ["main", "handler"]),
        ("sys.exit(2)", False, 2, ["main", "handler", "garbage"]),
        ("raise KeyError('x')", False, 1, ["main", "handler", "garbage"]),
    ],
)
def test_how_a_program_ends(end: str, plainly: bool, status: int, said: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end=end, plainly=plainly)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # a pipe: buffered output
    assert (done.returncode, done.stdout.splitlines()) == (status, said)
    assert ("KeyError" in done.stderr) == (status == 1)


def test_the_command_line_ends_so() -> None:
    code = "import os, runpy, sys; sys.argv = ['m', 'report', '--such=1', '.']; os._exit = lambda s: print('left', s); "
    code += "runpy.run_module('megatron_apo', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["left 2"] and done.stderr.startswith("error: --such=1: report"), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [("print('more' * 100_000)", 1, ""), ("raise BrokenPipeError('the engine')", 1, "the engine")],
)
def test_a_reader_that_went_away_is_no_error_and_another_broken_pipe_is_one(end: str, status: int, error: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end=end, plainly=False)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    if not error:
        process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == status
    assert (error in said) if error else said == ""
