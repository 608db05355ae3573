"""The command line: ``python -m megatron_apo train | sft | evaluate | doctor | plan | report``, and ``megatron-apo``.

Nothing heavy is imported here, so that help is quick; each command imports what it runs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_apo.config import Config
from megatron_apo.data.image_process import ImageProcessError

_DESCRIPTION = "Reinforcement learning of Qwen2.5-VL with APO on Megatron-Core, rollouts from a weight-synced vLLM."
_EXAMPLES = {
    "train": """\
  python -m megatron_apo train    --config runs/quickstart/apo/config.yaml --run.directory=runs/mine \\
                                  --objective.name=grpo
  python -m megatron_apo train    --config runs/mine/config.yaml --resume
  torchrun --nproc-per-node 2 -m megatron_apo train --config runs/quickstart/apo/config.yaml \\
                                  --run.directory=runs/two --parallel.tensor=2
""",
    "sft": """\
  python -m megatron_apo sft      --config runs/quickstart/sft/config.yaml --run.directory=runs/sft
""",
    "evaluate": """\
  python -m megatron_apo evaluate --config runs/quickstart/apo/config.yaml --model runs/quickstart/apo/export \\
                                  --output evaluations/trained
  python -m megatron_apo evaluate --compare evaluations/before evaluations/trained
""",
    "doctor": """\
  python -m megatron_apo doctor   --config runs/quickstart/apo/config.yaml --output runs/quickstart/doctor
""",
    "report": """\
  python -m megatron_apo report   runs/quickstart/apo
  python -m megatron_apo report   --compare runs/quickstart/apo runs/mine --output comparison.html
""",
    "plan": """\
  python -m megatron_apo plan     --model Qwen2.5-VL-7B --gpus 8 --memory 80
""",
}
_SETTINGS = """
Every setting is a key of the YAML file and an option --section.key=value, the value written as in YAML; an option
overrides the file. megatron_apo/config.py lists them all with their defaults.
"""
_STATUSES = """\
Exit status 2: an error that you can mend; 3: a run stopped by one of its own checks. Both are one message;
MEGATRON_APO_DEBUG=1 shows where it comes from.
"""


def _epilog(*commands: str) -> str:
    """Examples of some commands, and what is to be known of settings where they take any."""
    settings = "" if set(commands) <= {"plan", "report"} else _SETTINGS
    statuses = _STATUSES if len(commands) > 1 else ""
    where = "  (from the repository root, after make quickstart and . .venv/bin/activate)\n"
    return f"examples:\n{where}{''.join(_EXAMPLES[name] for name in commands)}{settings}{statuses}"


_GOES_ON = {
    "train": ": --resume continues from the newest checkpoint",
    "sft": ": --resume continues from the newest checkpoint",
    "evaluate": ": with --output, the same command goes on where it stopped",
}


class _RunStopped(Exception):
    """A run was stopped on purpose: a failed gate, a grader that fails, another rank's error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 after an error that the user can mend, 3 for a stopped run,
    130 after Ctrl-C."""
    parser = _parser()
    settings, words = _taken_off(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(words)
    _set_environment()
    try:
        overrides = [*settings, *_left_over(rest, parser)]
        _COMMANDS[options.command](options, overrides)
    except (ValueError, _RunStopped, ImageProcessError) as error:
        if os.environ.get("MEGATRON_APO_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 3
    except KeyboardInterrupt:
        if os.environ.get("MEGATRON_APO_DEBUG") == "1":
            raise
        print(f"interrupted{_GOES_ON.get(options.command, '')}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-apo",
        description=_DESCRIPTION,
        epilog=_epilog(*_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    settings = "YAML file of settings; --section.key=value overrides it"
    resume = "continue from the newest checkpoint in run.directory, with the same settings"
    for name, summary in (
        ("train", "train by reinforcement learning: generate, score, update, sync"),
        ("sft", "train on the demonstrations of the rows"),
    ):
        added = command(name, summary)
        added.add_argument("--config", required=True, metavar="FILE", help=settings)
        added.add_argument("--resume", action="store_true", help=resume)
    evaluate = command("evaluate", "measure a model's accuracy on rows")
    evaluate.add_argument("--config", metavar="FILE", help=settings)
    evaluate.add_argument("--model", metavar="DIR", help="Hugging Face checkpoint (default: model.path)")
    evaluate.add_argument("--data", metavar="FILE", help="rows, in any format of docs/data.md (default: data.test)")
    evaluate.add_argument(
        "--output", metavar="DIR", help="directory that keeps every response; goes on with what was interrupted there"
    )
    evaluate.add_argument(
        "--compare",
        metavar="DIR",
        nargs="+",
        help="instead: these evaluations of the same rows side by side; --output then names the page",
    )
    from megatron_apo.doctor.arguments import add_arguments as add_doctor_arguments
    from megatron_apo.planning.command import add_arguments

    add_doctor_arguments(command("doctor", "read data once and say what is in it, and what training would skip"))
    add_arguments(command("plan", "say which layouts of a model fit some GPUs, and what each needs"))
    report = command("report", "write report.html of a run: one file that opens offline")
    report.add_argument("directory", metavar="DIR", nargs="?", help="the run's directory")
    report.add_argument(
        "--compare",
        metavar="RUN",
        nargs="+",
        help="instead: these runs side by side, seeds together, the first's first",
    )
    report.add_argument("--output", metavar="FILE", help="the page (default: DIR/report.html; comparison.html)")
    return parser


def _taken_off(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings (--section.key=value, also written --section.key value) and the other words.

    Done before argparse sees them: it takes an unknown option with a space in it, and the value that stands apart, for
    a file name.
    """
    settings: list[str] = []
    others: list[str] = []
    waiting = deque(words)
    while waiting:
        word = waiting.popleft()
        if word == "--":
            others += [word, *waiting]
            break
        if not re.match(r"--\w+\.\w", word):
            others.append(word)
        elif "=" in word:
            settings.append(word)
        elif waiting and not waiting[0].startswith("--"):
            settings.append(f"{word}={waiting.popleft()}")
        else:
            others.append(word)  # its value is missing: ``_left_over`` tells it
    return settings, others


