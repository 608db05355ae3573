"""A step of 256 responses beside TRL's GRPO trainer, on the same policy, task and threads.

    pip install trl==1.16.0 accelerate datasets       (into an environment of its own is best)
    python benchmarks/trl_step.py --directory runs/quickstart [--steps 20]

TRL generates with transformers and verifies nothing; the run in ``--directory`` (a quickstart) rolls out with vLLM,
synchronises its weights and verifies them. Printed: median seconds of a step of each, and their ratio. Set the same
``OMP_WAIT_POLICY`` and ``OMP_NUM_THREADS`` for both, and let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron_apo.platform.host import prepare

PROMPTS, RESPONSES, MAX_TOKENS, TEMPERATURE = 32, 8, 24, 1.25


def accuracy(completions: list[Any], answer: list[str], **unused: Any) -> list[float]:
    """1.0 where the response's answer block holds the gold answer."""
    texts = [completion[0]["content"] if isinstance(completion, list) else completion for completion in completions]
    found = [re.search(r"<answer>(.*?)</answer>", text) for text in texts]
    return [float(match is not None and match[1] == gold) for match, gold in zip(found, answer, strict=True)]


def trl_seconds(directory: Path, steps: int) -> list[float]:
    """Seconds of each TRL step after the first three."""
    prepare()
    sys.modules["torchcodec"] = None  # type: ignore[assignment]  # a CUDA build beside a CPU torch: TRL imports it
    from datasets import Dataset
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

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
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            ends.append(time.perf_counter())

    policy = str(directory / "sft" / "export")
    with tempfile.TemporaryDirectory() as output:
        GRPOTrainer(
            model=policy,
            reward_funcs=accuracy,
            args=GRPOConfig(
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
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=AutoProcessor.from_pretrained(policy),
            callbacks=[Clock()],
        ).train()
    return [after - before for before, after in zip(ends[2:], ends[3:], strict=False)]


def main() -> None:
    """Runs TRL, reads ours, prints both and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="of a finished quickstart")
    parser.add_argument("--steps", type=int, default=20, help="TRL steps")
    options = parser.parse_args()
    metrics = (options.directory / "apo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ours = statistics.median(json.loads(line)["time/step"] for line in metrics)
    theirs = statistics.median(trl_seconds(options.directory.resolve(), options.steps))
    print(f"megatron_apo {ours:.3f} s   TRL {theirs:.3f} s   ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
