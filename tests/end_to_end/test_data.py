"""Data through the command line: two formats mixed, a bad row skipped, the same rows on any number of ranks and after
a resumption, and none when the data changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from tests.distributed.launcher import Case, run_cases
from tests.end_to_end.commands import answers

pytestmark = pytest.mark.slow

# What a run's record says where a picture, or a file, was another when the run began.
OTHERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "other_picture": lambda record: record.update(rows_sha256="00"),
    "other_rows": lambda record: record["files"][1].update(sha256="00"),
}
COMMAND = "tests.end_to_end.commands:command"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """A run on two ranks; one in two parts on one rank; and two whose records are of other data."""
    root = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in (digits_task / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [{"bytes": (digits_task / name).read_bytes(), "path": name} for name in row["images"]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:20]), root / "bytes.parquet")
    (root / "images").mkdir()
    lines = [json.loads(line) for line in (digits_task / "train.jsonl").read_text().splitlines()[20:40]]
    for line in lines:
        name = line["images"][0]
        shutil.copy(digits_task / name, root / "images")
        line["images"] = [f"images/{Path(name).name}"]
    del lines[3]["answer"]
    (root / "names.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "run": {"steps": 4, "save_every": 2},
        "model": {"path": str(tiny_policy)},
        "data": {
            "train": [str(root / "bytes.parquet"), str(root / "names.jsonl")],
            "weights": [1, 3],
            "max_bad_share": 0.1,
            "cache": str(root / "cache"),
            "pixel_workers": 1,
        },
        "training": {"batch_size": 16, "tokens_per_microbatch": 300},
        "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
        "logging": {"progress": False, "tensorboard": False},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))

    def case(name: str, world: int, directory: str, *words: str) -> Case:
        given = ["sft", "--config", str(root / "config.yaml"), f"--run.directory={root / directory}", *words]
        return Case(COMMAND, world, str(root / "ranks" / name), {"words": given})

    run_cases([case("two", 2, "two"), case("first", 1, "parts", "--run.steps=2")])
    resumed = [case("second", 1, "parts", "--resume")]
    for name, spoil in OTHERS.items():
        shutil.copytree(root / "parts", root / name)
        record = json.loads((root / name / "data.json").read_text())
        spoil(record["data.train"])
        (root / name / "data.json").write_text(json.dumps(record))
        resumed.append(case(name, 1, name, "--resume"))
    run_cases(resumed)
    return root


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_ranks_and_resumption_take_the_same_rows(root: Path) -> None:
    assert [answer["status"] for name in ("two", "first", "second") for answer in answers(root / "ranks" / name)] == [
        0
    ] * 4
    whole, parts = metrics(root / "two"), metrics(root / "parts")
    assert [step["step"] for step in whole] == [step["step"] for step in parts] == [1, 2, 3, 4]
    for one, other in zip(whole, parts, strict=True):
        assert one["loss/total"] == pytest.approx(other["loss/total"], rel=1e-4)
    assert len({round(step["loss/total"], 6) for step in whole}) == 4


def test_what_was_skipped_is_on_record(root: Path) -> None:
    for run in ("two", "parts"):
        (skipped,) = (json.loads(line) for line in (root / run / "skipped_rows.jsonl").read_text().splitlines())
        assert skipped["file"].endswith("names.jsonl") and skipped["row"] == "line 4" and skipped["id"]
        assert skipped["part"] == "data.train" and skipped["reason"] == "answer is missing"
    files = json.loads((root / "two" / "data.json").read_text())["data.train"]["files"]
    assert [(file["rows"], file["good"]) for file in files] == [(20, 20), (20, 19)]
    told = [answer["stderr"] for answer in answers(root / "ranks" / "two")]
    assert ["1 of 40 rows is skipped" in text for text in told] == [True, False]  # the controller reads


def test_a_run_does_not_go_on_with_other_data(root: Path) -> None:
    (picture,), (rows,) = answers(root / "ranks" / "other_picture"), answers(root / "ranks" / "other_rows")
    assert picture["status"] == rows["status"] == 2
    assert "its good rows are not (39, recorded 39): a picture changed" in picture["stderr"]
    assert "names.jsonl is not what the run began with (SHA-256 " in rows["stderr"]