def _left_over(rest: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """What no option of the command is: a setting that does not exist; anything else ends the program."""
    for word in rest:
        if word.startswith("--") and "." in word and "=" not in word:
            raise ValueError(f"{word}: has no value; write {word}=value")
        if not (word.startswith("--") and "=" in word):
            parser.error(f"unknown argument {word!r}; settings are written --section.key=value")
    return list(rest)


def _set_environment() -> None:
    """What has to be set before torch and transformers are imported; what the user has set stays.

    Threads that wait busily slow everything beside them down, engines and graders included. Nothing is fetched at run
    time, so a missing file is an error at once and not a network timeout.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from megatron_apo.config_checks import check_evaluation, check_length

    config = _training_config(options, overrides, supervised=False)
    check_evaluation(config)
    check_length(config)
    _prepare_megatron()
    from megatron_apo.compose import train

    with _stopping():
        train(config, resume=options.resume)


def _sft(options: argparse.Namespace, overrides: list[str]) -> None:
    from megatron_apo.config_checks import check_evaluation

    config = _training_config(options, overrides, supervised=True)
    check_evaluation(config)
    _prepare_megatron()
    from megatron_apo.sft import sft

    with _stopping():
        sft(config, resume=options.resume)


def _training_config(options: argparse.Namespace, overrides: list[str], *, supervised: bool) -> Config:
    from megatron_apo.config_checks import check_files, check_formats, check_purpose, notices, require
    from megatron_apo.config_loading import load_config

    config = load_config(options.config, overrides)
    require(config, "model.path", "data.train")
    check_purpose(config, supervised=supervised)
    check_files(config)
    check_formats(config)
    if not supervised and os.environ.get("RANK", "0") == "0":
        for notice in notices(config):
            print(f"warning: {notice}", file=sys.stderr)
    return config


def _prepare_megatron() -> None:
    """Must come before the first import of megatron.core, which warns of each optional package that is not there."""
    warnings.filterwarnings("ignore", message=".*Apex.*", category=UserWarning)
    from megatron_apo.platform.host import prepare

    prepare()


@contextmanager
def _stopping() -> Iterator[None]:
    """Turns the errors by which a run stops itself into one message; anything else is a defect and keeps its trace."""
    from megatron_apo.observability.alarms import AlarmError
    from megatron_apo.parallel.status import PhaseError
    from megatron_apo.rewards.grader_process import RewardError
    from megatron_apo.rollout.process import EngineProcessError
    from megatron_apo.training.finite import NonFiniteError
    from megatron_apo.weight_sync.verify import LogprobGateError, WeightSyncError

    try:
        yield
    except (
        AlarmError,
        PhaseError,
        RewardError,
        EngineProcessError,
        NonFiniteError,
        LogprobGateError,
        WeightSyncError,
    ) as error:
        raise _RunStopped(str(error)) from error


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    from megatron_apo.config_checks import check_files, check_formats, check_length, require
    from megatron_apo.config_loading import load_config

    given = [(options.model, "model.path"), (options.data, "data.test")]
    if options.compare:
        _compare_evaluations(options, overrides)
        return
    settings = [*overrides, *(f"--{key}={value}" for value, key in given if value is not None)]
    config = load_config(options.config, settings)
    require(config, "model.path", "data.test")
    check_files(config)
    # The settings may have a format for the file that --data replaces.
    check_formats(config, [load_config(options.config, overrides).data.test])
    check_length(config)
    from megatron_apo.platform.host import prepare

    prepare()
    from megatron_apo.evaluation.evaluate import evaluate
    from megatron_apo.rewards.grader_process import RewardError

    try:
        evaluate(config, output=options.output)
    except RewardError as error:
        raise _RunStopped(str(error)) from error


def _compare_evaluations(options: argparse.Namespace, overrides: list[str]) -> None:
    superfluous = [name for name in ("config", "model", "data") if getattr(options, name)] + overrides
    if superfluous:
        raise ValueError(f"evaluate --compare: takes no {superfluous[0]}; it reads what the evaluations kept")
    from megatron_apo.observability.paired_page import comparison_table, read_evaluated, write_comparison_page

    evaluated = read_evaluated(options.compare)
    print(comparison_table(evaluated))
    print(f"page: {write_comparison_page(evaluated, options.output or 'comparison.html')}", file=sys.stderr)


def _doctor(options: argparse.Namespace, overrides: list[str]) -> None:
    from megatron_apo.config_checks import check_formats, require
    from megatron_apo.config_loading import load_config
    from megatron_apo.doctor.manifest import ManifestError, check

    if options.check:
        if options.data or overrides:
            raise ValueError("doctor --check: reads the manifest alone; give no data and no settings with it")
        try:
            check(Path(options.check))
        except ManifestError as error:
            raise _RunStopped(str(error)) from error
        return
    config = load_config(options.config, [*overrides, *([f"--model.path={options.model}"] if options.model else [])])
    require(config, "model.path")
    training = options.data or list(config.data.train)
    kept = [name for name in (config.data.validation, config.data.test) if name and not options.data]
    evaluation = options.evaluation if options.evaluation is not None else kept
    if not training and not evaluation:
        raise ValueError("doctor: no data; name the files, or give --config with data.train")
    check_formats(config, [*training, *evaluation])
    from megatron_apo.platform.host import prepare

    prepare()
    from megatron_apo.doctor.command import DoctorError, doctor

    try:
        doctor(config, training, evaluation, Path(options.output))
    except DoctorError as error:
        raise _RunStopped(str(error)) from error


def _plan(options: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise ValueError(f"{overrides[0]}: plan takes no settings; its options are in plan --help")
    from megatron_apo.planning.command import plan

    plan(options)


def _report(options: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise ValueError(f"{overrides[0]}: report takes no settings; it reads the run's own config.yaml")
    if bool(options.directory) == bool(options.compare):
        raise ValueError("report: give either the directory of a run, or --compare and the directories of several")
    if options.compare:
        from megatron_apo.observability.comparison_page import write_comparison

        print(write_comparison(options.compare, options.output or "comparison.html"))
        return
    directory = Path(options.directory)
    if not directory.is_dir():
        raise ValueError(f"report {directory}: no such directory; give the run.directory of a run")
    from megatron_apo.observability.report import write_report

    print(write_report(directory, output=options.output))


_COMMANDS = {
    "train": _train,
    "sft": _sft,
    "evaluate": _evaluate,
    "doctor": _doctor,
    "plan": _plan,
    "report": _report,
}
