"""Rewards of the user's own: called with what they ask for, killed when they hang, never paid when they fail."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from megatron_apo.config import RewardConfig
from megatron_apo.records import RolloutGroup
from megatron_apo.rewards.pool import RewardError, Scorer, check_user_rewards
from megatron_apo.rewards.user_rewards import find_user_rewards, load_user_reward, record_user_rewards
from tests.unit.rewards.test_pool import group, response

FUNCTIONS = """
import math, time
print("loading")

def brevity(response, tokens):
    print("a line among the replies?")
    return 1.0 / len(response)

def everything(**given):
    return len(given)

def fails(response):
    if "hang" in response:
        while True:
            pass
    if "memory" in response:
        return len("x" * (64 << 30))
    if "raise" in response:
        1 / 0
    answers = {"nan": math.nan, "inf": math.inf, "text": "1", "none": None}
    return next((value for name, value in answers.items() if name in response), True)

def wants_more(response, colour):
    return 0

def trusting(outcome, gold, question, answer, row_id):
    return 2.0 if (outcome, gold, question, answer, row_id) == ("correct", "13", "sum?", "13", "row-13") else -1.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return path


def score(file: Path, weights: dict[str, float], *answers: str, **settings: float) -> RolloutGroup:
    user = {f"{file}:{name}": weight for name, weight in weights.items()}
    config = RewardConfig(user=user, **{"timeout_seconds": 10.0, "max_error_rate": 1.0, **settings})  # type: ignore[arg-type]
    with Scorer(config) as scorer:
        return scorer.score([group("13", *(response(answer) for answer in answers))])[0]


def test_they_get_what_they_name_and_add_to_the_total(file: Path) -> None:
    scored = score(file, {"brevity": 0.5, "trusting": 0.25, "everything": -1.0}, "13", "12")
    right, wrong = scored.scores
    length = len(response("13"))
    assert right.parts == {"accuracy": 1.0, "format": 1.0, "brevity": 1 / length, "trusting": 2.0, "everything": 9.0}
    assert right.total == pytest.approx(1.0 + 0.5 + 0.5 / length + 0.25 * 2.0 - 9.0)
    assert (wrong.outcome, wrong.parts["trusting"]) == ("wrong", -1.0)


def test_what_fails_is_an_error_never_paid_and_never_nothing(file: Path) -> None:
    answers = ["13", "raise", "nan", "inf", "text", "none", "hang", "memory", "13.0"]
    scores = score(file, {"fails": 5.0}, *answers, timeout_seconds=2.0).scores
    assert [score.outcome for score in scores] == ["correct", *["grader_error"] * 7, "correct"]
    assert [score.valid for score in scores] == [True, *[False] * 7, True]
    assert all("fails" not in score.parts and score.parts["accuracy"] == 0.0 for score in scores[1:8])
    assert scores[0].parts["fails"] == 1.0


LOUD = """
import os, subprocess
os.write(1, b"loading\\n")
subprocess.run(["echo", "loading"])

def echoes(response):
    subprocess.run(["echo", "a line among the replies?"])
    subprocess.run(["cat"], check=True)  # takes no requests: its input is empty
    return 0.5

def garbles(response):
    for descriptor in range(3, 16):
        try:
            os.write(descriptor, b"no reply\\n")
        except OSError:
            pass  # closed, or the end that is read
    return 0.25
"""


def test_what_is_printed_past_python_gets_not_among_the_replies(tmp_path: Path) -> None:
    path = tmp_path / "loud.py"
    path.write_text(LOUD)
    check_user_rewards(RewardConfig(user={f"{path}:echoes": 1.0}))
    scores = score(path, {"echoes": 1.0}, *["13"] * 3).scores
    assert [(one.outcome, one.parts["echoes"]) for one in scores] == [("correct", 0.5)] * 3


def test_a_reply_that_cannot_be_read_is_an_error_of_its_reward(tmp_path: Path) -> None:
    path = tmp_path / "loud.py"
    path.write_text(LOUD)
    assert [one.outcome for one in score(path, {"garbles": 1.0}, "13", "12").scores] == ["grader_error"] * 2
    with pytest.raises(RewardError, match=r"loud\.py:garbles: the process wrote 'no reply', which is no reply"):
        score(path, {"garbles": 1.0}, "13", max_error_rate=0.0)
    path.write_text(LOUD + "\ngarbles('')\n")
    with pytest.raises(ValueError, match=r"loud\.py:garbles: cannot be loaded; the process wrote 'no reply'"):
        check_user_rewards(RewardConfig(user={f"{path}:garbles": 1.0}))


HUGE = """
def huge(response):
    return 1.7e308 if "13" in response else -1.7e308

def small(response):
    return -1.7e308
"""


def test_a_total_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "huge.py"
    path.write_text(HUGE)
    for weights in ({"huge": 10.0}, {"huge": 10.0, "small": 10.0}, {"huge": 1.0, "small": -1.0}):
        (one,) = score(path, weights, "13").scores
        assert (one.outcome, one.valid, one.total) == ("grader_error", False, 0.5)
    with pytest.raises(RewardError, match=r"'huge': 1\.7e\+308.* total inf.*rewards\.user"):
        score(path, {"huge": 10.0}, "13", max_error_rate=0.0)
    assert score(path, {"huge": 1e-308}, "13").scores[0].outcome == "correct"


def test_too_many_failures_stop_the_run_and_say_why(file: Path) -> None:
    with pytest.raises(RewardError, match=r"1 of 2 responses .*my_rewards.py:fails: .*ZeroDivisionError"):
        score(file, {"fails": 1.0}, "13", "raise", max_error_rate=0.4)


