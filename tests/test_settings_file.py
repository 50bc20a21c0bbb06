"""A YAML file of settings: values mean what they say, and what is none is one sentence with its place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tithe.errors import SettingsError
from tithe.settings_file import MOST_BYTES, read_settings_file

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
        (ALIASES, "its aliases stand for more"),
        (MERGES, "its aliases stand for more"),
        (LONG, "its aliases stand for more"),
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
