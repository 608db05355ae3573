"""Any model, any inputs, any layout: outputs and every gradient equal transformers'.

    python -m tests.properties.layouts --draws 500 [--first 0] [--largest-world 8] [--log FILE]

Draws random shapes of both families with every tensor random, random inputs and random layouts. An impossible layout
must be refused with every factor named, and is drawn again. Exit status 1 when a draw fails; ``--first N --draws 1``
repeats draw N.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_apo.platform.host import prepare

prepare()

from megatron_apo.training.setup import check_shape_layout  # noqa: E402 - after prepare
from model_providers.qwen_vl.shape import read_shape  # noqa: E402
from tests.distributed.launcher import Case, run_cases  # noqa: E402
from tests.gradients import largest  # noqa: E402
from tests.properties.draws import Draw, draw_case  # noqa: E402
from tests.properties.ranks import LIMITS, hf_config  # noqa: E402

BATCH = 10  # draws of one launcher


@dataclass(frozen=True)
class Property:
    """What is checked of a draw: ``check`` and ``check_with_bug`` are "module:function" that its ranks run.

    ``limits``: of the result's values, each with its noise beside it where there is one. ``more(draw)``: what it has
    besides its model, inputs and layout, in words that are counted.
    """

    check: str
    check_with_bug: str
    limits: dict[str, float]
    more: Callable[[Draw], list[str]] = lambda draw: []


OUTPUTS = Property("tests.properties.ranks:check", "tests.properties.injected:check_with_bug", LIMITS)


def possible(number: int, largest_world: int, folder: Path) -> tuple[Draw, int, list[str]]:
    """The first possible layout of draw ``number``, its attempt, and the refusals before it."""
    hf_config(draw_case(number, largest_world=largest_world)).save_pretrained(folder)
    shape, refusals = read_shape(folder), []
    for attempt in range(200):
        draw = draw_case(number, largest_world=largest_world, attempt=attempt)
        try:
            check_shape_layout(draw.parallel, shape, draw.world, vision_ffn_multiple=draw.vision_ffn_multiple)
        except ValueError as error:
            parallel = draw.parallel
            named = f"tensor {parallel.tensor} × pipeline {parallel.pipeline} × context {parallel.context}"
            assert named in str(error) and f"world {draw.world}" in str(error), error
            refusals.append(str(error))
            continue
        return draw, attempt, refusals
    raise AssertionError(f"draw {number}: no possible layout in 200")


def run_draws(
    numbers: list[int],
    largest_world: int,
    root: Path,
    *,
    bugs: Sequence[str] = ("",),
    checked: Property = OUTPUTS,
) -> tuple[list[tuple[Draw, dict[str, Any]]], int]:
    """(draw, its result) of each number, and how many layouts were refused; AssertionError when one cannot be run.

    ``bugs``: some of ``injected.BUGS``; then all draws with the first put in, all with the second, and so on.
    """
    drawn = []
    for bug, number in itertools.product(bugs, numbers):
        directory = root / bug / f"{number}"
        draw, attempt, refusals = possible(number, largest_world, directory / "config")
        arguments = {"number": number, "largest_world": largest_world, "attempt": attempt}
        function, more = (checked.check_with_bug, {"bug": bug}) if bug else (checked.check, {})
        case = Case(function, draw.world, str(directory), arguments | more)
        drawn.append((draw, case, len(refusals)))
    run_cases([case for _, case, _ in drawn], timeout=300.0)
    results = [(draw, json.loads(Path(case.directory, "result.json").read_text())) for draw, case, _ in drawn]
    return results, sum(count for _, _, count in drawn)


def failure(result: dict[str, Any], checked: Property = OUTPUTS) -> str:
    """What exceeds its limit, in words; empty when nothing does. NaN exceeds every limit."""
    return ", ".join(
        f"{name} {result[name]:.1e}" for name, limit in checked.limits.items() if not result[name] <= limit
    )


def line_of(draw: Draw, result: dict[str, Any], checked: Property = OUTPUTS) -> str:
    """One line of the log."""
    wrong = failure(result, checked)
    values = [
        f"{name} {result[name]:.1e}" + (f" (noise {result[f'{name}_noise']:.1e})" if f"{name}_noise" in result else "")
        for name in checked.limits
    ]
    more = f" {checked.more(draw)}" if checked.more(draw) else ""
    again = f", values {result['redrawn']}" if result.get("redrawn") else ""
    return f"{'FAILED ' + wrong if wrong else 'ok'}: {', '.join(values)}, worst {result['worst']}{again}; {draw}{more}"


def summary(
    results: list[tuple[Draw, dict[str, Any]]], refused: int, failed: int, seconds: float, checked: Property
) -> str:
    """Worst, median and how many draws had what."""
    lines = [f"{len(results)} draws, {failed} failed, {refused} impossible layouts refused, {seconds:.0f} s"]
    for name in [name for limit in checked.limits for name in (limit, f"{limit}_noise")]:
        if values := [result[name] for _, result in results if name in result]:
            lines.append(f"{name}: largest {largest(values):.1e}, median {statistics.median(values):.1e}")
    if again := [result["redrawn"] for _, result in results if result.get("redrawn")]:
        lines.append(f"{len(again)} draws' values drawn again, at most {max(again)} times: float32's noise")
    counts = Counter(factor for draw, _ in results for factor in [*draw.factors(), *checked.more(draw)])
    lines += [f"{count:5d}  {factor}" for factor, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return "\n".join(lines)


def _write(log: Path | None, lines: list[str]) -> None:
    if log:
        log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(checked: Property = OUTPUTS, description: str | None = __doc__) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500, metavar="N", help="how many (default: 500)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first (default: 0)")
    parser.add_argument("--largest-world", type=int, default=8, metavar="N", help="processes at most (default: 8)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where a line per draw and the summary go")
    options = parser.parse_args()
    started, refused, failed = time.monotonic(), 0, 0
    results: list[tuple[Draw, dict[str, Any]]] = []
    lines: list[str] = []
    numbers = list(range(options.first, options.first + options.draws))
    with tqdm(total=len(numbers), unit="draw") as bar:
        for start in range(0, len(numbers), BATCH):
            root, batch = Path(tempfile.mkdtemp(prefix="layout-draws-")), numbers[start : start + BATCH]
            try:
                found, impossible = run_draws(batch, options.largest_world, root, checked=checked)
            except AssertionError as error:
                failed += 1
                lines.append(f"FAILED to run one of draws {batch[0]} to {batch[-1]}: {error}")
                print(lines[-1], file=sys.stderr)
                continue
            finally:
                shutil.rmtree(root, ignore_errors=True)
                bar.update(len(batch))
            results, refused = results + found, refused + impossible
            lines += [line_of(draw, result, checked) for draw, result in found]
            for draw, result in found:
                if failure(result, checked):
                    failed += 1
                    print(line_of(draw, result, checked), file=sys.stderr)
            _write(options.log, lines)
    lines.append(summary(results, refused, failed, time.monotonic() - started, checked))
    print(lines[-1])
    _write(options.log, lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
