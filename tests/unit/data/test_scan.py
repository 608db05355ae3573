"""The scan: every bad row told with its place and reason, the good ones the same from every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.config import DataConfig
from megatron_apo.data.examiners import ImageExaminers, examine_here
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.reading import check_unchanged, read_data, write_data_files
from megatron_apo.data.scan import PromptSet, Scan
from tests.unit.data.bad_rows import GOOD, bad_rows


def check_gold(answer: str, question: str, choices: tuple[str, ...]) -> None:
    if answer.startswith("unparsable"):
        raise ValueError(f"answer={answer!r}: no number in it")


@pytest.fixture(scope="module")
def builder(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    cache = str(tmp_path_factory.mktemp("data") / "cache")
    return PromptBuilder(tiny_policy, DataConfig(max_prompt_tokens=1000, cache=cache, workers=1))


def scan(builder: PromptBuilder, *files: Path, **options: Any) -> PromptSet:
    return Scan(builder, examine_here, check_gold, cache=builder.data.cache, **options).run([str(f) for f in files])


def write(path: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def test_two_hundred_bad_rows(builder: PromptBuilder, tmp_path: Path) -> None:
    cases = bad_rows(tmp_path / "task")
    assert len(cases) >= 200
    rows = [{**GOOD, "id": "taken"}, *(row for row, _ in cases), {**GOOD, "id": "last"}]
    path = write(tmp_path / "task" / "train.jsonl", rows)
    with ImageExaminers(1) as examiners:
        found = Scan(builder, examiners, check_gold, cache=str(tmp_path / "cache")).run([str(path)])
    reasons = {skipped.row: skipped for skipped in found.skipped}
    wrong = [
        (row if isinstance(row, bytes) else str(row)[:150], expected, reasons[f"line {line}"].reason[:200])
        for line, (row, expected) in enumerate(cases, start=2)
        if f"line {line}" not in reasons or expected not in reasons[f"line {line}"].reason
    ]
    assert not wrong
    assert [prompt.id for prompt in found] == ["taken", "last"]
    assert len(found.skipped) == len(cases) and found.files[0].rows == len(rows)
    assert all(len(skipped.reason) < 1000 for skipped in found.skipped)  # no picture ends up in the report


def the_twelve(root: Path) -> list[dict[str, Any]]:
    """Rows of every shape, in the one form that every format can hold."""
    from PIL import Image

    for number in range(3):
        Image.effect_noise((30 + number, 20), 90).save(root / f"{number}.png")
    names = [f"{number % 3}.png" for number in range(12)]
    plain = [
        {"id": f"p{n}", "images": [names[n]], "question": f"How many, {n}?", "answer": str(n), "category": "plain"}
        for n in range(4)
    ]
    placed = [
        {"id": "q1", "images": names[:2], "question": "<image> or <image>?", "answer": "first", "choices": ["a", "b"]},
        {"id": "q2", "image": "2.png", "question": "Is <image> large?", "answer": "no", "demonstration": "It is not."},
    ]
    content = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "How many dots?"}]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image> How many?"}]
    chats: list[dict[str, Any]] = [
        {"message": json.dumps([{"role": "user", "content": content}]), "answer": "$42$"},
        {"message": json.dumps(chat), "images": ["0.png"], "answer": "7", "source": "elsewhere"},
        {
            "message": json.dumps([*chat, {"role": "assistant", "content": "Three."}]),
            "images": ["0.png"],
            "answer": "3",
        },
        {"message": "How many dots?", "image": "1.png", "answer": "8"},
    ]
    named = [{"id": 7, "images": [f"file://{root}/1.png"], "question": "How?", "answer": "so"}]
    named += [{"id": 8, "images": [str(root / "2.png")], "question": "How?", "answer": "so"}]
    return [*plain, *placed, *chats, *named]


def as_json(rows: list[dict[str, Any]], root: Path) -> Path:
    return _text(root / "rows.json", json.dumps(rows, indent=2))


def as_lines(rows: list[dict[str, Any]], root: Path) -> Path:
    return _text(root / "rows.jsonl", "\n\n".join(map(json.dumps, rows)))


def as_parquet(rows: list[dict[str, Any]], root: Path) -> Path:
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(_columns(rows))
    pyarrow.parquet.write_table(table, root / "rows.parquet", row_group_size=5)
    return root / "rows.parquet"


def as_shards(rows: list[dict[str, Any]], root: Path) -> Path:
    import pyarrow.parquet

    (root / "rows").mkdir()
    table = pyarrow.Table.from_pylist(_columns(rows))
    for number, start in enumerate((0, 5, 9)):
        end = (5, 9, 12)[number]
        pyarrow.parquet.write_table(table.slice(start, end - start), root / "rows" / f"train-0000{number}.parquet")
    return root / "rows"


def as_dataset(rows: list[dict[str, Any]], root: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(_columns(rows)).save_to_disk(str(root / "saved" / "rows"), num_shards=2)
    return root / "saved" / "rows"


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a format whose columns have one type each: ids are texts there."""
    keys = {key for row in rows for key in row}
    return [{key: str(row[key]) if key == "id" and key in row else row.get(key) for key in keys} for row in rows]


