"""The command line on one process: both families agree, a tampered weight is found, what cannot be is refused."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.digits.make_policy import PolicySize, make_policy
from megatron_apo.comparison import command
from megatron_apo.comparison.command import main
from megatron_apo.conversion.command import main as convert
from tests.distributed.layouts import randomised_checkpoint
from tests.unit.conversion.changed_metadata import add_tensor, remove_tensor


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def policy(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(family)
    return randomised_checkpoint(make_policy(root / "untrained", seed=0, family=family), root / "policy", seed=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of one and two images of different sizes, ragged windows among them, with responses of any characters."""
    folder, dice, pixels = tmp_path_factory.mktemp("data"), random.Random(5), np.random.default_rng(5)
    rows = []
    for number in range(8):
        names = [f"{number}-{part}.png" for part in range(1 + number % 2)]
        for name in names:
            size = (28 * dice.randint(1, 4), 28 * dice.randint(1, 6), 3)
            Image.fromarray(pixels.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
        text = "".join(chr(dice.randint(33, 126)) for _ in range(dice.randint(1, 25)))
        rows.append({"id": f"r{number}", "images": names, "question": "What?", "answer": "1", "demonstration": text})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


BOTH = ["--backends", "transformers,megatron", "--limit", "1e-4"]


def values(output: Path) -> list[dict[str, str]]:
    with (output / "tokens.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_megatron_is_transformers(policy: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(policy), str(data), *BOTH, "--output", str(tmp_path), "--tokens-per-microbatch", "100"]) == 0
    (pair,) = json.loads((tmp_path / "summary.json").read_text())["pairs"]
    print(f"\n{policy.parent.name}: largest difference {pair['maximum']:.1e} of {pair['tokens']} tokens")
    assert 0 < pair["maximum"] <= 1e-4 and pair["tokens"] == len(values(tmp_path)) > 60
    assert "transformers - megatron" in capsys.readouterr().out
    assert (tmp_path / "differences.png").is_file()


def test_a_tampered_weight_is_found(
    policy: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row of the output table is 0 on one side, that of a token which occurs once: that token is named."""
    assert main([str(policy), str(data), *BOTH, "--no-plot", "--output", str(tmp_path / "before")]) == 0
    before = values(tmp_path / "before")
    times = Counter(row["token_id"] for row in before)
    # The last before the end, because the table is the embedding too: only the end sees the change from below.
    ends = [place for place, row in enumerate(before) if times[row["token_id"]] == len({r["sample"] for r in before})]
    victim = next(before[end - 1] for end in ends if times[before[end - 1]["token_id"]] == 1)
    tampered = tmp_path / "tampered"
    shutil.copytree(policy, tampered)
    weights = load_file(tampered / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("embed_tokens.weight")]
    weights[name][int(victim["token_id"])] = 0
    save_file(weights, tampered / "model.safetensors", metadata={"format": "pt"})
    torch_dist = tmp_path / "torch_dist"
    assert convert(["hf-to-megatron", str(tampered), str(torch_dist)]) == 0
    capsys.readouterr()
    for wrong in (tampered, torch_dist):
        arguments = [str(policy), str(data), *BOTH, "--no-plot", "--megatron-weights", str(wrong)]
        assert main([*arguments, "--output", str(tmp_path / "after")]) == 1
        found = f"sample '{victim['sample']}', response token {victim['position']} (id {victim['token_id']}, "
        printed = capsys.readouterr().out
        assert found in printed and "exceeds the limit of 0.0001" in printed
        after = values(tmp_path / "after")
        assert [row["transformers"] for row in after] == [row["transformers"] for row in before]


def test_bfloat16_is_further_apart(policy: Path, data: Path, tmp_path: Path) -> None:
    assert main([str(policy), str(data), *BOTH, "--dtype", "bfloat16", "--no-plot", "--output", str(tmp_path)]) == 1
    (pair,) = json.loads((tmp_path / "summary.json").read_text())["pairs"]
    assert 1e-3 < pair["mean"] < 0.1


def test_refused_megatron_weights(
    tiny_policy: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of torch_dist what conversion refuses, which Megatron's own loader would skip: more, less, another model."""
    whole = tmp_path / "whole"
    assert convert(["hf-to-megatron", str(tiny_policy), str(whole)]) == 0

    def error(weights: Path, model: Path = tiny_policy) -> str:
        arguments = [str(model), str(data), *BOTH, "--no-plot", "--megatron-weights", str(weights)]
        capsys.readouterr()
        assert main([*arguments, "--output", str(tmp_path / "output")]) == 2
        text = capsys.readouterr().err
        assert text.count("error: ") == 1 and str(weights) in text and not (tmp_path / "output").exists()
        return text

    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    add_tensor(broken)
    assert "it has no score.weight" in error(broken)
    remove_tensor(whole, "final_layernorm.weight")
    assert "model.norm.weight (language_model.decoder.final_layernorm.weight) is missing" in error(whole)
    deeper = make_policy(tmp_path / "deeper", seed=0, size=PolicySize(layers=3))
    assert f"{deeper / 'config.json'} describes: " in error(whole, deeper)
    shutil.rmtree(broken)
    assert "no such directory" in error(broken)


def test_refusals(
    tiny_policy: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def error(*more: str, model: Path = tiny_policy, source: Path = data) -> str:
        output = tmp_path / "output"
        assert main([str(model), str(source), "--output", str(output), *more]) == 2
        text = capsys.readouterr().err
        assert "error: " in text and not output.exists()
        return text

    assert "'jax' is none of transformers, megatron, vllm" in error("--backends", "jax,vllm")
    assert "name at least two of" in error("--backends", "megatron")
    assert "--limit nan: must be 0 or more" in error("--limit", "nan")
    assert "config.json" in error(*BOTH, model=tmp_path / "nowhere")
    assert "no recorded responses there" in error(*BOTH, source=tmp_path)
    assert "Megatron is not among" in error("--backends", "transformers,vllm", "--megatron-weights", "x")
    assert "tensor 2 × pipeline 1 × context 1" in error(*BOTH, "--tensor", "2")
    assert f"{tmp_path}" in error(*BOTH, "--megatron-weights", str(tmp_path))
    assert "--output: " in error(*BOTH, "--output", str(data))
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert "vLLM is not installed; install vllm" in error()
    assert "needs matplotlib" in error(*BOTH)