def test_the_file_is_named_by_its_sha256_and_must_not_change(file: Path) -> None:
    source = f"{file}:brevity"
    (reward,) = find_user_rewards({source: 0.5}, taken=())
    assert (reward.name, reward.sha256) == ("brevity", hashlib.sha256(file.read_bytes()).hexdigest())
    assert load_user_reward(source, reward.sha256)(response="abcd", tokens=3) == 0.25
    file.write_text(FUNCTIONS + "\n")
    with pytest.raises(ValueError, match="has changed since the run began"):
        load_user_reward(source, reward.sha256)


def test_a_run_writes_them_down_and_continues_with_no_others(file: Path, tmp_path: Path) -> None:
    source, record = f"{file}:brevity", tmp_path / "user_rewards.json"
    record_user_rewards(find_user_rewards({source: 0.5}, taken=()), record)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(record.read_text())[source]["sha256"] == digest
    record_user_rewards(find_user_rewards({source: 0.7}, taken=()), record)
    file.write_text(FUNCTIONS + "\n")
    with pytest.raises(ValueError, match=f"brevity: .* has changed since the run began .* was {digest}"):
        record_user_rewards(find_user_rewards({source: 0.5}, taken=()), record)


def test_a_module_on_the_path_is_found_without_being_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    (file.parent / "broken_rewards.py").write_text("raise SystemExit('loaded')\n")
    rewards = find_user_rewards({"my_rewards:brevity": 1.0, "broken_rewards:other": 1.0}, taken=())
    assert [Path(reward.file).name for reward in rewards] == ["my_rewards.py", "broken_rewards.py"]


def test_a_module_in_packages_is_found_and_they_are_not_loaded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "own_package" / "inner"
    inner.mkdir(parents=True)
    loaded = tmp_path / "loaded"
    note = f"import os\nopen({str(loaded)!r}, 'a').write(f'{{os.getpid()}} ')\nBONUS = 0.5\n"
    (tmp_path / "own_package" / "__init__.py").write_text(note)
    (inner / "own.py").write_text("from own_package import BONUS\ndef f(response):\n    return BONUS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (reward,) = find_user_rewards({"own_package.inner.own:f": 1.0}, taken=())  # inner: a directory alone
    assert Path(reward.file) == inner / "own.py" and not loaded.exists()
    config = RewardConfig(user={"own_package.inner.own:f": 1.0})
    check_user_rewards(config)
    with Scorer(config) as scorer:
        assert scorer.score([group("13", response("13"))])[0].scores[0].parts["f"] == 0.5
    assert loaded.exists() and str(os.getpid()) not in loaded.read_text().split()
    assert not any(name.startswith("own_package") for name in sys.modules)
    for place in ("own_package.gone", "own_package.inner.own.f", "own_package.inner", "own_package..own"):
        with pytest.raises(ValueError, match=rf"no module {place} on the path"):
            find_user_rewards({f"{place}:f": 1.0}, taken=())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("brevity", "must be module:function"),
        ("nowhere/to/be.py:found", "no file nowhere/to/be.py"),
        ("no_such_module_at_all:f", "no module no_such_module_at_all"),
        ("{file}:accuracy", "the part accuracy exists already"),
        ("{file}:not a name", "must be module:function"),
    ],
)
def test_settings_that_name_nothing(file: Path, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_user_rewards({setting.format(file=file): 1.0}, taken=("accuracy",))


def test_an_unknown_argument_or_function_is_refused_when_the_process_starts(file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="no such argument: colour; known are response, answer"):
        load_user_reward(f"{file}:wants_more", digest)
    with pytest.raises(ValueError, match="has no function absent"):
        load_user_reward(f"{file}:absent", digest)
    with pytest.raises(RewardError, match=r"not ready: .*:wants_more: no such argument: colour"):
        score(file, {"wants_more": 1.0}, "13")
    with pytest.raises(RewardError, match=r"not ready: .* has no function absent"):
        score(file, {"absent": 1.0}, "13")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "f",
            "import no_such_module_at_all",
            r"cannot be loaded \(ModuleNotFoundError: No module named 'no_such.*line 1",
        ),
        ("f", "def f(response:\n", r"cannot be loaded \(SyntaxError"),
        ("f", "int('x')", r"cannot be loaded \(ValueError: invalid literal"),
        ("f", "raise SystemExit(3)", r"cannot be loaded \(SystemExit: 3"),
        ("f", "import os; os._exit(7)", r"cannot be loaded; the process ended \(exit code 7\)"),
        ("absent", "", "has no function absent"),
        ("f", "f = 4", "has no function f"),
        ("f", "from math import hypot as f", "does not tell its arguments"),
        ("f", "def f(response, colour): ...", "no such argument: colour; known are response"),
        ("f", "def f(response, gold, /): ...", "response, gold must be given by name"),
    ],
)
def test_what_cannot_be_loaded_is_told_at_the_start(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^rewards\.user={path}:{name}: .*{message}.*; correct it, or leave it out"):
        check_user_rewards(RewardConfig(user={f"{path}:{name}": 1.0}))


def test_what_can_be_loaded_passes_and_is_not_loaded_here(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "user_reward_my_rewards", raising=False)
    check_user_rewards(RewardConfig())
    check_user_rewards(RewardConfig(user={f"{file}:brevity": 1.0, f"{file}:everything": 0.0}))
    assert "user_reward_my_rewards" not in sys.modules
    with pytest.raises(ValueError, match=r"rewards\.user=gone\.py:f: no file gone\.py; give its path"):
        check_user_rewards(RewardConfig(user={"gone.py:f": 1.0}))