@pytest.mark.parametrize("save", [as_json, as_parquet, as_shards, as_dataset])
def test_every_format_gives_the_same_prompts(
    save: Callable[[list[dict[str, Any]], Path], Path], builder: PromptBuilder, tmp_path: Path
) -> None:
    rows = the_twelve(tmp_path)
    numbered = [row if "id" in row else {**row, "id": f"n{number}"} for number, row in enumerate(rows)]
    expected = scan(builder, as_lines(numbered, tmp_path))
    found = scan(builder, save(numbered, tmp_path), image_root=str(tmp_path))
    assert not expected.skipped and not found.skipped
    assert len(expected) == 12 and list(found) == list(expected)
    assert found.rows_sha256 == expected.rows_sha256
    assert found.files[0].unused == expected.files[0].unused == ("source",)


def test_what_the_twelve_say(builder: PromptBuilder, tmp_path: Path) -> None:
    prompts = {prompt.id: prompt for prompt in scan(builder, as_lines(the_twelve(tmp_path), tmp_path))}
    text = {name: builder.tokenizer.decode(prompt.collapsed_ids) for name, prompt in prompts.items()}
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"{shown}How many, 0?" in text["p0"] and prompts["p0"].category == "plain"
    assert f"{shown} or {shown}?" in text["q1"] and prompts["q1"].choices == ("a", "b")
    assert [Path(image.path).name for image in prompts["q1"].images] == ["0.png", "1.png"]
    assert f"Is {shown} large?" in text["q2"] and prompts["q2"].question == "Is  large?"
    assert f"{shown}How many dots?" in text["rows/13"] and prompts["rows/13"].gold == "$42$"  # every second line
    assert "system\nBe brief." in text["rows/15"] and f"{shown} How many?" in text["rows/15"]
    assert prompts["rows/17"].demonstration == "Three." and "Three." not in text["rows/17"]
    assert f"{shown}How many dots?" in text["rows/19"]
    assert Path(prompts["7"].images[0].path).name == "1.png" and Path(prompts["8"].images[0].path).name == "2.png"


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_pictures_as_bytes(kind: str, builder: PromptBuilder, tmp_path: Path) -> None:
    the_twelve(tmp_path)
    data = (tmp_path / "1.png").read_bytes()
    rows = [
        {"images": [{"bytes": data, "path": "elsewhere.png"}], "question": "How?", "answer": "so"},
        {"images": [{"bytes": None, "path": str(tmp_path / "1.png")}], "question": "How?", "answer": "so"},
        {"images": [{"bytes": b"no picture", "path": None}], "question": "How?", "answer": "so"},
        {"images": [{"bytes": data, "path": None}], "question": "How?", "answer": "so"},
    ]
    if kind == "parquet":
        path = as_parquet(rows, tmp_path)
    else:
        from datasets import Dataset, Features, Image, List, Value

        text = Value("string")
        features = Features({"images": List(Image()), "question": text, "answer": text})
        Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
        path = tmp_path / "saved"
    found = scan(builder, path, image_root=str(tmp_path))
    assert [(skipped.row, skipped.reason.split(": ")[-1][:13]) for skipped in found.skipped] == [
        ("row 3", "not an image ")
    ]
    first, named, again = (prompt.images[0] for prompt in found)
    assert first == again and first.sha256 == named.sha256 == Path(first.path).name
    assert Path(first.path).is_relative_to(Path(builder.data.cache)) and Path(first.path).read_bytes() == data
    assert first.grid_thw == named.grid_thw
    assert not list(Path(builder.data.cache).rglob("tmp*"))  # nothing half-written stays


