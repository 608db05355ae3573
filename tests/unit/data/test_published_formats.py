"""Files in the forms that benchmarks are published in, made here, read as a run, ``evaluate`` and ``doctor`` do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.cli import main
from megatron_apo.config import DataConfig
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.scan import PromptSet
from megatron_apo.doctor.arguments import SKIPPED
from megatron_apo.doctor.survey import kind_of
from megatron_apo.evaluation.directory import read_responses
from megatron_apo.evaluation.evaluate import read_prompts
from tests.unit.data.test_scan import write


def pictures(root: Path) -> list[bytes]:
    """Three of them, under ``root``/images too."""
    from PIL import Image

    (root / "images").mkdir()
    for number in range(3):
        Image.effect_noise((30 + number, 20), 90).save(root / "images" / f"{number}.png")
    return [(root / "images" / f"{number}.png").read_bytes() for number in range(3)]


def counting_questions(root: Path) -> Path:
    """R1-V's test questions: JSON lines that name pictures."""
    pictures(root)
    return write(
        root / "superclevr.jsonl",
        [{"image_path": f"./images/{n}.png", "question": "How many items?", "ground_truth": n + 3} for n in range(3)],
    )


def geometry_questions(root: Path) -> Path:
    pictures(root)
    answers = ("140°", "2√{3}", "3√{2}米")
    return write(
        root / "geoqa.jsonl",
        [{"image_path": f"./images/{n}.png", "question": "x is ()", "ground_truth": answers[n]} for n in range(3)],
    )


def _solved(images: list[bytes], answers: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": image, "path": None},
            "problem": "Find it.",
            "solution": f"<answer> {answer} </answer>",
            "original_question": "?",
        }
        for image, answer in zip(images, answers, strict=True)
    ]


