"""The converter's command line on one process: what it writes, and what it refuses and leaves alone."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_apo.conversion import convert, megatron_files, new_directory
from megatron_apo.conversion.command import main
from megatron_apo.conversion.verify import first_difference
from model_providers.qwen_vl import layers
from model_providers.qwen_vl.weight_map import published_name
from tests.unit.model_providers.reference import make_checkpoint

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source"), tied=False)


@pytest.fixture(scope="module")
def megatron(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("megatron") / "m"
    assert main(["hf-to-megatron", str(source), str(target)]) == 0
    return target


def changed(source: Path, target: Path, name: str, value: torch.Tensor | None) -> Path:
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    stored = {published_name(key): key for key in weights}.get(name, name)
    if value is None:
        del weights[stored]
    else:
        weights[stored] = value
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def test_verify_says_where(source: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    weights = {published_name(key): value for key, value in load_file(source / "model.safetensors").items()}
    value = weights[name].clone()
    value[3, 5] = 7.0
    other = changed(source, tmp_path / "other", name, value)
    assert main(["verify", str(other), str(megatron)]) == 1
    out = capsys.readouterr().out
    assert f"{name}[3, 5]: 7.0 against {weights[name][3, 5].item()!r}; 1 of {value.numel()} numbers" in out
    assert f"{len(weights) - 1} tensors equal bit for bit, 1 differ" in out
    assert main(["verify", str(source), str(source)]) == 0


def test_bits_count_not_values() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert first_difference("x", nan, nan.clone()) is None
    assert first_difference("x", torch.tensor([0.0]), torch.tensor([-0.0])) == (
        "x[0]: 0.0 against -0.0; 1 of 1 numbers of this tensor differ"
    )
    assert "torch.float32 (1,) against torch.bfloat16 (1,)" in str(
        first_difference("x", torch.ones(1), torch.ones(1, dtype=torch.bfloat16))
    )


def test_the_other_files_travel(source: Path, megatron: Path, tmp_path: Path) -> None:
    (megatron / "huggingface" / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["megatron-to-hf", str(megatron), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back/chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "back/config.json").read_bytes() == (source / "config.json").read_bytes()


def test_a_link_that_leads_nowhere_is_not_passed_over(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a download's cache that is not whole; links that lead somewhere are what such a cache consists of."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    assert main(["hf-to-megatron", str(linked), str(tmp_path / "whole")]) == 0
    (linked / "tokenizer.json").symlink_to(tmp_path / "blob")
    assert "tokenizer.json: a link to" in error_of(["hf-to-megatron", str(linked), str(tmp_path / "target")], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "whole"]


def test_inspect(source: Path, megatron: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(megatron)]) == 0
    text = capsys.readouterr().out
    assert "Megatron torch_dist" in text and "torch.float32" in text
    assert main(["inspect", str(source), "--tensors"]) == 0
    assert "model.norm.weight [128] F32" in capsys.readouterr().out


def test_another_width_of_the_vision_ffn(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written 104 wide instead of 128: verify builds that width, the way back cuts it, a job of 128 refuses it."""
    with monkeypatch.context() as patch:
        patch.setattr(convert, "job_config", functools.partial(convert.job_config, vision_ffn_multiple=8))
        assert main(["hf-to-megatron", str(source), str(tmp_path / "m")]) == 0
    assert megatron_files.stored_vision_ffn(tmp_path / "m", 1) == 104
    assert main(["verify", str(source), str(tmp_path / "m")]) == 0
    assert main(["megatron-to-hf", str(tmp_path / "m"), str(tmp_path / "back")]) == 0
    assert main(["verify", str(source), str(tmp_path / "back")]) == 0
    config = convert.job_config(source, torch.float32, convert.ONE_PROCESS)
    with convert.job(config) as groups, pytest.raises(ValueError, match=r"mlp\.linear_fc1\.weight has .* FFN of 104, "
                                                      r"this job builds one of 128"):  # fmt: skip
        megatron_files.load_weights([convert.build_empty(config, source, groups)], tmp_path / "m")


def test_the_names_of_an_earlier_version_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layers, "STORED_NORMS", {})
        assert main(["hf-to-megatron", str(source), str(tmp_path / "m")]) == 0
    for arguments in (["megatron-to-hf", str(tmp_path / "m"), str(tmp_path / "back")],
                      ["verify", str(source), str(tmp_path / "m")]):  # fmt: skip
        assert "an earlier version wrote it" in error_of(arguments, capsys)


def test_the_layer_specs_share_the_stored_names(megatron: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(megatron), "--tensors"]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " [" in line}
    assert "vision_model.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    assert "language_model.decoder.layers.mlp.linear_fc1.layer_norm_weight" in names
    assert not any("layernorm" in name for name in names - {"language_model.decoder.final_layernorm.weight"})


