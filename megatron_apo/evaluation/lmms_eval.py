"""lmms-eval as a program of its own: the papers' benchmarks on a model that an OpenAI-compatible server serves.

lmms-eval needs other versions of packages than this one does (docs/evaluation.md), so it lives in an environment of its
own and talks to vLLM over HTTP. Without ``--server`` the server is started here, from an exported model, and ended.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_apo.evaluation.published import (
    BENCHMARKS,
    benchmark_table,
    plain_results,
    read_results,
    task_metrics,
)
from megatron_apo.evaluation.tables import model_name
from megatron_apo.observability.console import say

_DESCRIPTION = """Runs the papers' benchmarks by lmms-eval on an exported model, or on one that vLLM already serves, and
prints their accuracies beside the published ones. The first time, lmms-eval downloads the benchmarks."""
_EXAMPLES = """examples:
  make eval-env                                                  # once: lmms-eval's own environment, in .venv-eval
  python tools/published_benchmarks.py --model runs/view_r1/export --output benchmarks/view_r1
  python tools/published_benchmarks.py --server http://127.0.0.1:8000/v1 --served-name mine --output benchmarks/mine \\
      --benchmarks mathvista mmstar
  python tools/published_benchmarks.py --model runs/a/export --output benchmarks/a --tasks-from my_tasks \\
      --task my_task=exact_match                                 # a task of your own in lmms-eval's format
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 after an error that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except ValueError as error:
        if os.environ.get("MEGATRON_APO_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="published_benchmarks.py",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, help="Hugging Face checkpoint; vLLM is started on it")
    model.add_argument("--server", help="address of a running server, http://HOST:PORT/v1")
    parser.add_argument("--served-name", default="policy", help="what the server calls the model (default policy)")
    parser.add_argument("--output", type=Path, required=True, help="directory of lmms-eval's results and samples")
    parser.add_argument("--benchmarks", nargs="*", default=None, help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--tasks-from", type=Path, help="directory of further tasks (lmms-eval's --include_path)")
    parser.add_argument("--task", action="append", default=[], metavar="TASK=METRIC", help="a further task")
    parser.add_argument("--limit", type=int, help="only so many questions of each")
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at once (default 32)")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds to wait for the server (default 1800)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of --model")
    parser.add_argument("--max-model-len", type=int, default=16384, help="prompt and response of --model, in tokens")
    parser.add_argument(
        "--environment", type=Path, default=Path(".venv-eval"), help="lmms-eval's own (default .venv-eval)"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    python = options.environment / "bin" / "python"
    if not python.exists():
        raise ValueError(f"--environment {options.environment}: no {python}; make it with make eval-env")
    own = dict(_task(word) for word in options.task)
    names = options.benchmarks if options.benchmarks is not None else ([] if own else list(BENCHMARKS))
    metrics = {**task_metrics(names), **own}
    if not metrics:
        raise ValueError("--benchmarks: names none; leave it out for all, or give --task")
    name = options.served_name
    with serving(options) as server:
        command = lmms_command(python, server, name, list(metrics), options)
        status = subprocess.run(command, check=False, env=_environment()).returncode
    if status:
        raise ValueError(f"lmms-eval ended with status {status}; its own message is above")
    found = read_results(options.output, metrics)
    shown = model_name(options.model) if options.model else name
    if names:
        print(benchmark_table(shown, {key: found[BENCHMARKS[key].task] for key in names}))
    if own:
        print(plain_results(shown, {task: found[task] for task in own}))


def _task(word: str) -> tuple[str, str]:
    task, equals, metric = word.partition("=")
    if not (task and equals and metric):
        raise ValueError(f"--task {word}: must be TASK=METRIC")
    return task, metric


def lmms_command(python: Path, server: str, name: str, tasks: Sequence[str], options: argparse.Namespace) -> list[str]:
    """lmms-eval's command line: greedy or as the task says, samples kept."""
    model = f"model_version={name},base_url={server},num_concurrent={options.concurrency},max_retries=2"
    command = [str(python), "-m", "lmms_eval", "--model", "openai", "--model_args", model, "--batch_size", "1"]
    command += ["--tasks", ",".join(tasks), "--output_path", str(options.output), "--log_samples"]
    if options.tasks_from:
        command += ["--include_path", str(options.tasks_from)]
    if options.limit:
        command += ["--limit", str(options.limit)]
    return command


def _environment() -> dict[str, str]:
    """lmms-eval's environment: a key that a local server does not look at, and none of this package's paths."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"OPENAI_API_KEY": "none", "JUDGE_API_KEY": "none", **kept}


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[str]:
    """The address of a server that is ready: the one given, or one started on ``--model`` and ended afterwards."""
    if options.server:
        _wait_until_ready(options.server, options.timeout, None)
        yield options.server.rstrip("/")
        return
    if not (options.model / "config.json").is_file():
        raise ValueError(f"--model {options.model}: no config.json there; give a Hugging Face checkpoint")
    port = _free_port()
    server = f"http://127.0.0.1:{port}/v1"
    command = [sys.executable, "-m", "megatron_apo.rollout.vllm.server", "--model", str(options.model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", options.served_name]
    command += ["--dtype", options.dtype, "--max-model-len", str(options.max_model_len)]
    command += ["--generation-config", "vllm"]  # the checkpoint's own sampling defaults must not slip in
    say(f"starting vLLM on {options.model} …")
    with subprocess.Popen(command) as process:
        try:
            _wait_until_ready(server, options.timeout, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(server: str, seconds: float, process: subprocess.Popen[bytes] | None) -> None:
    """Returns once ``server`` lists its models; ValueError when it does not in time, or its process ended."""
    deadline = time.monotonic() + seconds
    address = f"{server.rstrip('/')}/models"
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                json.load(answer)
                return
        except (OSError, ValueError) as error:
            told = error
        if process is not None and process.poll() is not None:
            raise ValueError(f"--model: vLLM ended with status {process.returncode} before it was ready")
        if process is None or time.monotonic() > deadline:
            raise ValueError(f"{address}: no server answers there ({told}); start it, or give --model")
        time.sleep(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
