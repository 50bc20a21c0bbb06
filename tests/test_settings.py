"""Settings come from preset, YAML and flags, in this order; unknown ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tithe.errors import SettingsError
from tithe.lab.tune.settings import TuneSettings
from tithe.settings import PRESETS, ScoreSettings, SelectSettings, read_yaml, settings_from, with_preset


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_yaml_over_preset(tmp_path: Path) -> None:
    config = yaml(tmp_path, "preset: cherry\nmax-length: 300\ndtype: bf16\ndataset: a.jsonl\n")
    settings = settings_from(SelectSettings, {"dtype": "fp16", "keep": "7%", "limit": None}, config)
    assert (settings.dtype, settings.max_length, settings.keep) == ("fp16", 300, "7%")
    assert settings.template == "alpaca" and settings.keep_of == "kept" and settings.drop == ("ifd > 1",)
    assert settings.limit is None and settings.dataset == "a.jsonl"


def test_a_flag_chooses_the_preset_and_yaml_fills_in(tmp_path: Path) -> None:
    config = yaml(tmp_path, "dataset: a.jsonl\nscorer: [ifd, length]\n")
    assert settings_from(SelectSettings, {"preset": "cherry"}, config).scorer == ("ifd(same_tokens=false)", "length")
    assert settings_from(ScoreSettings, {}, config).scorer == ("ifd", "length")


def test_scorers_may_stand_in_one_text() -> None:
    settings = ScoreSettings.of({"dataset": "a", "scorer": "ifd(same_tokens=false),length"})
    assert settings.scorer == ("ifd(same_tokens=false)", "length")
    assert ScoreSettings.of({"dataset": "a", "scorer": ["ifd,length", "random"]}).scorer == ("ifd", "length", "random")
    with pytest.raises(SettingsError, match="scorer"):
        ScoreSettings.of({"dataset": "a", "scorer": 5})


def test_a_preset_takes_more_scorers_beside_its_own() -> None:
    def scorers(given: str) -> tuple[str, ...]:
        return with_preset(ScoreSettings, {"dataset": "a", "preset": "cherry", "scorer": given}).scorer

    assert scorers("ifd(same_tokens=false),length") == ("ifd(same_tokens=false)", "length")
    assert scorers("ifd") == ("ifd(same_tokens=false)",)  # named alone, it is the preset's
    assert scorers("length,ifd") == ("length", "ifd(same_tokens=false)")
    assert scorers("ifd(same_tokens=true)") == ("ifd(same_tokens=true)",)  # what is given wins
    with pytest.raises(SettingsError, match="preset `cherry` scores with `ifd") as caught:
        scorers("length,random")
    assert caught.value.hint == '`--scorer "ifd(same_tokens=false),length,random"`, or leave one of the two out'


@pytest.mark.parametrize(("long", "short"), [("bfloat16", "bf16"), ("float32", "fp32"), ("float16", "fp16")])
def test_a_dtype_has_two_names_and_one_record(long: str, short: str) -> None:
    assert ScoreSettings.of({"dataset": "a", "dtype": long}) == ScoreSettings.of({"dataset": "a", "dtype": short})
    assert TuneSettings.of({"dataset": "a", "dtype": long}).dtype == short
    with pytest.raises(SettingsError) as caught:
        ScoreSettings.of({"dataset": "a", "dtype": "bfloat"})
    assert "bf16" in str(caught.value.hint)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str) -> None:
    assert set(PRESETS[name]) <= set(SelectSettings.model_fields)
    length = None if name == "cpqs-paper" else 512  # its authors name none for scoring
    assert with_preset(ScoreSettings, {"dataset": "a", "preset": name}).max_length == length


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("dataset: a\nscorrer: ifd\n", "`scorrer`", "`scorer`"),
        ("dataset: a\noutput: k.jsonl\n", "`output`", "works only on the command line"),
        ("dataset: a\nrun-dir: k\n", "`run_dir`", "`--run-dir`"),
        ("dataset: a\ndtype: pf16\n", "`pf16`", "`fp16`"),
        ("dataset: a\nmax_length: long\n", "`max_length` cannot be `long`", None),
        ("dataset: a\nmax_length: 0\n", "at least 1", None),
        ("limit: 3\n", "`dataset`", None),
        ("- a\n- b\n", "`key: value`", None),
        ("a: [b\n", "is not YAML", None),
        ("", "`key: value`", None),
    ],
)
def test_a_yaml_file_with_a_mistake(tmp_path: Path, text: str, words: str, hint: str | None) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from(ScoreSettings, {}, yaml(tmp_path, text))
    assert words in str(caught.value)
    assert hint is None or hint in str(caught.value.hint)


def test_a_yaml_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*no\.yaml"):
        read_yaml(tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"dataset: \xff\xfe\n")
    with pytest.raises(SettingsError, match="not YAML"):
        read_yaml(tmp_path / "latin.yaml")


def test_settings_are_frozen_and_repeatable() -> None:
    settings = SelectSettings.of({"dataset": "a", "drop": "ifd > 1", "keep": 5})
    assert SelectSettings.of(settings.model_dump(mode="json")) == settings
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3  # type: ignore[misc]


def test_the_paper_of_miwv_as_a_preset() -> None:
    chosen = with_preset(SelectSettings, {"dataset": "x", "preset": "miwv-paper", "model": "m"})
    assert (chosen.scorer, chosen.template, chosen.max_length) == (("miwv",), "alpaca", 512)
    assert chosen.encoder == "BAAI/bge-large-en(pooling=mean)"
    assert (chosen.selector, chosen.keep_of, chosen.drop, chosen.shots) == ("top", "input", None, None)
    other = with_preset(ScoreSettings, {"dataset": "x", "preset": "miwv-paper", "encoder": "tfidf"})
    assert other.encoder == "tfidf"
    with pytest.raises(SettingsError, match="preset `miwv-paper` scores with `miwv`"):
        with_preset(ScoreSettings, {"dataset": "x", "preset": "miwv-paper", "scorer": "ifd"})


@pytest.mark.parametrize("shots", [0, -1])
def test_no_shots_is_no_setting(shots: int) -> None:
    with pytest.raises(SettingsError, match=f"`shots` cannot be `{shots}`: it must be at least 1"):
        ScoreSettings.of({"dataset": "x", "shots": shots})
