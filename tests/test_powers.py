"""What a file of settings cannot do alone."""

from pathlib import Path

import pytest

from tithe.errors import SettingsError
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.settings import read_experiment
from tithe.lab.judge.settings import AnswerSettings, JudgeSettings
from tithe.lab.tiers.settings import TierSettings
from tithe.settings import ScoreSettings, settings_from
from tithe.settings_file import check_powers, settings_within

TIERS = "dataset: d.jsonl\nweak-model: m\nendpoint: http://localhost:1/v1\n"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TITHE_API_KEY", raising=False)


def write(folder: Path, text: str) -> Path:
    (folder / "s.yaml").write_text(text)
    return folder / "s.yaml"


@pytest.mark.parametrize("value", ["true", "yes", '"on"', "1", '"True"', "2"])
def test_code_needs_the_command_line(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"dataset: d.jsonl\ntrust-remote-code: {value}\n")
    with pytest.raises(SettingsError, match="cannot switch that on alone") as caught:
        settings_from(ScoreSettings, {}, path)
    assert caught.value.hint is not None and "`--trust-remote-code`" in caught.value.hint
    made = settings_from(ScoreSettings, {"trust_remote_code": True}, path)
    assert made.trust_remote_code


@pytest.mark.parametrize("value", [False, None, "false", "No", "0", 0])
def test_code_that_stays_off_needs_nothing(tmp_path: Path, value: object) -> None:
    check_powers({"trust_remote_code": value}, {}, tmp_path)


def test_generated_code_needs_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\ntasks: humaneval\nallow_code_execution: true\n")
    with pytest.raises(SettingsError, match="`allow_code_execution`"):
        settings_from(EvaluateSettings, {}, path)
    assert settings_from(EvaluateSettings, {"allow_code_execution": True}, path).allow_code_execution


def test_which_key_is_sent_needs_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_SECRET", "hush-hush-hush")
    path = write(tmp_path, TIERS + "api_key_env: OTHER_SECRET\n")
    for flags in ({}, {"endpoint": "http://localhost:2/v1"}):
        with pytest.raises(SettingsError, match="which key is sent") as caught:
            settings_from(TierSettings, flags, path)
        assert caught.value.hint is not None and "`--api-key-env OTHER_SECRET`" in caught.value.hint
        assert "hush" not in f"{caught.value} {caught.value.hint}"
    assert settings_from(TierSettings, {"api_key_env": "OTHER_SECRET"}, path).api_key_env == "OTHER_SECRET"
    assert settings_from(TierSettings, {"api_key_env": "MINE"}, path).api_key_env == "MINE"


@pytest.mark.parametrize(
    ("kind", "text", "flag"),
    [
        (TierSettings, TIERS, "endpoint"),
        (AnswerSettings, "prompts: p.jsonl\nmodel: m\nendpoint: http://localhost:1/v1\n", "endpoint"),
        (JudgeSettings, "judge: http://localhost:1/v1\njudge_model: m\n", "judge"),
    ],
)
def test_where_a_key_is_sent_needs_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, text: str, flag: str
) -> None:
    path = write(tmp_path, text)
    assert settings_from(kind, {}, path).endpoint == "http://localhost:1/v1"  # there is no key to be sent
    monkeypatch.setenv("TITHE_API_KEY", "hush-hush-hush")
    with pytest.raises(SettingsError, match="would send the key in `TITHE_API_KEY` to `http://localhost:1/v1`"):
        settings_from(kind, {}, path)
    assert settings_from(kind, {"api_key_env": "TITHE_API_KEY"}, path).endpoint == "http://localhost:1/v1"
    assert settings_from(kind, {flag: "http://localhost:2/v1"}, path).endpoint == "http://localhost:2/v1"


EXPERIMENT = "dataset: d.jsonl\nmodel: m\narms: {ifd: {}, random: {}}\n"


@pytest.mark.parametrize(
    "more",
    [
        "trust_remote_code: true",
        "training: {trust-remote-code: true}",
        "evaluation: {trust_remote_code: 1}",
        "allow-code-execution: true",
        "judge: {prompts: p.jsonl, judge: big, answers: {trust_remote_code: true}}",
        "judge: {prompts: p.jsonl, judge: 'http://h/v1', judge_model: m, api_key_env: OTHER_SECRET}",
        "judge: {prompts: p.jsonl, judge: 'http://h/v1', answers: {api-key-env: OTHER_SECRET}}",
    ],
)
def test_an_experiment_is_a_file_as_well(tmp_path: Path, more: str) -> None:
    path = write(tmp_path, EXPERIMENT + more + "\n")
    with pytest.raises(SettingsError, match="alone"):
        read_experiment(path, {})
    asked = {"trust_remote_code": True, "allow_code_execution": True, "api_key_env": "OTHER_SECRET"}
    read_experiment(path, asked)


def test_an_experiments_judge_takes_the_key_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITHE_API_KEY", "hush-hush-hush")
    path = write(tmp_path, EXPERIMENT + "judge: {prompts: p.jsonl, judge: 'http://h/v1', judge_model: m}\n")
    with pytest.raises(SettingsError, match="would send the key"):
        read_experiment(path, {})
    settings = read_experiment(path, {"api_key_env": "MINE"})
    assert settings.judge is not None and settings.judge["api_key_env"] == "MINE"


def test_a_file_that_holds_itself_is_looked_through_once() -> None:
    inner: list[object] = [{"b": 1}]
    inner.append(inner)
    assert list(settings_within({"a": inner, "c": 2})) == [("c", "c", 2), ("a.b", "b", 1)]
