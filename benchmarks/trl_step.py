"""A step of 256 responses beside TRL's GRPO trainer, on the same policy, rows and threads, one after the other.

    python -m venv trl && trl/bin/pip install trl==1.16.0 torch==2.13.0 torchvision==0.28.0 transformers==5.19.0
    python benchmarks/trl_step.py --directory runs/quickstart --trl-python trl/bin/python [--steps 20]

``--directory`` is a finished quickstart: both start from its warm start. TRL generates with transformers and verifies
nothing; megatron_apo rolls out with vLLM, synchronises the weights and verifies them. Printed: median seconds of a step
of each (the first three are left out), and their ratio. Both run with ``OMP_WAIT_POLICY=PASSIVE`` and with what
``OMP_NUM_THREADS`` says; let nothing else run. TRL has an environment of its own because its dependencies and vLLM's
do not go together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PROMPTS, RESPONSES, MAX_TOKENS, TEMPERATURE = 32, 8, 24, 1.25
UNCOUNTED = 3  # first steps: caches fill, kernels are chosen


def accuracy(completions: list[Any], answer: list[str], **unused: Any) -> list[float]:
    """1.0 where the response's answer block holds the gold answer."""
    texts = [completion[0]["content"] if isinstance(completion, list) else completion for completion in completions]
    found = [re.search(r"<answer>(.*?)</answer>", text) for text in texts]
    return [float(match is not None and match[1] == gold) for match, gold in zip(found, answer, strict=True)]


def trl_steps(directory: Path, steps: int) -> list[float]:
    """Seconds of each TRL step; runs in TRL's environment."""
    sys.path.insert(0, str(REPOSITORY))
    from megatron_apo.platform.torchvision_cpu import register_missing_operators

    register_missing_operators()
    from datasets import Dataset  # type: ignore[import-not-found]  # TRL's environment has it
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    from megatron_apo.data.images import load_image

    lines = (directory / "task" / "train.jsonl").read_text(encoding="utf-8").splitlines()[: PROMPTS * (steps + 1)]
    rows = [json.loads(line) for line in lines]
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "image": load_image(directory / "task" / row["images"][0]),
                "answer": row["answer"],
            }
            for row in rows
        ]
    )
    begins: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
            begins.append(time.perf_counter())

        def on_train_end(self, *arguments: Any, **keywords: Any) -> None:
            begins.append(time.perf_counter())

    policy = str(directory / "sft" / "export")
    with tempfile.TemporaryDirectory() as output:
        settings = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=PROMPTS * RESPONSES,
            num_generations=RESPONSES,
            max_completion_length=MAX_TOKENS,
            temperature=TEMPERATURE,
            beta=1e-3,
            learning_rate=1.5e-4,
            max_steps=steps,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
        )
        GRPOTrainer(
            model=policy,
            reward_funcs=accuracy,
            args=settings,
            train_dataset=dataset,
            processing_class=AutoProcessor.from_pretrained(policy),
            callbacks=[Clock()],
        ).train()
    return [after - before for before, after in zip(begins, begins[1:], strict=False)]


def our_steps(directory: Path, steps: int) -> list[float]:
    """Seconds of each of our steps, from the run's ``metrics.jsonl``."""
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "run.directory": f"{output}/run",
            "run.steps": steps,
            "run.evaluate_every": 0,
            "run.save_every": 0,
            "rollout.prompts_per_step": PROMPTS,
            "sampling.group_size": RESPONSES,
            "sampling.max_tokens": MAX_TOKENS,
            "sampling.temperature": TEMPERATURE,
            "objective.drop_zero_variance": "false",
            "data.test": "",
        }
        words = [f"--{key}={value}" for key, value in settings.items()]
        config = str(directory / "apo" / "config.yaml")
        subprocess.run(
            [sys.executable, "-m", "megatron_apo", "train", "--config", config, *words], cwd=REPOSITORY, check=True
        )
        lines = Path(output, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["time/step"] for line in lines]


def main() -> None:
    """Times both, prints medians and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="of a finished quickstart")
    parser.add_argument("--trl-python", help="the interpreter of an environment with TRL")
    parser.add_argument("--steps", type=int, default=20, help="steps of each that are counted (default: %(default)s)")
    parser.add_argument("--only-trl", type=Path, metavar="FILE", help="time TRL in this interpreter, write to FILE")
    options = parser.parse_args()
    directory, steps = options.directory.resolve(), options.steps + UNCOUNTED
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if options.only_trl is not None:
        options.only_trl.write_text(json.dumps(trl_steps(directory, steps)), encoding="utf-8")
        return
    if options.trl_python is None:
        parser.error("--trl-python: give the interpreter of an environment with TRL")
    ours = statistics.median(our_steps(directory, steps)[UNCOUNTED:])
    with tempfile.TemporaryDirectory() as output:
        file = Path(output, "seconds.json")
        words = ["--directory", str(directory), "--steps", str(options.steps), "--only-trl", str(file)]
        subprocess.run([options.trl_python, __file__, *words], check=True)
        theirs = statistics.median(json.loads(file.read_text(encoding="utf-8"))[UNCOUNTED:])
    print(f"megatron_apo {ours:.3f} s   TRL {theirs:.3f} s   ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
