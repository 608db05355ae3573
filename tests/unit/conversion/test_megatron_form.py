"""Megatron checkpoints that are not what they should be: another config, tensors too many, damaged or hostile files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_apo.conversion.command import main
from megatron_apo.conversion.metadata_file import read_metadata_file
from megatron_apo.conversion.stored_tensors import StoredTensors
from tests.unit.conversion.changed_metadata import add_tensor, change_metadata
from tests.unit.conversion.random_checkpoint import random_checkpoint

EXPORT, VERIFY = "megatron-to-hf", "verify"
EMBEDDING = "language_model.embedding.word_embeddings.weight"
OUTPUT = "language_model.output_layer.weight"
QKV = "language_model.decoder.layers.self_attention.linear_qkv.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("form") / "source")


@pytest.fixture(scope="module")
def megatron(source: Path) -> Path:
    assert main(["hf-to-megatron", str(source), str(source.parent / "megatron")]) == 0
    return source.parent / "megatron"


@pytest.fixture
def broken(megatron: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(megatron, tmp_path / "broken"))


def error_of(way: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that refuses ``broken``, after which nothing is left."""
    capsys.readouterr()
    before = sorted(path.name for path in broken.parent.iterdir())
    assert main([way, str(broken), str(broken.parent / "back") if way == EXPORT else str(broken)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    assert sorted(path.name for path in broken.parent.iterdir()) == before
    return text


def change_config(broken: Path, **changes: Any) -> None:
    path = broken / "huggingface/config.json"
    config = json.loads(path.read_text())
    for section, values in changes.items():
        config[section] = config[section] | values if isinstance(values, dict) else values
    path.write_text(json.dumps(config))


def rename(metadata: Metadata, names: dict[str, str]) -> None:
    metadata.state_dict_metadata = {names.get(k, k): v for k, v in metadata.state_dict_metadata.items()}
    metadata.storage_data = {
        dataclasses.replace(k, fqn=names.get(k.fqn, k.fqn)): v for k, v in metadata.storage_data.items()
    }


@pytest.mark.parametrize("way", [EXPORT, VERIFY])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text_config": {"num_hidden_layers": 3}}, r".weight is \(4, 128\), expected \(3, 128\)"),
        ({"text_config": {"num_hidden_layers": 5}}, r".weight is \(4, 128\), expected \(5, 128\)"),
        (
            {"text_config": {"intermediate_size": 180}},
            r"linear_fc1.weight is \(4, 368, 128\), expected \(4, 360, 128\)",
        ),
        ({"vision_config": {"depth": 2}}, r"it has no vision_model.layers.2.mlp.linear_fc1.bias, .* and 2 more"),
        ({"vision_config": {"depth": 4}}, r"visual.blocks.3.norm1.weight \(vision_model.layers.3.\S+\) is missing"),
        ({"tie_word_embeddings": True}, rf"ties the output .* {OUTPUT} differs from {EMBEDDING}"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_another_config(
    broken: Path, way: str, changes: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_config(broken, **changes)
    text = error_of(way, broken, capsys)
    assert re.search(expected, text) and "config" in text, text


@pytest.mark.parametrize("way", [EXPORT, VERIFY])
def test_tensors_too_many(broken: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    add_tensor(broken)
    assert "it has no score.weight" in error_of(way, broken, capsys)


class Runs:
    """Unpickled carelessly, makes a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("way", [EXPORT, VERIFY])
def test_metadata_that_is_not(broken: Path, tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken / ".metadata"
    whole = path.read_bytes()
    for contents, expected in (
        (whole[:100], "cannot be read"),
        (b"garbage", "cannot be read"),
        (b"", "cannot be read"),
        (pickle.dumps({"a": 1}), "holds dict"),
        (pickle.dumps(Runs(tmp_path / "ran")), "posix.mkdir, which no checkpoint needs"),
    ):
        path.write_bytes(contents)
        text = error_of(way, broken, capsys)
        assert expected in text and str(path) in text, text
        assert not (tmp_path / "ran").exists()


class Asks:
    """Pickled as ``getattr(kind, name)``."""

    def __init__(self, kind: Any, name: str) -> None:
        self.asked = (kind, name)

    def __reduce__(self) -> Any:
        return getattr, self.asked


def test_members_of_enumerations_alone(tmp_path: Path) -> None:
    """Python before 3.11.4 writes them as a call of getattr, which could as well ask for anything else."""
    for kind, name, expected in (
        (WriteItemType, "TENSOR", "holds WriteItemType"),
        (Metadata, "__init__", "which no checkpoint needs"),
        (WriteItemType, "__class__", "which no checkpoint needs"),
    ):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(Asks(kind, name)))
        with pytest.raises(ValueError, match=expected):
            read_metadata_file(tmp_path / ".metadata")


@pytest.mark.parametrize("way", [EXPORT, VERIFY])
@pytest.mark.parametrize("place", ["../megatron", "/etc"])
def test_files_elsewhere(broken: Path, way: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    def move(metadata: Metadata) -> None:
        for key, value in metadata.storage_data.items():
            metadata.storage_data[key] = dataclasses.replace(value, relative_path=f"{place}/{value.relative_path}")

    change_metadata(broken, move)
    assert f"names '{place}/__0_0.distcp', outside the checkpoint" in error_of(way, broken, capsys)


@pytest.mark.parametrize("way", [EXPORT, VERIFY])
@pytest.mark.parametrize("offset", [-5, 7])
def test_damaged_archives(broken: Path, way: str, offset: int, capsys: pytest.CaptureFixture[str]) -> None:
    def move(metadata: Metadata) -> None:
        key = next(key for key in metadata.storage_data if key.fqn == QKV)
        place = metadata.storage_data[key]
        metadata.storage_data[key] = dataclasses.replace(place, offset=place.offset + offset, length=100)

    change_metadata(broken, move)
    error_of(way, broken, capsys)


def test_other_damage(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = broken / "common.pt"
    buffer = io.BytesIO()
    torch.save({"a": Runs(tmp_path / "ran")}, buffer)
    common.write_bytes(buffer.getvalue())
    assert "common.pt" in error_of(VERIFY, broken, capsys) and not (tmp_path / "ran").exists()
    common.unlink()
    assert f"{common}: missing" in error_of(VERIFY, broken, capsys)


def test_an_object_that_runs(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In place of a layer's extra state, which torch itself would unpickle whatever it is."""
    buffer = io.BytesIO()
    torch.save(Runs(tmp_path / "ran"), buffer)
    file = next(broken.glob("*.distcp"))
    offset = file.stat().st_size
    with file.open("ab") as end:
        end.write(buffer.getvalue())

    def point(metadata: Metadata) -> None:
        places = metadata.storage_data
        key = next(key for key in places if "_extra_state" in key.fqn)
        places[key] = dataclasses.replace(
            places[key], relative_path=file.name, offset=offset, length=len(buffer.getvalue())
        )

    change_metadata(broken, point)
    assert "holds more than numbers" in error_of(VERIFY, broken, capsys) and not (tmp_path / "ran").exists()


def test_the_wrong_form(source: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["hf-to-megatron", str(megatron)], "convert it with megatron-to-hf"),
        (["megatron-to-hf", str(source)], "convert it with hf-to-megatron"),
        (["megatron-to-hf", str(tmp_path)], "neither .metadata nor *.distcp"),
        *(([way, str(tmp_path / "no")], "no such directory") for way in ("hf-to-megatron", EXPORT, VERIFY)),
    ):
        assert main([*arguments, str(tmp_path / "target")]) == 2
        assert expected in capsys.readouterr().err, arguments


def test_torchrun_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(reply))
    assert main(["inspect", str(tmp_path / "no")]) == 2
    assert json.loads(reply.read_text())["message"].startswith(f"error: {tmp_path / 'no'}: no such directory")


def test_a_padded_vision_ffn(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100 wide, stored 128; cut at export, and read by ranks that divide 128."""
    target = tmp_path / "padded"
    assert main(["hf-to-megatron", str(source), str(target)]) == 0
    assert main(["inspect", str(target), "--tensors"]) == 0
    listed = capsys.readouterr().out
    assert "vision_model.layers.0.mlp.linear_fc1.weight [256, 64]" in listed
    assert "vision_model.layers.0.mlp.linear_fc2.weight [64, 128]" in listed
    assert main([VERIFY, str(source), str(target)]) == 0
    assert main([EXPORT, str(target), str(tmp_path / "back")]) == 0
    assert main([VERIFY, str(source), str(tmp_path / "back")]) == 0
    assert main([VERIFY, str(target), str(target), "--tensor", "3"]) == 2
    assert "stored 128 wide, which 3 tensor ranks do not divide" in capsys.readouterr().err


def test_another_thread_may_map_a_file_while_an_origin_is_looked_up(megatron: Path) -> None:
    """Two threads write a checkpoint's shards out of one ``StoredTensors``."""
    stored = StoredTensors(megatron)

    def whole(name: str) -> torch.Tensor:
        return stored.read(name, tuple(0 for _ in stored.shapes[name]), stored.shapes[name])

    first = whole(EMBEDDING)

    class Meanwhile:
        """``first``, whose address is asked for at the moment in which the other files are mapped."""

        def is_contiguous(self) -> bool:
            return True

        def data_ptr(self) -> int:
            for name in stored.shapes:
                whole(name)
            return 0

    assert len(list(megatron.glob("*.distcp"))) > 1
    assert stored.origin(cast(torch.Tensor, Meanwhile())) is None
    found = stored.origin(first)
    assert found is not None and found[0].parent == megatron
