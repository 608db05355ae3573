"""What a command asks of the settings before it starts: paths that exist, lengths that fit, something to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apo.cli import main
from megatron_apo.config_checks import (
    check_evaluation,
    check_files,
    check_formats,
    check_length,
    check_purpose,
    notices,
    require,
)
from megatron_apo.config_loading import load_config


def test_require_names_the_empty_setting() -> None:
    config = load_config(None, ["--model.path=here"])
    require(config, "model.path")
    with pytest.raises(ValueError, match=r"data\.train: is required"):
        require(config, "model.path", "data.train")


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text("")
    good = [f"--model.path={tmp_path}", f"--data.train={tmp_path}/train.jsonl", f"--rollout.replay={tmp_path}"]
    check_files(load_config(None, good))
    check_files(load_config(None))  # empty settings lead nowhere on purpose
    for key in ("model.path", "data.train", "data.validation", "data.test", "data.image_root", "rollout.replay"):
        with pytest.raises(ValueError, match=f"{key}={tmp_path}/absent: no"):
            check_files(load_config(None, [*good, f"--{key}={tmp_path}/absent"]))


@pytest.mark.parametrize(
    "text", ['{"text_config": {"max_position_embeddings": 100}}', '{"max_position_embeddings": 100}']
)
def test_prompt_and_response_must_fit_the_model(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    base = [f"--model.path={tmp_path}", "--data.max_prompt_tokens=60"]
    check_length(load_config(None, [*base, "--sampling.max_tokens=40"]))
    with pytest.raises(ValueError, match=r"max_prompt_tokens=60 \+ sampling.max_tokens=41: must not exceed the 100"):
        check_length(load_config(None, [*base, "--sampling.max_tokens=41"]))
    for content, message in (
        (b"{", "cannot be read"),
        (b"\xff{}", "cannot be read"),
        (b"[]", "holds a list, expected"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json:? {message}"):
            check_length(load_config(None, base))


def test_a_format_of_no_file_is_refused() -> None:
    files = ["--data.train=[a/one.jsonl, a/two.jsonl]", "--data.test=a/held_out.jsonl"]
    config = load_config(None, [*files, "--data.formats={a/two.jsonl: mmk12, a/held_out.jsonl: ''}"])
    check_formats(config)
    config = load_config(None, [*files, "--data.formats={a/two.jsonl: mmk12, held_out.jsonl: mmk12}"])
    message = (
        r"^data\.formats\.held_out\.jsonl: names none of the data files, which are a/one\.jsonl, a/two\.jsonl, "
        r"a/held_out\.jsonl; .*did you mean a/held_out\.jsonl\?$"
    )
    with pytest.raises(ValueError, match=message):
        check_formats(config)
    check_formats(config, ["held_out.jsonl"])


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "FILE", "--data.train=FILE"],
        ["sft", "--config", "FILE", "--data.train=FILE"],
        ["evaluate", "--data", "FILE"],
        ["doctor", "FILE"],
    ],
)
def test_every_command_that_reads_data_refuses_a_format_of_no_file(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("")
    (tmp_path / "config.json").write_text("{}")
    words = [word.replace("FILE", str(file)) for word in words]
    assert main([*words, f"--model.path={tmp_path}", "--data.formats={rows: mmk12}"]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: data.formats.rows: names none of the data files, which are {file}"
    )


def test_rewards_that_never_differ_are_refused_in_training_with_rewards() -> None:
    nothing = ["--rewards.accuracy=0", "--rewards.format=0"]
    with pytest.raises(ValueError, match=r"rewards\.accuracy=0: must be above 0 with rewards\.format=0"):
        check_purpose(load_config(None, nothing), supervised=False)
    for works in (nothing[:1], nothing[1:], [*nothing, "--objective.overlong.policy=punish"]):
        check_purpose(load_config(None, works), supervised=False)
    check_purpose(load_config(None, nothing), supervised=True)  # demonstrations earn nothing


def test_a_kl_that_holds_nothing_is_told() -> None:
    k1 = ["--objective.name=grpo", "--objective.kl.estimator=k1"]
    (notice,) = notices(load_config(None, k1))
    assert notice.startswith("objective.kl.estimator=k1: its gradient in the loss is 0 in the mean")
    for works in (["--objective.name=grpo"], ["--objective.name=rloo"], [*k1, "--objective.kl.coefficient=0"]):
        assert not notices(load_config(None, works))


def test_an_evaluation_that_would_not_take_place_is_refused() -> None:
    asked = ["--run.evaluate_every=25"]
    with pytest.raises(ValueError, match=r"run\.evaluate_every=25: needs data\.validation"):
        check_evaluation(load_config(None, asked))
    for possible in ([], [*asked, "--data.validation=rows.jsonl"], [*asked, "--rollout.replay=rollouts"]):
        check_evaluation(load_config(None, possible))
