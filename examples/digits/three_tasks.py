"""The quickstart's policy on all three tasks: before and after APO, greedily and with eight responses a row.

    python examples/digits/three_tasks.py [--directory runs/quickstart] [--rows 256]

``--directory`` is a finished quickstart. Its held-out digits are there; counting, its shifted test and geometry are
drawn. Every evaluation is one of ``python -m megatron_apo evaluate``, printed before it runs, and leaves its responses
and its page in ``--directory``/three_tasks; the tables go to three_tasks/tables.md. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # run as a script, only its own folder is there

from examples.digits.stages import run_example, say  # noqa: E402 - after the path
from megatron_apo.evaluation.paired import paired_difference  # noqa: E402
from megatron_apo.evaluation.responses import AnsweredRow  # noqa: E402
from megatron_apo.observability.paired_page import Evaluated, read_evaluated  # noqa: E402

MODELS = {"before": "sft/export", "after": "apo/export"}
SAMPLES, TEMPERATURE = 8, 1.0
MODES = {"greedy": [], "sampled": [f"--evaluation.samples={SAMPLES}", f"--evaluation.temperature={TEMPERATURE:g}"]}
SAMPLED_ROWS = 64  # of a drawn task: eight responses to each of them take about as long as one to every row
# The quickstart's own limits fit its short question: a geometry problem in its byte-level vocabulary does not.
LIMITS = ["--data.max_prompt_tokens=960", "--sampling.max_tokens=64"]


def command(*words: object) -> None:
    """Prints and runs ``python -m`` with these words; subprocess.CalledProcessError when it fails."""
    told = [str(word) for word in words]
    print(f"\n$ python -m {shlex.join(told)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", *told], cwd=REPOSITORY, check=True)


def draw_tasks(directory: Path, target: Path, rows: int) -> dict[str, Path]:
    """Draws what is not there yet; the held-out file of each task."""
    few = ["--train", 1, "--validation", 1, "--test", rows, "--workers", 2]
    drawn = target / "tasks"  # apart from the evaluations: a task is refused when anything stands beside its files
    command("megatron_apo.data.tasks", "counting", drawn / "counting", *few, "--shifted", rows)
    command("megatron_apo.data.tasks", "geometry", drawn / "geometry", *few)
    return {
        "digits": directory / "task" / "test.jsonl",
        "counting": drawn / "counting" / "test.jsonl",
        "counting_shifted": drawn / "counting" / "shifted.jsonl",
        "geometry": drawn / "geometry" / "test.jsonl",
    }


def evaluate(directory: Path, target: Path, task: str, data: Path, mode: str) -> list[Evaluated]:
    """Both models on one file of rows, and the page that compares them."""
    outputs = [target / task / mode / label for label in MODELS]
    fewer = [f"--evaluation.limit={SAMPLED_ROWS}"] if mode == "sampled" and task != "digits" else []
    for output, model in zip(outputs, MODELS.values(), strict=True):
        words = ["--config", directory / "apo" / "config.yaml", "--model", directory / model, "--data", data]
        command("megatron_apo", "evaluate", *words, "--output", output, *LIMITS, *MODES[mode], *fewer)
    command("megatron_apo", "evaluate", "--compare", *outputs, "--output", target / task / f"{mode}.html")
    return read_evaluated(outputs)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def with_interval(share: float, interval: tuple[float, float] | None) -> str:
    return percent(share) + (f" ({percent(interval[0])} to {percent(interval[1])})" if interval else "")


def best_constant(rows: Sequence[AnsweredRow]) -> tuple[str, float]:
    """The answer that is right most often when it is given to every row, and how often."""
    answer, count = Counter(row.gold for row in rows).most_common(1)[0]
    return answer, count / len(rows)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def greedy_table(found: dict[str, list[Evaluated]]) -> str:
    """Accuracy by task before and after, in per cent, and the paired difference in points."""
    lines = []
    for task, (before, after) in found.items():
        paired = paired_difference(before.rows, after.rows)
        low, high = paired.interval
        answer, share = best_constant(before.rows)
        accuracies = [with_interval(one.result.accuracy, one.result.accuracy_interval) for one in (before, after)]
        difference = f"{100 * paired.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append([task, str(paired.rows), f"{percent(share)} (`{answer}`)", *accuracies, difference])
        lines[-1].append(f"{paired.p_value:.2g}")
    return markdown(["greedy", "rows", "one answer for all", "before", "after", "difference", "p"], lines)


def sampled_table(found: dict[str, list[Evaluated]]) -> str:
    """What several responses a row say, of each model."""
    lines = []
    for task, evaluated in found.items():
        for one in evaluated:
            result = one.result
            most = max(result.pass_at_k)
            shares = [result.accuracy, result.pass_at_k[most], result.majority]
            intervals = [result.accuracy_interval, result.pass_at_k_intervals[most], result.majority_interval]
            cells = [with_interval(*pair) for pair in zip(shares, intervals, strict=True)]
            form = [percent(share) for share in (result.format, result.no_answer, result.truncated)]
            lines.append(
                [
                    task,
                    one.name,
                    str(result.rows),
                    *cells,
                    *form,
                    f"{result.mean_length:.1f}",
                    f"{result.length_95 or 0:.0f}",
                ]
            )
    head = ["sampled", "", "rows", "accuracy", f"pass@{SAMPLES}", "majority", "in the format", "no answer", "cut off"]
    return markdown([*head, "tokens", "95 % at most"], lines)


def level_table(found: dict[str, list[Evaluated]]) -> str:
    """Accuracy by level of difficulty, which a category names before its colon."""
    lines = []
    for task, (before, after) in found.items():
        levels: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(before.rows):
            levels[row.category.split(":")[0]].append(place)
        for level, places in levels.items():
            shares = [fmean(one.rows[place].accuracy for place in places) for one in (before, after)]
            constant = best_constant([before.rows[place] for place in places])[1]
            lines.append([task, level, str(len(places)), percent(constant), *map(percent, shares)])
    order = {name: place for place, name in enumerate(found)}
    lines.sort(key=lambda line: (order[line[0]], ["easy", "medium", "hard", line[1]].index(line[1])))
    return markdown(["greedy", "", "rows", "one answer for all", "before", "after"], lines)


def main() -> int:
    """Draws, evaluates and compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "runs" / "quickstart", help="of the quickstart")
    parser.add_argument("--rows", type=int, default=256, help="of counting, its shifted test and geometry, each")
    options = parser.parse_args()
    directory = options.directory.resolve()

    def work() -> str:
        for model in MODELS.values():
            if not (directory / model / "config.json").is_file():
                raise ValueError(f"--directory {directory}: has no {model}; run make quickstart first")
        target = directory / "three_tasks"
        say(f"tasks in {target}")
        tasks = draw_tasks(directory, target, options.rows)
        found: dict[str, dict[str, list[Evaluated]]] = {}
        for mode in MODES:
            say(f"{mode}: {len(tasks)} tasks, {len(MODELS)} models")
            found[mode] = {task: evaluate(directory, target, task, data, mode) for task, data in tasks.items()}
        greedy = found["greedy"]
        tables = "\n\n".join([greedy_table(greedy), level_table(greedy), sampled_table(found["sampled"])])
        (target / "tables.md").write_text(tables + "\n", encoding="utf-8")
        print(tables)
        return str(target / "digits" / "greedy.html")

    return run_example(work)


if __name__ == "__main__":
    sys.exit(main())