def test_a_cache_that_cannot_be_written_to_skips_nothing(builder: PromptBuilder, tmp_path: Path) -> None:
    path = as_parquet([{"images": [b"picture"], "question": "How?", "answer": "so"}], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.cache=.*cannot be kept there"):
        Scan(builder, examine_here, check_gold, cache=str(tmp_path / "file")).run([str(path)])


def test_files_that_cannot_be_read(builder: PromptBuilder, tmp_path: Path) -> None:
    rows = the_twelve(tmp_path)
    whole = as_json(rows, tmp_path).read_text()
    cases = {
        "cut.json": (whole[:-20], "its list does not end"),
        "more.json": (whole + "]", "text follows the end of its list"),
        "cut.parquet": (b"PAR1" + bytes(100), "not a whole parquet file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message) as error:
            scan(builder, tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r"absent\.jsonl: cannot be read"):
        scan(builder, tmp_path / "absent.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a saved data set"):
        scan(builder, tmp_path / "empty")
    saved = as_dataset(rows[:4], tmp_path)
    (saved.parent / "dataset_dict.json").touch()
    with pytest.raises(ValueError, match="holds several splits; give one of them, such as .*train"):
        scan(builder, saved.parent)
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../../data.arrow"
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="names files outside of it"):
        scan(builder, saved)


def test_a_bad_row_of_a_json_list_costs_itself_alone(builder: PromptBuilder, tmp_path: Path) -> None:
    good = [json.dumps(row) for row in the_twelve(tmp_path)[:3]]
    good[1] = good[1].replace("How many", 'How \\"[{\\\\')
    text = f"[{good[0]}, {{bad: [1]}}, {good[1]}, 4, {good[2]}]"
    found = scan(builder, _text(tmp_path / "rows.json", text))
    assert [prompt.id for prompt in found] == ["p0", "p1", "p2"] and found[1].question == 'How "[{\\, 1?'
    assert [(skipped.row, skipped.reason[:14]) for skipped in found.skipped] == [
        ("row 2", "not valid JSON"),
        ("row 4", "a JSON object "),
    ]


def test_ids_of_several_files(builder: PromptBuilder, tmp_path: Path) -> None:
    rows = the_twelve(tmp_path)[:2]
    (tmp_path / "other").mkdir()
    files = [
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", rows),
        write(tmp_path / "other/a.jsonl", rows),
    ]
    found = scan(builder, *files, image_root=str(tmp_path))
    assert [prompt.id for prompt in found] == ["a/p0", "a/p1", "b/p0", "b/p1", "a#3/p0", "a#3/p1"]
    assert found.sizes == (2, 2, 2)


def test_demonstrations_and_limit(builder: PromptBuilder, tmp_path: Path) -> None:
    rows = the_twelve(tmp_path)
    rows[0]["demonstration"] = "A <|image_pad|>."
    path = write(tmp_path / "rows.jsonl", rows)
    found = scan(builder, path, demonstrations=True)
    assert len(found) == 2 and "which a response must not" in found.skipped[0].reason
    assert found.skipped[1].reason == "demonstration is missing; supervised training needs one in every row"
    assert len(scan(builder, path, limit=5)) == 5


def test_a_prompt_is_made_again_when_it_left_memory(
    builder: PromptBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_apo.data.scan._CACHED_TOKENS", 1)
    found = scan(builder, as_lines(the_twelve(tmp_path), tmp_path))
    first = list(found)
    assert [found[number] for number in range(12)] == first and found[-1] == first[-1]
    assert found[2:4] == first[2:4] and found[0] is not first[0]
    with pytest.raises(IndexError):
        found[12]


def read(builder: PromptBuilder, path: Path, **changes: Any) -> PromptSet:
    changed = PromptBuilder.__new__(PromptBuilder)
    changed.__dict__ = {**builder.__dict__, "data": DataConfig(**{"max_prompt_tokens": 1000, "workers": 1, **changes})}
    return read_data(changed, [str(path)], setting="data.train", check_gold=check_gold)


def test_the_share_of_bad_rows(builder: PromptBuilder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = the_twelve(tmp_path)
    path = write(tmp_path / "rows.jsonl", [*rows[:9], b"{broken", {**rows[0], "id": "x", "answer": "unparsable"}])
    with pytest.raises(ValueError) as error:
        read(builder, path, max_bad_share=0.18)
    message = str(error.value)
    assert "2 of 11 rows are bad, more than data.max_bad_share=0.18 allows (data.train)" in message
    assert "line 10: not valid JSON" in message and "line 11, row 'x': answer='unparsable'" in message
    found = read(builder, path, max_bad_share=0.19)
    assert len(found) == 9
    shown = capsys.readouterr().err
    assert "data.train: 2 of 11 rows are skipped" in shown and "line 11, row 'x'" in shown and "keys source" in shown
    write_data_files(tmp_path, {"data.train": found})
    told = [json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text().splitlines()]
    assert [(row["part"], row["row"], row["id"]) for row in told] == [
        ("data.train", "line 10", ""),
        ("data.train", "line 11", "x"),
    ]
    assert all(row["file"] == str(path) and row["reason"] for row in told)
    many = write(tmp_path / "many.jsonl", [b"{"] * 12)
    with pytest.raises(ValueError, match="12 of 12 rows are bad") as error:
        read(builder, many)
    assert "line 10" in str(error.value) and "line 11" not in str(error.value) and "and 2 more" in str(error.value)
    with pytest.raises(ValueError, match="holds no rows"):
        read(builder, write(tmp_path / "none.jsonl", []))


def test_a_resumed_run_has_the_same_data(builder: PromptBuilder, tmp_path: Path) -> None:
    rows = the_twelve(tmp_path)
    path = write(tmp_path / "rows.jsonl", rows)
    check_unchanged(tmp_path, {"data.train": scan(builder, path)})  # nothing recorded yet
    write_data_files(tmp_path, {"data.train": scan(builder, path)})
    check_unchanged(tmp_path, {"data.train": scan(builder, path)})
    picture = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes((tmp_path / "2.png").read_bytes())
    with pytest.raises(ValueError, match=r"its good rows are not \(12, recorded 12\): a picture changed"):
        check_unchanged(tmp_path, {"data.train": scan(builder, path)})
    (tmp_path / "1.png").write_bytes(picture)
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=r"rows\.jsonl is not what the run began with \(SHA-256"):
        check_unchanged(tmp_path, {"data.train": scan(builder, path)})
