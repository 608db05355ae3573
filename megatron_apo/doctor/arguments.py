"""The options of ``python -m megatron_apo doctor``; apart, so that help is quick."""

from __future__ import annotations

import argparse

PAGE, SKIPPED, MANIFEST = "doctor.html", "skipped_rows.jsonl", "data.sha256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("data", metavar="DATA", nargs="*", help="training data (default: data.train of --config)")
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        nargs="+",
        help="evaluation data: examined too, and looked for in the training data (default: data.validation and test)",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; --section.key=value overrides it")
    parser.add_argument("--model", metavar="DIR", help="checkpoint whose processor counts tokens (default: model.path)")
    parser.add_argument(
        "--output",
        metavar="DIR",
        default="doctor",
        help=f"where {PAGE}, {SKIPPED} and {MANIFEST} are written (default: %(default)s)",
    )
    parser.add_argument(
        "--check", metavar="FILE", help=f"instead: compare every file with an earlier {MANIFEST}; nothing is written"
    )
