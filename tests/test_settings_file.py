"""Settings from a YAML file: plain values, errors that name the place, and no code run because of a file alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tithe.errors import SettingsError
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.settings import read_experiment
from tithe.lab.judge.settings import AnswerSettings, JudgeSettings
from tithe.lab.tiers.settings import TierSettings
from tithe.settings import ScoreSettings, settings_from
from tithe.settings_file import MOST_BYTES, check_powers, read_settings_file, settings_within

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10))
LONG = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 20)}]\n"


def read(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "s.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_settings_file(path)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("2001-99-99", "2001-99-99"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("5%", "5%"),
        ("=", "="),
        ("1_000", 1000),
        ("-7", -7),
        ("1e-5", 1e-5),
        ("2.5", 2.5),
        ("-.5", -0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ('"5"', "5"),
        ("!!str 5", "5"),
        ("!!int 5", 5),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("9" * 5_000, "9" * 5_000),
    ],
)
def test_a_word_is_what_it_says(tmp_path: Path, word: str, value: Any) -> None:
    found = read(tmp_path, f"a: {word}\n")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!timestamp x", ":1:4`: the tag `!!timestamp`"),
        ("a: !!int x", ":1:4`: `x` is no `!!int`"),
        ("a: !!int ''", ":1:4`: `` is no `!!int`"),
        ("a: !!bool x", ":1:4`: `x` is no `!!bool`"),
        ("a: !!binary eA==", "the tag `!!binary`"),
        ("a: !!set {x}", "the tag `!!set`"),
        ("a: !!python/object/apply:os.system [ls]", "the tag `!!python/object/apply:os.system`"),
        ("a: !mine x", "the tag `!mine`"),
        ("a: " + "[" * 2_000, "nested too deeply"),
        ("a: " + "[" * 50 + "]" * 50, "nested too deeply"),
        ("a: &a [*a]", ":1:4`: it is nested too deeply, or in itself"),
        ("a: &a {b: *a}", "in itself"),
        (ALIASES, "its aliases expand to more"),
        (MERGES, "its aliases expand to more"),
        (LONG, "its aliases expand to more"),
        ("a: *b", "undefined alias"),
        ("a: 1\na: 1", ":2:1`: the key `a` is given twice"),
        ("a: {b: 1, b: 2}", ":1:11`: the key `b` is given twice"),
        ("max-length: 1\nmax_length: 2", "`max_length` twice"),
        ("5: a", ":1:1`: a key is no text"),
        ("null: a", "a key is no text"),
        ("? [a]\n: b", "a key is no text"),
        ("<<: 3", "`<<` takes"),
        ("\ta: 3", ":1:1` is not YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: [1", "is not YAML"),
        ("- a", "`key: value`"),
        ("", "`key: value`"),
        (b"a: \xff", "not UTF-8"),
        (b"\xff\xfea\0", "not UTF-8"),
        (b"a: \0", "is not YAML"),
        ("a: " + "x" * MOST_BYTES, "more than 262,144 bytes"),
    ],
)
def test_a_file_that_is_none_of_settings(tmp_path: Path, text: str | bytes, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value) and "s.yaml" in str(caught.value)
    assert len(str(caught.value)) < 500 and time.monotonic() - began < 30


def test_merged_lines_give_way(tmp_path: Path) -> None:
    text = "base: &b {x: 1, y: 1}\nmore: &m {y: 2, z: 2}\nown: {<<: [*b, *m], x: 3}\n"
    assert read(tmp_path, text)["own"] == {"x": 3, "y": 1, "z": 2}


def test_keys_with_dashes_and_a_byte_order_mark(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffmax-length: 3\narms: {a-b: 1, a_b: 2}\n") == {
        "max_length": 3,
        "arms": {"a-b": 1, "a_b": 2},
    }


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
    with pytest.raises(SettingsError, match="which a file cannot switch on alone") as caught:
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
