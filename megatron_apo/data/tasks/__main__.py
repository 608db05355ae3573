"""``python -m megatron_apo.data.tasks``: writes a task that needs no download, or a contact sheet of one."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

_EXAMPLES = {
    "digits": "digits   runs/largest  --question largest --level hard --train 8192",
    "counting": "counting runs/counting --train 8192 --shifted 512 --workers 8",
    "geometry": "geometry runs/geometry --train 8192 --choices --demonstrations 512",
    "sheet": "sheet    runs/counting counting.png --split test --rows 12",
}
_WRITTEN = """
A task is a directory: train.jsonl, validation.jsonl, test.jsonl, images/, task.json (how it was made, with a SHA-256
of the files). The same arguments write the same rows; more rows leave the first ones as they are. Train on it with
--data.train=DIRECTORY/train.jsonl and so on. docs/tasks.md shows the tasks and says what their levels are.
"""
# What the tasks' functions call their arguments -> the option.
_OPTIONS = {
    "train_rows": "--train",
    "validation_rows": "--validation",
    "test_rows": "--test",
    "demonstration_rows": "--demonstrations",
    "shifted_rows": "--shifted",
    "workers": "--workers",
    "directory": "DIRECTORY",
}
_NAMED = re.compile(rf"\b({'|'.join(_OPTIONS)})=")
# What a level of the sums is: the fewest and the most digits of a row.
_DIGITS_OF_LEVEL = {"easy": (2, 2), "medium": (3, 3), "hard": (4, 5)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status, 2 after an error that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        print(_sheet(options) if options.command == "sheet" else _task(options))
    except ValueError as error:
        said = _NAMED.sub(lambda found: f"{_OPTIONS[found[1]]}=", str(error))
        print(f"error: {said}", file=sys.stderr)
        return 2
    except OSError as error:  # a place that cannot be written, a disk that is full
        print(f"error: {error.filename or options.command}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    more: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}

    def epilog(*names: str) -> str:
        lines = "".join(f"  python -m megatron_apo.data.tasks {_EXAMPLES[name]}\n" for name in names)
        return f"{'examples' if len(names) > 1 else 'example'}:\n{lines}{'' if names == ('sheet',) else _WRITTEN}"

    description = "Writes a task that needs no download, or a contact sheet of one."
    parser = argparse.ArgumentParser(
        prog="python -m megatron_apo.data.tasks", description=description, epilog=epilog(*_EXAMPLES), **more
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def task(name: str, summary: str, levels: tuple[str, ...], default: str) -> argparse.ArgumentParser:
        described = f"{summary[0].upper()}{summary[1:]}."
        added = commands.add_parser(name, help=summary, description=described, epilog=epilog(name), **more)
        added.add_argument("directory", metavar="DIRECTORY", help="where the task goes; the same one is left as it is")
        for split, count in (("train", 8192), ("validation", 512), ("test", 512)):
            said = f"{split} rows (default: %(default)s)"
            added.add_argument(f"--{split}", type=int, metavar="N", default=count, help=said)
        added.add_argument("--seed", type=int, metavar="N", default=0, help="other rows (default: %(default)s)")
        added.add_argument("--level", choices=levels, default=default, help="difficulty (default: %(default)s)")
        said = "of the training rows, how many also go to demonstrations.jsonl, for a warm start (default: %(default)s)"
        added.add_argument("--demonstrations", type=int, metavar="N", default=0, help=said)
        return added

    levels = ("easy", "medium", "hard")
    digits = task("digits", "write questions about handwritten digits", levels, "easy")
    said = "what is asked: the sum, which of two is larger, or the largest of three (default: %(default)s)"
    digits.add_argument("--question", choices=("sum", "comparison", "largest"), default="sum", help=said)
    counting = task(
        "counting", "write questions about numbers of things in rendered scenes", (*levels, "mixed"), "mixed"
    )
    said = "rows of a second test: vehicles, more colours, patterned ground (default: %(default)s)"
    counting.add_argument("--shifted", type=int, metavar="N", default=0, help=said)
    geometry = task("geometry", "write geometry problems with figures", (*levels, "mixed"), "mixed")
    geometry.add_argument("--choices", action="store_true", help="with four options; the answer is a letter")
    for added in (counting, geometry):
        said = "processes that draw (default: %(default)s); the rows are the same"
        added.add_argument("--workers", type=int, metavar="N", default=1, help=said)

    sheet = commands.add_parser("sheet", help="write a contact sheet of a task", epilog=epilog("sheet"), **more)
    sheet.add_argument("directories", nargs="+", metavar="DIRECTORY", help="the task, or several")
    sheet.add_argument("file", metavar="FILE", help="the sheet, a PNG")
    sheet.add_argument("--split", nargs="+", default=["test"], metavar="NAME", help="(default: test)")
    for name, default, said in (
        ("rows", 12, "how many, of as many categories as there are"),
        ("columns", 4, "side by side"),
        ("width", 224, "pixels of a picture"),
        ("colours", 0, "at most, for a smaller file; 0: all"),
    ):
        sheet.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{said} (default: %(default)s)")
    return parser


def _task(options: argparse.Namespace) -> str:
    """Writes the task; what it holds, in a line."""
    arguments = {
        "train_rows": options.train,
        "validation_rows": options.validation,
        "test_rows": options.test,
        "seed": options.seed,
        "demonstration_rows": options.demonstrations,
    }
    # Each task is imported when it is written: help is quick, and the digits alone need scikit-learn.
    if options.command == "counting":
        from megatron_apo.data.tasks.counting.task import write_counting_task

        written = write_counting_task(
            options.directory, **arguments, shifted_rows=options.shifted, level=options.level, workers=options.workers
        )
    elif options.command == "geometry":
        from megatron_apo.data.tasks.geometry.task import write_geometry_task

        written = write_geometry_task(
            options.directory, **arguments, choices=options.choices, level=options.level, workers=options.workers
        )
    elif options.question == "sum":
        from megatron_apo.data.tasks.digits import write_digits_task

        written = write_digits_task(options.directory, **arguments, digits=_DIGITS_OF_LEVEL[options.level])
    else:
        from megatron_apo.data.tasks.digit_comparisons import write_comparison_task

        written = write_comparison_task(options.directory, **arguments, kind=options.question, level=options.level)
    description = json.loads((written / "task.json").read_text(encoding="utf-8"))
    rows = ", ".join(f"{count} {split}" for split, count in description["rows"].items())
    return f"{written}: {rows}"


def _sheet(options: argparse.Namespace) -> str:
    from megatron_apo.data.tasks.sheet import write_sheet

    shape = {"rows": options.rows, "columns": options.columns, "width": options.width, "colours": options.colours}
    return str(write_sheet(options.directories, options.file, splits=options.split, **shape))


if __name__ == "__main__":
    sys.exit(main())
