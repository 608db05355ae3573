"""``python -m megatron_apo doctor DATA``: reads data once as training would, and says what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_apo.config import Config
from megatron_apo.data.examiners import ImageExaminers
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.readers import data_files, sha256_of_data
from megatron_apo.data.reading import write_skipped
from megatron_apo.data.scan import PromptSet, Scan
from megatron_apo.doctor.arguments import MANIFEST, PAGE, SKIPPED
from megatron_apo.doctor.manifest import write_manifest
from megatron_apo.doctor.page import write_page
from megatron_apo.doctor.survey import Part, Survey, survey
from megatron_apo.doctor.words import SPREAD_HEADER, facts, findings, spreads
from megatron_apo.rewards.accuracy import check_row

_MARKS = {"bad": "✗", "look": "!", "good": "✓"}


class DoctorError(RuntimeError):
    """Training on the data would refuse to start, or be worth little."""


def doctor(config: Config, training: Sequence[str], evaluation: Sequence[str], directory: Path) -> None:
    """Prints what is in the data and writes page, skipped rows and manifest into ``directory``.

    Raises ValueError for a file that cannot be read at all, DoctorError where training would refuse the data or
    evaluation rows stand in the training data.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output {directory}: exists already and is no directory; give another name")
    builder = PromptBuilder(config.model.path, config.data)
    with ImageExaminers(config.data.workers) as examiners:

        def read(files: Sequence[str], _part: str) -> PromptSet:
            return Scan(
                builder,
                examiners,
                check_row,
                image_root=config.data.image_root,
                cache=config.data.cache,
                format=config.data.format,
                formats=config.data.formats,
            ).run(files)

        found = survey(builder, training, evaluation, read)
    for part in found.parts:
        print(_table(part))
    told = findings(found, config.data.max_bad_share)
    for finding in told:
        print(f"{_MARKS[finding.level]} {finding.text}")
    directory.mkdir(parents=True, exist_ok=True)
    write_page(directory / PAGE, found, config.data.max_bad_share)
    write_skipped(directory / SKIPPED, {part.name: part.prompts.skipped for part in found.parts})
    write_manifest(directory / MANIFEST, _digests(found))
    print(f"\n{directory / PAGE}: the same with pictures")
    if any(part.prompts.skipped for part in found.parts):
        print(f"{directory / SKIPPED}: every skipped row with its reason")
    print(f"{directory / MANIFEST}: doctor --check finds what changes later")
    bad = [finding.text for finding in told if finding.level == "bad"]
    if bad:
        raise DoctorError("; ".join(bad))


def _table(part: Part) -> str:
    counted = facts(part)
    width = max(len(name) for name, _ in counted) + 2
    lines = [f"{part.name}", *(f"  {name:<{width}}{said}" for name, said in counted), ""]
    columns = [("", *SPREAD_HEADER), *((one.name, *one.cells()) for one in spreads(part))]
    widths = [max(len(line[column]) for line in columns) for column in range(len(columns[0]))]
    for line in columns:
        first, *rest = (
            cell.rjust(size) if column else cell.ljust(size)
            for column, (cell, size) in enumerate(zip(line, widths, strict=True))
        )
        lines.append(f"  {first}  {'  '.join(rest)}")
    return "\n".join([*lines, ""])


def _digests(found: Survey) -> dict[str, str]:
    """SHA-256 of every data file and every picture of a good row."""
    digests: dict[str, str] = {}
    for part in found.parts:
        for file in part.prompts.files:
            if Path(file.path).is_dir():
                digests |= {str(inside): sha256_of_data(inside) for inside in data_files(Path(file.path))}
            else:
                digests[file.path] = file.sha256
        digests |= part.files
    return digests
