"""The quickstart: a small Qwen2.5-VL learns to read handwriting by APO, on a CPU, from nothing but this repository.

    python examples/digits/quickstart.py [--directory runs/quickstart] [--seed 0]

It draws the task (scikit-learn's scans of handwritten digits), makes a policy with random weights, warms it up on
demonstrations, trains it by APO with rollouts from vLLM, and leaves a report. Finished stages are not done again, so
each seed needs a directory of its own; an interrupted stage goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # run as a script, only its own folder is there

from examples.digits.stages import make_task_and_policy, run_example, run_stage, say  # noqa: E402 - after the path

HERE = REPOSITORY / "examples" / "digits"
# Rows seen again are memorised: few are. The warm start imitates the demonstrations; the other training rows are
# questions with answers only.
ROWS = {"train_rows": 32768, "validation_rows": 512, "test_rows": 512, "demonstration_rows": 384}


def run(command: str, directory: Path, stage: str, seed: int, model: Path, settings: list[str]) -> None:
    """Runs the stage on the example's YAML file of that name."""
    task = directory / "task"
    rows = {
        "data.train": task / ("demonstrations.jsonl" if command == "sft" else "train.jsonl"),
        "data.validation": task / "validation.jsonl",
        "data.test": task / "test.jsonl" if command == "train" else "",
    }
    run_stage(
        command, HERE / f"{stage}.yaml", directory / stage, {"run.seed": seed, "model.path": model, **rows}, settings
    )


def main() -> int:
    """Runs every stage that is not done yet; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "runs" / "quickstart", help="where it all goes")
    parser.add_argument("--seed", type=int, default=0, help="of APO's questions and sampling; one --directory each")
    options, settings = parser.parse_known_args()
    unknown = [word for word in settings if not (word.startswith("--") and "." in word)]
    if unknown:
        parser.error(f"unknown arguments {unknown}; settings of the APO run are written --section.key=value")
    directory = options.directory.resolve()

    def work() -> str:
        say(f"task and policy in {directory}")
        make_task_and_policy(directory, **ROWS)
        say("warm start: supervised training on demonstrations")
        run("sft", directory, "sft", 0, directory / "policy", [])
        say("APO: vLLM draws, Megatron-Core learns")
        run("train", directory, "apo", options.seed, directory / "sft" / "export", settings)
        return str(directory / "apo" / "report.html")

    return run_example(work)


if __name__ == "__main__":
    sys.exit(main())