def test_overwrites_only_by_force(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m"
    target.mkdir()
    (target / "precious").write_text("x")
    assert "--force to replace" in error_of(["hf-to-megatron", str(source), str(target)], capsys)
    assert (target / "precious").exists()
    assert main(["hf-to-megatron", str(source), str(target), "--force"]) == 0
    assert not (target / "precious").exists() and (target / ".metadata").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_something_else_where_it_is_written(
    source: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file or a link under the name that it has while it is written; a target under a file; no name at all."""
    target, elsewhere = tmp_path / "m", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    for place in (new_directory.aside(target), tmp_path / "file"):
        place.write_text("x")
    ways = (["hf-to-megatron", str(source)], ["megatron-to-hf", str(megatron)])
    for way in ways:
        assert "exists and is not a directory; remove it" in error_of([*way, str(target)], capsys)
        assert f"{tmp_path / 'file'} is not a directory" in error_of([*way, str(tmp_path / "file/m")], capsys)
        assert "name the directory to write" in error_of([*way, str(elsewhere / ".."), "--force"], capsys)
    new_directory.aside(target).unlink()
    new_directory.aside(target).symlink_to(elsewhere)
    for way in ways:
        assert "exists and is not a directory; remove it" in error_of([*way, str(target)], capsys)
    assert [path.name for path in elsewhere.iterdir()] == ["precious"] and not target.exists()


@pytest.mark.parametrize("way", ["hf-to-megatron", "megatron-to-hf"])
def test_two_that_write_the_same(
    source: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """The second is refused and leaves the first's files alone; once that has ended, in whatever way, it may."""
    target, given = tmp_path / "m", source if way == "hf-to-megatron" else megatron
    told, tell = os.pipe()
    first = os.fork()
    if first == 0:
        (new_directory.begin(target) / "half").write_text("x")
        os.write(tell, b"x")
        signal.pause()
    try:
        assert os.read(told, 1)
        assert f"{target}: another process is writing it" in error_of([way, str(given), str(target)], capsys)
        assert (new_directory.aside(target) / "half").read_text() == "x" and not target.exists()
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        os.close(told)
        os.close(tell)
    assert main([way, str(given), str(target)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"] and not (target / "half").exists()


def test_a_target_within_the_source(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = error_of(["hf-to-megatron", str(source), str(source / "m"), "--force"], capsys)
    assert "lies within, or holds, the source" in text and not (source / "m").exists()


def test_no_room(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_directory, "SPARE_BYTES", 1 << 60)
    assert "are needed and" in error_of(["hf-to-megatron", str(source), str(tmp_path / "m")], capsys)
    assert not list(tmp_path.iterdir())


def test_impossible_shard_sizes(megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("0", "-1", "nan", "inf"):
        text = error_of(["megatron-to-hf", str(megatron), str(tmp_path / "back"), "--shard-size", size], capsys)
        assert "must be above 0 GB, and finite" in text


def test_the_tool_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/convert_checkpoint.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "torchrun --nproc-per-node 4" in done.stdout, done.stderr


def test_damaged_sources(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"

    def error(directory: Path) -> str:
        text = error_of(["hf-to-megatron", str(directory), str(target)], capsys)
        assert not target.exists() and not new_directory.aside(target).exists()
        return text

    norm = "model.norm.weight"
    missing = changed(source, tmp_path / "missing", norm, None)
    assert f"{norm} is missing" in error(missing)
    half = changed(source, tmp_path / "half", norm, torch.ones(128, dtype=torch.float16))
    assert f"tensors of several dtypes: {norm} of F16, the others F32" in error(half)
    quantised = changed(source, tmp_path / "quantised", norm, torch.ones(128, dtype=torch.int8))
    assert f"{norm} of dtype I8" in error(quantised)
    (missing / "model.safetensors").rename(missing / "pytorch_model.bin")
    assert "pickle files (pytorch_model.bin)" in error(missing)
    config = json.loads((half / "config.json").read_text())

    def error_with(**changes: object) -> str:
        (half / "config.json").write_text(json.dumps({**config, **changes}))
        return error(half)

    assert "'llama' (LlamaForCausalLM)" in error_with(model_type="llama", architectures=["LlamaForCausalLM"])
    assert "'num_hidden_layers'" in error_with(text_config={**config["text_config"], "num_hidden_layers": "two"})
    assert "vision_config.num_heads=5: must divide" in error_with(
        vision_config={**config["vision_config"], "num_heads": 5}
    )


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/model.safetensors"])
def test_an_index_that_escapes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    directory = tmp_path / "inner"
    shutil.copytree(source, directory)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    assert "outside the checkpoint's directory" in error_of(["inspect", str(directory)], capsys)


def test_tied_weights_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tied").mkdir()
    tied = make_checkpoint(tmp_path / "tied", tied=True)
    other = changed(tied, tmp_path / "other", "lm_head.weight", torch.zeros(301, 128))
    capsys.readouterr()  # transformers' own progress
    assert "lm_head.weight differs from model.embed_tokens.weight" in error_of(["inspect", str(other)], capsys)


def test_damaged_megatron_checkpoints(megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(megatron, broken)
    path = max(broken.glob("*.distcp"), key=lambda found: found.stat().st_size)
    path.write_bytes(path.read_bytes()[:1000])
    arguments = ["megatron-to-hf", str(broken), str(tmp_path / "back")]
    assert f"{path}: 1000 bytes, expected" in error_of(arguments, capsys)
    path.unlink()
    assert "named by .metadata but missing" in error_of(arguments, capsys)
    (broken / ".metadata").unlink()
    assert "no .metadata there" in error_of(arguments, capsys)
    shutil.rmtree(broken / "huggingface")
    assert "--hf-files" in error_of(arguments, capsys)
    assert not (tmp_path / "back").exists()


def test_processes_must_fit_the_layout(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = error_of(["hf-to-megatron", str(source), str(tmp_path / "m"), "--tensor", "2"], capsys)
    assert "= 2 processes, but 1 run" in text