def counting_training(root: Path) -> Path:
    """R1-V's training set as a parquet file of the Hugging Face hub."""
    import pyarrow.parquet

    rows = _solved(pictures(root), ["3", "4", "5"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train-00000-of-00001.parquet")
    return root / "train-00000-of-00001.parquet"


def geometry_training(root: Path) -> Path:
    """R1-V's training set as ``save_to_disk`` leaves it, its pictures an Image column."""
    from datasets import Dataset, Features, Image, Value

    text = Value("string")
    features = Features({"image": Image(), "problem": text, "solution": text, "original_question": text})
    rows = _solved(pictures(root), ["140°", "2√{3}", "3√{2}米"])
    Dataset.from_list(rows, features=features).save_to_disk(str(root / "saved"))
    return root / "saved"


def school_questions(root: Path) -> Path:
    """MMK12 as a directory of parquet files."""
    import pyarrow.parquet

    question = "Which?\nA. the first\nB. the second"
    rows = [
        {"id": f"k{n}", "question": question, "answer": "AB"[n % 2], "subject": "physics", "image": {"bytes": image}}
        for n, image in enumerate(pictures(root))
    ]
    (root / "mmk12").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "mmk12" / "test-00000.parquet")
    return root / "mmk12"


def earlier_school_questions(root: Path) -> Path:
    """The 500 rows of MM-Eureka's repository: one JSON list."""
    pictures(root)
    rows = [
        {"id": f"k{n}", "question": "It is ______.", "answer": "$$6$$", "image_path": f"images/{n}.png"}
        for n in range(3)
    ]
    (root / "k12.json").write_text(json.dumps(rows))
    return root / "k12.json"


FILES: list[tuple[str, Callable[[Path], Path], list[str], list[str]]] = [
    ("r1v_counting", counting_questions, [f"counting-test-{n}#{n}" for n in range(3)], ["3", "4", "5"]),
    ("r1v_counting", counting_training, [f"counting-train-{n}" for n in range(3)], ["3", "4", "5"]),
    (
        "r1v_geoqa",
        geometry_questions,
        [f"geoqa-test-{n}#{n}" for n in range(3)],
        ["140°", r"$2\sqrt{3}$", r"$3\sqrt{2}$ m"],
    ),
    (
        "r1v_geoqa",
        geometry_training,
        [f"geoqa-train-{n}" for n in range(3)],
        ["140°", r"$2\sqrt{3}$", r"$3\sqrt{2}$ m"],
    ),
    ("mmk12", school_questions, ["k0", "k1", "k2"], ["A", "B", "A"]),
    ("mmk12", earlier_school_questions, ["k0", "k1", "k2"], ["$$6$$"] * 3),
]


def read(policy: Path, root: Path, *files: Path, setting: str = "data.train", **data: Any) -> PromptSet:
    builder = PromptBuilder(policy, DataConfig(cache=str(root / "cache"), workers=1, **data))
    return read_prompts(builder, [str(file) for file in files], str(root), setting=setting)


@pytest.mark.parametrize(("name", "made", "ids", "answers"), FILES)
def test_published_files_are_read(
    name: str,
    made: Callable[[Path], Path],
    ids: list[str],
    answers: list[str],
    tiny_policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = read(tiny_policy, tmp_path, made(tmp_path), format=name)
    assert [prompt.id for prompt in found] == ids and [prompt.gold for prompt in found] == answers
    assert len({image.sha256 for prompt in found for image in prompt.images}) == 3
    assert "nothing reads the keys" not in capsys.readouterr().err
    if name == "mmk12" and made is school_questions:
        assert {prompt.category for prompt in found} == {"physics"}
        assert found[0].choices == ("the first", "the second")


def test_a_record_of_another_form_is_a_bad_row(tiny_policy: Path, tmp_path: Path) -> None:
    path = counting_questions(tmp_path)
    path.write_text(path.read_text() + '{"id": "x", "question": "How many?", "answer": "4"}\n{broken\n')
    found = read(tiny_policy, tmp_path, path, format="r1v_counting", max_bad_share=0.5)
    assert len(found) == 3
    other, broken = found.skipped
    assert (other.row, other.id, broken.row) == ("line 4", "x", "line 5")
    assert other.reason.startswith("data.format=r1v_counting: image=NoneType: a path")
    assert other.reason.endswith("the record's keys are id, question, answer")
    assert kind_of(other.reason) == "record of another form than data.format"
    assert "not valid JSON" in broken.reason
    long = "y" * 1_000_000
    write(path, [{"image_path": [long], "question": long, long: "x"}, {"image": "a", "problem": "?", "solution": long}])
    with pytest.raises(ValueError) as error:
        read(tiny_policy, tmp_path, path, format="r1v_counting")
    assert len(str(error.value)) < 2000


def test_ids_of_several_published_files(tiny_policy: Path, tmp_path: Path) -> None:
    first = counting_questions(tmp_path)
    second = shutil.copy(first, tmp_path / "other.jsonl")
    found = read(tiny_policy, tmp_path, first, second, format="r1v_counting")
    assert [prompt.id for prompt in found][2:4] == ["superclevr/counting-test-2#2", "other/counting-test-0#0"]


def test_files_of_several_forms(tiny_policy: Path, tmp_path: Path) -> None:
    counting = counting_questions(tmp_path)
    geometry = write(
        tmp_path / "geoqa.jsonl", [{"image_path": "images/0.png", "question": "x is ()", "ground_truth": "140°"}]
    )
    own = write(tmp_path / "own.jsonl", [{"id": "a", "images": ["images/1.png"], "question": "How?", "answer": "4"}])
    named = {str(geometry): "r1v_geoqa", str(own): ""}
    found = read(tiny_policy, tmp_path, counting, geometry, own, format="r1v_counting", formats=named)
    assert [prompt.id for prompt in found][2:] == ["superclevr/counting-test-2#2", "geoqa/geoqa-test-0#0", "own/a"]
    words = ["doctor", *map(str, (counting, geometry, own)), f"--model={tiny_policy}", "--data.workers=1"]
    words += [f"--output={tmp_path / 'found'}", "--data.format=r1v_counting"]
    formats = f"--data.formats={{{geometry}: r1v_geoqa, {own}: ''}}"
    assert main([*words, formats]) == 0 and main(words) == 3


def test_evaluate_and_doctor_read_a_published_file(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = counting_questions(tmp_path)
    settings = [f"--data.cache={tmp_path / 'cache'}", "--data.workers=1", "--data.format=r1v_counting"]
    drawn = ["--rollout.engine=transformers", "--sampling.max_tokens=2", "--rewards.workers=1"]
    drawn.append("--data.max_prompt_tokens=100")
    output = tmp_path / "kept"
    words = [f"--model={tiny_policy}", f"--data={path}", f"--output={output}", *settings, *drawn]
    assert main(["evaluate", *words]) == 0
    assert [row.gold for row in read_responses(output)] == ["3", "4", "5"]
    words = ["doctor", str(path), f"--model={tiny_policy}", f"--output={tmp_path / 'found'}"]
    assert main([*words, *settings]) == 0
    assert "03 objects 1" in capsys.readouterr().out and not (tmp_path / "found" / SKIPPED).exists()
    assert main([*words, *settings[:-1]]) == 3
    assert "skipped" in capsys.readouterr().out
    assert main([*words, "--data.format=r1v"]) == 2
    assert "data.format=r1v: must be one of r1v_counting, r1v_geoqa, mmk12" in capsys.readouterr().err
