"""Grading speed: 1,024 responses through the grader processes, beside math-verify called in a bare loop.

    python benchmarks/rewards.py [--responses 1024] [--workers 2] [--only ordinary,guarded,hanging]

``ordinary``: answers as models give them, all different, right and wrong. ``guarded``: half of them hostile (those of
tests/properties/hostile.py). ``hanging``: half of them keep a reward busy for ever, so that each costs the time limit
of 2 s and a process; the hang is a reward of the user's, since the grader has no answer left that takes as long.
``math-verify alone``: the same ordinary answers parsed and compared in this process, without limits of any kind.
One line each: seconds, answers per second, and the time of the bare loop as a multiple.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.config import RewardConfig  # noqa: E402
from megatron_apo.records import Prompt, Rollout, RolloutGroup  # noqa: E402
from megatron_apo.rewards.pool import Scorer  # noqa: E402
from tests.properties.hostile import HOSTILE, mutations  # noqa: E402

GROUP = 8
SPIN = """
def spin(answer):
    while answer == "hang":
        pass
    return 0.0
"""


def ordinary(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(answer, gold): counts, decimals, fractions, angles, lengths, roots, letters; a third of them wrong."""
    draw = random.Random(seed)
    pairs = []
    for index in range(count):
        number = draw.randint(2, 999)
        wrong = number + (draw.randint(1, 5) if draw.random() < 1 / 3 else 0)
        kinds = [
            (str(wrong), str(number)),
            (f"{wrong / 8}", f"\\frac{{{number}}}{{8}}"),
            (f"{wrong}^\\circ", f"{number}°"),
            (f"{wrong * 10} mm", f"{number} cm"),
            (f"${wrong}\\sqrt{{3}}$", f"{number}\\sqrt{{3}}"),
            (f"The answer is {wrong}.", str(number)),
            (f"{wrong}\\pi", f"${number}\\pi$"),
            ("ABCD"[wrong % 4], "ABCD"[number % 4]),
        ]
        pairs.append(kinds[index % len(kinds)])
    return pairs


def groups(pairs: list[tuple[str, str]]) -> list[RolloutGroup]:
    """A group of one response for each pair: every answer with a gold answer of its own."""
    made = []
    for index, (answer, gold) in enumerate(pairs):
        prompt = Prompt(f"row-{index}", (1,), (1,), (), "What is it?", gold)
        text = f"<think>look</think><answer>{answer}</answer>"
        made.append(RolloutGroup(prompt, (Rollout(prompt.id, 0, (2,), (0.0,), text, "stop", 0),)))
    return made


def graded(pairs: list[tuple[str, str]], config: RewardConfig) -> tuple[float, dict[str, int]]:
    """Seconds to score all, processes already started; and the outcomes."""
    with Scorer(config) as scorer:
        scorer.score(groups(ordinary(64, seed=1)))
        started = time.perf_counter()
        scored = scorer.score(groups(pairs))
        seconds = time.perf_counter() - started
    outcomes: dict[str, int] = {}
    for group in scored:
        outcomes[group.scores[0].outcome] = outcomes.get(group.scores[0].outcome, 0) + 1
    return seconds, outcomes


def bare(pairs: list[tuple[str, str]]) -> float:
    """Seconds of math-verify alone: parse the answer and its gold answer, compare."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    verify(parse("$1+x$"), parse("$x+1$"))
    started = time.perf_counter()
    for answer, gold in pairs:
        verify(
            parse(f"${gold.strip('$')}$", parsing_timeout=None),
            parse(f"${answer.strip('$')}$", parsing_timeout=None),
            timeout_seconds=None,
        )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="ordinary,guarded,hanging")
    arguments = parser.parse_args()
    count, chosen = arguments.responses, arguments.only.split(",")
    pairs = ordinary(count)
    alone = bare(pairs)
    print(f"{'math-verify alone':20s} {alone:8.2f} s  {count / alone:8.0f} answers/s")
    settings = {"workers": arguments.workers, "timeout_seconds": 2.0, "max_error_rate": 1.0}
    hostile = [answer for answers in HOSTILE.values() for answer in answers]
    hostile = (hostile + mutations(count, seed=5))[: count // 2]
    runs = {
        "ordinary": (pairs, {}),
        "guarded": ([*pairs[: count - len(hostile)], *((answer, "13") for answer in hostile)], {}),
        "hanging": ([*pairs[: count // 2], *[("hang", "13")] * (count // 2)], {"spin": True}),
    }
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "spin.py")
        file.write_text(SPIN)
        for name, (made, extra) in runs.items():
            if name not in chosen:
                continue
            random.Random(2).shuffle(made)
            user = {f"{file}:spin": 1.0} if extra else {}
            seconds, outcomes = graded(made, RewardConfig(**settings, user=user))  # type: ignore[arg-type]
            rate, ratio = count / seconds, seconds / alone
            print(f"{name:20s} {seconds:8.2f} s  {rate:8.0f} answers/s  {ratio:6.2f} x math-verify alone  {outcomes}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
