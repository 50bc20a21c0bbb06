import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.errors import SettingsError
from tithe.records import Scores
from tithe.selectors.budget import Budget
from tithe.selectors.filters import OPERATORS, Filter, apply_filters, drop_duplicates, without
from tithe.selectors.rank import Top

IDS = ["a", "b", "c", "d"]
COLUMNS = {
    "ifd": np.array([0.5, 1.0, 1.5, np.nan]),
    "response_tokens": np.array([3, 8, 200, 0]),
    "source": np.array(["web", "book", None, "web"], dtype=object),
    "my rating": np.array(["4", " 2.5 ", "-1e1", None], dtype=object),
    "checked": np.array([True, False, True, False]),
    "tags": np.array([["x"], 1, {"y": 2}, None], dtype=object),
}


def hits(*texts):
    return apply_filters([Filter.parse(text) for text in texts], COLUMNS, IDS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ifd > 1", [2]),
        ("ifd>1", [2]),
        ("ifd >= 1", [1, 2]),
        ("ifd < 1", [0]),
        ("ifd <= 1.0", [0, 1]),
        ("ifd == 1", [1]),
        ("ifd != 1", [0, 2, 3]),
        ("ifd > -.5e0", [0, 1, 2]),
        ("response_tokens < 8", [0, 3]),
        ("response_tokens >= 8", [1, 2]),
        ('source == "web"', [0, 3]),
        ("source == 'web'", [0, 3]),
        ('source != "web"', [1, 2]),
        ('source == ""', []),
        ("my rating < 3", [1, 2]),
        ("my rating == '4'", [0]),
        ("checked == 0", [1, 3]),
    ],
)
def test_comparisons(text, expected):
    assert hits(text) == dict.fromkeys(expected, text)


def test_the_first_filter_that_hits_gives_the_reason_in_input_order():
    got = hits("response_tokens > 100", "ifd >= 1", 'source == "web"')
    assert list(got.items()) == [
        (0, 'source == "web"'),
        (1, "ifd >= 1"),
        (2, "response_tokens > 100"),
        (3, 'source == "web"'),
    ]


def test_an_unknown_column_is_suggested():
    with pytest.raises(SettingsError, match="no column `idf`") as caught:
        hits("idf > 1")
    assert caught.value.hint == "did you mean `ifd`?"
    with pytest.raises(SettingsError):
        Filter.parse("idf > 1").check(["ifd", "length"])


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "is not `<column> <comparison> <value>`", "ifd > 1"),
        ("ifd", "is not `<column> <comparison> <value>`", "ifd > 1"),
        ("> 1", "is not `<column> <comparison> <value>`", "ifd > 1"),
        ("ifd = 1", "has `=`", "ifd == 1"),
        ("source == web", "`web` is not a number", '`"web"`'),
        ("ifd > nan", "`nan` is not a number", '`"nan"`'),
        ("ifd > 1 and ifd < 2", "is not a number", "quoted"),
        ("ifd > __import__('os')", "is not a number", "quoted"),
        ("0 < ifd < 1", "is not a number", "quoted"),
        ('source == "a" "', "is not a number", "quoted"),
        ("ifd > ", "is not a number", None),
        ("ifd >> 1", "is not a number", "quoted"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message, hint):
    with pytest.raises(SettingsError, match=message) as caught:
        Filter.parse(text)
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source > 1", "`source` with a number, but in example `a` `web` is str"),
        ('ifd == "x"', "`ifd` with text, but in example `a` `0.5` is float"),
        ("tags > 1", "in example `a` `\\['x'\\]` is list"),
        ("tags == 1", "in example `a` `\\['x'\\]` is list"),
    ],
)
def test_kinds_that_do_not_compare_are_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        hits(text)


@given(st.sampled_from(sorted(OPERATORS)), st.integers(-5, 5), st.lists(st.integers(-5, 5) | st.floats(), max_size=8))
def test_numbers_equal_python(op, bound, values):
    column = np.array(values, dtype=float)
    got = apply_filters([Filter.parse(f"x {op} {bound}")], {"x": column}, [str(i) for i in range(len(values))])
    python = {">": "__gt__", ">=": "__ge__", "<": "__lt__", "<=": "__le__", "==": "__eq__", "!=": "__ne__"}[op]
    assert list(got) == [i for i, value in enumerate(column.tolist()) if getattr(value, python)(float(bound))]


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_a_settings_error(text):
    with contextlib.suppress(SettingsError):
        assert Filter.parse(text).op in OPERATORS


def test_duplicates_leave_the_first():
    assert drop_duplicates([b"x", b"y", b"x", b"z", b"y", b"x"]) == dict.fromkeys([2, 4, 5], "exact duplicate")
    assert drop_duplicates([]) == {}


@given(st.lists(st.sampled_from("abcd"), max_size=20))
def test_duplicates_leave_one_of_each(keys):
    dropped = drop_duplicates(keys)
    left = [key for i, key in enumerate(keys) if i not in dropped]
    assert left == list(dict.fromkeys(keys))


def test_without_takes_out_of_the_choice_and_counts_add_up():
    scores = Scores(IDS, COLUMNS["ifd"], {3: "no response token left"}, COLUMNS)
    rest = without(scores, {2: "ifd > 1", 3: "response_tokens < 8"})
    selection = Top().select(rest, Budget.parse(5))
    assert selection.kept == ["a", "b"]
    assert selection.dropped == {"c": "ifd > 1", "d": "no response token left"}
    assert scores.values[2] == 1.5
    assert Budget.parse("50%", of="kept").rows(len(rest), 2) == 1


def test_without_nothing_is_the_same():
    scores = Scores(IDS, COLUMNS["ifd"], {3: "x"}, COLUMNS)
    assert without(scores, {}).problems == {3: "x"}


def test_a_long_run_of_spaces_is_read_in_one_pass() -> None:
    with pytest.raises(SettingsError, match="is not `<column>"):
        Filter.parse("a" + " " * 300_000 + "b")
    assert Filter.parse("  ifd" + " " * 300_000 + ">  1 ").column == "ifd"
