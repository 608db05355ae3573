"""Presets side by side: each from the same warm start, with several seeds, on two to five digits added step by step.

    python examples/digit_steps/compare_presets.py [--directory runs/digit_steps] [--presets apo grpo ...] [--seeds 3]

The rows show two to five handwritten digits; the answer adds them one by one, so difficulty and length vary from row to
row. Leaves a page, comparison.html. Finished runs are not done again, so more presets or seeds can be added to it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # run as a script, only its own folder is there

from examples.digits.stages import make_task_and_policy, run_example, run_stage, say  # noqa: E402 - after the path

HERE = REPOSITORY / "examples" / "digit_steps"
# The warm start imitates the demonstrations; the other training rows are questions with answers only.
ROWS = {"train_rows": 16384, "validation_rows": 512, "test_rows": 1024, "demonstration_rows": 6144}
DIGITS = (2, 5)
# A third of the demonstrations say the sum at once, a third add digit by digit, a third do that twice: which of them
# pays, and how long a response becomes, is left to the objective.
STYLES = ("steps", "straight", "twice")
# The first is what the others are compared with. What a preset says of its own is in megatron_apo/objective/presets.py;
# here is what so short a task needs besides. Responses are 25 tokens long: the paper's base of 1.00001 and coefficient
# of 1e-3 would show nothing. Of the bases 1.02, 1.05, 1.2 and the coefficients 0.01, 0.04, 0.16 none changed the
# validation accuracy of a run by more than chance, so the two that act most were taken.
_STCR = {"objective.stcr.base": 1.2}
_KL = {"objective.kl.coefficient": 0.16}
_MEASURED = {"objective.kl.coefficient": 1e-12}  # no KL in the loss, but a reference to measure it against
PRESETS: dict[str, dict[str, Any]] = {
    "apo": {**_STCR, **_KL},
    "apo_dads_only": _KL,
    "apo_stcr_only": {**_STCR, **_KL},
    # APO without either part, the control of its ablations.
    "apo_neither": {
        **{"objective.name": "grpo", "objective.advantage.epsilon": 1e-9, "objective.reduction": "token_mean"},
        **_KL,
    },
    "grpo": {},
    "grpo_d": {},
    "dr_grpo": _MEASURED,
    "dapo": {"rollout.refill_rounds": 1, **_MEASURED},
    "rloo": {},
    # Four updates as in its paper; with one, no ratio is ever clipped.
    "gspo": {"training.updates_per_rollout": 4, **_MEASURED},
    "view_r1_exact": {},
    # More of the warm start's demonstrations: as many updates, of as many sequences, with the same optimizer.
    "sft": {
        **{"run.steps": 80, "run.evaluate_every": 20, "training.batch_size": 256, "optimizer.learning_rate": 5e-5},
        **{"optimizer.minimum_learning_rate": 5e-6, "optimizer.warmup_steps": 5, "optimizer.beta2": 0.99},
    },
}


def warm_start(directory: Path) -> Path:
    """The checkpoint that every run starts from."""
    task = directory / "task"
    rows = {"data.train": task / "demonstrations.jsonl", "data.validation": task / "validation.jsonl"}
    settings = {"run.seed": 0, "model.path": directory / "policy", **rows}
    run_stage("sft", HERE / "sft.yaml", directory / "sft", settings)
    return directory / "sft" / "export"


def train(directory: Path, model: Path, preset: str, seed: int, more: list[str]) -> Path:
    """One run of a preset; its directory."""
    target, task = directory / f"{preset}-{seed}", directory / "task"
    rows = {f"data.{name}": task / f"{name}.jsonl" for name in ("train", "validation", "test")}
    settings = {"run.seed": seed, "model.path": model, "objective.name": preset, **rows, **PRESETS[preset]}
    run_stage("train", HERE / "train.yaml", target, settings, more)
    return target


def supervise(directory: Path, model: Path, seed: int, more: list[str]) -> Path:
    """Further supervised training in the place of a preset, and its accuracy on the held-out rows; its directory."""
    from megatron_apo.evaluation.directory import read_results
    from megatron_apo.evaluation.tables import write_evaluations

    target, task = directory / f"sft-{seed}", directory / "task"
    rows = {"data.train": task / "demonstrations.jsonl", "data.validation": task / "validation.jsonl"}
    run_stage("sft", HERE / "sft.yaml", target, {"run.seed": seed, "model.path": model, **rows, **PRESETS["sft"]}, more)
    evaluated = ["--config", HERE / "train.yaml", "--model", target / "export", "--data", task / "test.jsonl"]
    command = [sys.executable, "-m", "megatron_apo", "evaluate", *evaluated, "--output", target / "held_out"]
    subprocess.run(list(map(str, command)), cwd=REPOSITORY, check=True)
    write_evaluations(target, {"after": read_results(target / "held_out")})
    return target


def main() -> int:
    """Runs what is not done yet and writes the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "runs" / "digit_steps", help="where it all goes")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), help="(default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of each preset (default: %(default)s)")
    options, more = parser.parse_known_args()
    unknown = [word for word in more if not (word.startswith("--") and "." in word)]
    if unknown:
        parser.error(f"unknown arguments {unknown}; settings of every run are written --section.key=value")
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: at least 1")
    if options.seeds * len(set(options.presets)) < 2:
        parser.error("one preset with one seed: nothing to compare; give two presets, or --seeds 2")
    directory = options.directory.resolve()

    def work() -> str:
        say(f"task and policy in {directory}")
        make_task_and_policy(directory, **ROWS, digits=DIGITS, styles=STYLES)
        say("warm start: supervised training on demonstrations")
        model = warm_start(directory)
        runs = []
        for seed in range(options.seeds):  # seed by seed: what is there early is comparable
            for preset in dict.fromkeys(options.presets):
                say(f"{preset}, seed {seed}")
                if preset == "sft":
                    runs.append(supervise(directory, model, seed, more))
                else:
                    runs.append(train(directory, model, preset, seed, more))
        from megatron_apo.observability.comparison_page import write_comparison

        return str(write_comparison(runs, directory / "comparison.html"))

    return run_example(work)


if __name__ == "__main__":
    sys.exit(main())
