"""evaluations.json there and back, and the table of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apo.evaluation.scoring import Evaluation, evaluate_rows
from megatron_apo.evaluation.tables import detail_table, plain_table, read_evaluations, write_evaluations
from tests.unit.evaluation.rows import row

BEFORE = Evaluation(0.5, (0.45, 0.55), 0.9, 400, 800, 21.5, 0.52, 1, {1: 0.5, 2: 0.6}, {"sum": 0.5})
AFTER = Evaluation(0.875, (0.84, 0.91), 1.0, 400, 400, 19.0, 0.875)


def test_written_in_two_parts_and_read_back_equal(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == {}
    write_evaluations(tmp_path, {"before": BEFORE})
    write_evaluations(tmp_path, {"after": AFTER})
    assert read_evaluations(tmp_path) == {"before": BEFORE, "after": AFTER}
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.json"]


def test_everything_measured_reads_back_equal(tmp_path: Path) -> None:
    measured = evaluate_rows([row("a", "cwnw", category="sum"), row("b", "ccec", category="count"), row("c", "wwww")])
    write_evaluations(tmp_path, {"after": measured})
    assert read_evaluations(tmp_path) == {"after": measured}


@pytest.mark.parametrize("content", ["[]", "{", '{"before": {}}', '{"before": {"accuracy_interval": [0, 1], "x": 1}}'])
def test_a_damaged_file_is_an_error_with_its_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluations.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluations\.json: not an evaluations file"):
        read_evaluations(tmp_path)


def test_plain_table() -> None:
    lines = plain_table({"before": BEFORE, "after": AFTER}).splitlines()
    assert lines[1].split() == ["before", "0.500", "0.450", "to", "0.550", "0.900", "21.5", "400", "800"]
    assert lines[2].split() == ["after", "0.875", "0.840", "to", "0.910", "1.000", "19.0", "400", "400"]
    assert len({len(line) for line in lines}) == 1


def test_detail_table() -> None:
    rows = [row("a", "cw", category="sum"), row("b", "cc", category="count"), row("c", "ne", category="sum", cut=True)]
    lines = [line.split() for line in detail_table("policy", evaluate_rows(rows)).splitlines()]
    assert [line[0] for line in lines] == [
        "policy",
        "all",
        "pass@1",
        "pass@2",
        "majority",
        "count",
        "sum",
        "responses:",
        "tokens",
    ]
    assert lines[1][1:] == ["0.500", "0.000", "to", "1.000", "3"]
    assert lines[5][1:] == ["1.000", "1.000", "to", "1.000", "1"]
    assert lines[6][1:] == ["0.250", "0.000", "to", "0.500", "2"]
    assert " ".join(lines[7]) == "responses: format 0.833, no answer 0.167, cut off 0.333, grader errors 1 of 6"
    assert detail_table("policy", evaluate_rows([row("a", "c")])).count("\n") == 3
