"""Limits and baselines: what they accept, and when a rate is above them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tithe.errors import DataError
from tithe.inspect.limits import Limit, Rate, compare, parse_share, percent, read_baseline


@pytest.mark.parametrize(
    ("text", "count", "share"),
    [
        ("0", 0, None),
        ("12", 12, None),
        (3, 3, None),
        ("1%", None, 0.01),
        ("0.5 %", None, 0.005),
        ("100%", None, 1.0),
        (0.25, None, 0.25),
        ("0.25", None, 0.25),
        (".5", None, 0.5),
    ],
)
def test_what_a_limit_is(text: Any, count: int | None, share: float | None) -> None:
    limit = Limit.parse(text)
    assert Limit.fits(text) and limit.count == count
    assert limit.share is share if share is None else limit.share == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "-1", "101%", "1.5", "many", "1 2", "%", "nan", True, -1, 2.0, "1e3", "٣", "٣%"])
def test_what_is_no_limit(text: Any) -> None:
    assert not Limit.fits(text)


def test_a_limit_is_the_most_that_passes() -> None:
    assert Limit.parse("2").exceeded("bad", Rate(2, 10)) is None
    assert Limit.parse("2").exceeded("bad", Rate(3, 10)) == ("bad rows: 3 of 10 records (30 %), and at most 2 may be")
    assert Limit.parse("1%").exceeded("duplicates", Rate(1, 100)) is None
    assert "2 of 100 examples (2 %), and at most 1 % may be" in str(
        Limit.parse("1%").exceeded("duplicates", Rate(2, 100))
    )
    assert Limit.parse("0").exceeded("bad", Rate(0, 0)) is None


def test_a_share_of_something_is_never_nothing() -> None:
    assert [percent(x) for x in (0, 1e-6, 0.0001, 0.01, 0.123456, 1)] == [
        *("0 %", "under 0.01 %", "0.01 %", "1 %", "12.3 %", "100 %")
    ]
    assert parse_share("200%") is None


def record(**rates: float) -> dict[str, Any]:
    return {
        "check": 1,
        "dataset": {"source": "a.jsonl"},
        "rates": {name: {"count": 1, "of": 100, "rate": value} for name, value in rates.items()},
        "measured_by": {name: {"turns": "last"} for name in rates},
        "skipped": {},
    }


def test_a_rate_that_grew_more_than_the_tolerance() -> None:
    compared = {one.name: one for one in compare(record(bad=0.01, noted=0.5), record(bad=0.03, noted=0.4))}
    assert compared["bad"].grown(0.02) is None and compared["noted"].grown(0) is None
    assert compared["bad"].grown(0.01) == "bad rows: grew from 1 % to 3 % of the records, by more than 1 points"


def test_what_cannot_be_compared_says_why() -> None:
    other = record(bad=0.5)
    other["measured_by"]["bad"] = {"turns": "all"}
    (one,) = compare(record(bad=0.0), other)
    assert one.grown(0) is None and "turns last before, turns all now" in str(one.why_not)
    (one,) = compare(record(truncated=0.1), record() | {"skipped": {"truncated": "no length"}})
    assert one.now is None and one.why_not == "not looked for now: no length"
    (one,) = compare(record(), record(truncated=0.1))
    assert one.why_not == "not looked for in the baseline" and one.grown(0) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", None),
        ("{", None),
        ("[]", None),
        ('{"a": 1}', "no record of `tithe check`"),
        ('{"check": 1, "dataset": {}, "rates": {"bad": {"rate": 7}}}', "`bad` is not between 0 and 1"),
        ('{"check": 1, "dataset": {}, "rates": {"bad": {"rate": true}}}', "`bad` is not between 0 and 1"),
        ('{"check": 1, "dataset": {}, "rates": {"bad": null}}', "`bad` is not between 0 and 1"),
        ('{"check": 1, "dataset": {}, "rates": {}}', "how it was measured"),
        ('{"check": 1, "dataset": 3, "rates": {}}', "no record of `tithe check`"),
    ],
)
def test_a_file_that_is_no_baseline(tmp_path: Path, text: str, said: str | None) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_baseline(path)


def test_a_missing_baseline(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_baseline(tmp_path / "none.json")
    (tmp_path / "b.json").write_text(json.dumps(record(bad=0.0)))
    assert read_baseline(tmp_path / "b.json")["rates"]["bad"]["rate"] == 0.0
