"""How far the rankings of runs agree: numbers by hand, intervals that cover, and one sentence for what cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from scipy.stats import hypergeom, rankdata, spearmanr

import tithe
from tests.e2e.command import Command, read_jsonl, write_jsonl
from tests.look.small_run import alpaca, write_run
from tithe.errors import OutputError, SettingsError, TitheError
from tithe.look.compare_runs import compare
from tithe.look.comparison_page import comparison_data, shown_ids
from tithe.look.finished_run import FinishedRun
from tithe.look.rankings import find_rankings, split_name, what_differs
from tithe.look.top_overlap import bootstrap, correlate, top_overlaps, top_size

nan = float("nan")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "120")
    return Command(monkeypatch, capsys)


def made(
    folder: Path,
    name: str,
    scores: dict[str, Sequence[float | None]],
    records: list[dict[str, Any]] | None = None,
    dropped: Sequence[str | None] | None = None,
    **record: Any,
) -> Path:
    place = folder / name
    place.mkdir()
    count = len(next(iter(scores.values())))
    run = write_run(place, records or alpaca(count), scores, dropped, **record)
    return run.rename(folder / f"{name}.tithe")


def model(name: str) -> dict[str, Any]:
    return {"model": {"name": name, "folder": "-", "fingerprint": name}}


# --- the statistics


def test_tops_by_hand() -> None:
    a = np.arange(20.0)  # its top 20 %: the last four
    b = a.copy()
    b[[19, 0]] = b[[0, 19]]  # of which one is the lowest here
    one, five, ten, twenty = top_overlaps(a, b)
    assert [one.size, five.size, ten.size, twenty.size] == [1, 1, 2, 4]
    assert [one.shared, five.shared, ten.shared, twenty.shared] == [0, 0, 1, 3]
    # Clopper and Pearson: with 0 of 1 the upper end solves (1 - p) = 0.025; with 3 of 4 the ends solve binomial tails.
    assert (one.low, one.high) == (0.0, pytest.approx(0.975))
    p = twenty.low
    assert 4 * p**3 * (1 - p) + p**4 == pytest.approx(0.025)
    p = twenty.high
    assert 1 - p**4 == pytest.approx(0.025)
    # Chance: of 20 draw 4, and count those that are among 4.
    ways = [float(hypergeom(20, 4, 4).pmf(i)) for i in range(5)]
    assert twenty.chance == 0.2 and twenty.p == pytest.approx(ways[3] + ways[4])
    assert ways[3] + ways[4] == pytest.approx((4 * 16 + 1) / 4845)
    assert not twenty.tied


def test_a_top_is_as_large_as_a_budget_of_that_share() -> None:
    assert [top_size(percent, 295) for percent in (1, 5, 10, 20)] == [2, 14, 29, 59]
    assert top_size(1, 7) == 1


def test_ties_at_the_edge_are_said() -> None:
    values = np.array([1.0] * 10 + [0.0] * 10)
    tops = top_overlaps(values, values)
    assert [one.tied for one in tops] == [True, True, True, True] and [one.share for one in tops] == [1, 1, 1, 1]
    assert [one.tied for one in top_overlaps(np.arange(20.0), np.arange(20.0))] == [False] * 4


def test_the_bootstrap_ranks_each_resample_anew() -> None:
    """Against ranking the drawn examples themselves, with ties among them."""
    generator = np.random.default_rng(0)
    a = generator.integers(0, 8, 30).astype(float)
    b = a + generator.integers(0, 8, 30)
    fast = bootstrap(a, b, 20, seed=3)
    for value, drawn in zip(fast, np.random.default_rng(3).integers(0, 30, (20, 30)), strict=True):
        assert value == pytest.approx(np.corrcoef(rankdata(a[drawn]), rankdata(b[drawn]))[0, 1])


def test_correlation_and_when_there_is_none() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    found = correlate(a, b)
    assert found.value == pytest.approx(1 - 6 * 4 / (5 * 24))  # four ranks off by one
    assert found.low is not None and found.high is not None and found.low < 0.8 < found.high
    assert correlate(a, np.ones(5)).value is None
    assert correlate(a[:2], b[:2]).low is None
    assert correlate(a, b) == found  # the same numbers every time


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """Two normal rankings with correlation 0.8: 300 of them, drawn 100 times."""
    generator, cover = np.random.default_rng(5), np.array([[1.0, 0.8], [0.8, 1.0]])
    x, y = generator.multivariate_normal([0, 0], cover, 400_000).T
    edge = {percent: np.quantile(x, 1 - percent / 100) for percent in (5, 20)}
    truth = {percent: float(np.mean(y[x > edge[percent]] > edge[percent])) for percent in edge}
    rho = 6 / np.pi * np.arcsin(0.8 / 2)
    hits, ranks = dict.fromkeys(truth, 0), 0
    for _ in range(100):
        a, b = generator.multivariate_normal([0, 0], cover, 300).T.copy()
        for one in top_overlaps(a, b, tuple(truth)):
            hits[one.percent] += one.low <= truth[one.percent] <= one.high
        low, high = np.quantile(bootstrap(a, b, 200, seed=0), [0.025, 0.975])
        ranks += bool(low <= rho <= high)
    assert all(n >= 91 for n in hits.values()), hits  # 95 of 100, with three standard errors below
    assert ranks >= 88


# --- runs


def test_two_runs_are_joined_by_content(tmp_path: Path) -> None:
    """The second has the records in another order, two more, and lacks three."""
    records = alpaca(40)
    order = [*range(39, 2, -1)]
    other = [*(records[i] for i in order), *alpaca(42)[40:]]
    first: list[float | None] = [float(i) for i in range(40)]
    first[10] = None
    second: list[float | None] = [*(float(i) for i in order), 100.0, 101.0]
    second[0] = None  # record 39
    a = made(tmp_path, "a", {"ifd": first}, records, **model("small"))
    b = made(tmp_path, "b", {"ifd": second}, other, **model("large"))
    found = compare([a, b])
    (pair,) = found.pairs
    c = pair.counts
    assert (c.examples, c.only, c.common, c.without, c.both) == ((40, 39), (3, 2), 37, (1, 1), 35)
    assert c.common + c.only[0] == c.examples[0] and c.common + c.only[1] == c.examples[1]
    assert pair.names == ("a", "b") and pair.correlation.value == pytest.approx(1.0)
    assert [one.shared for one in pair.tops] == [one.size for one in pair.tops] == [1, 1, 3, 7]
    assert found.differs["model"] == ["small", "large"]
    text = str(found)
    assert (
        "35 examples with both scores; 3 only in a; 2 only in b; 1 without a score of a; 1 without a score of b" in text
    )
    assert repr(found) == "<ComparedRuns: a and b: Spearman 1.00, top 5 % 100 % shared>"


def test_what_differs_most_has_its_ranks_scores_and_text(tmp_path: Path) -> None:
    first = [float(i) for i in range(20)]
    second = first.copy()
    second[3], second[18] = 18.5, 3.5  # ranks 17 and 2 become 2 and 17 (of 20, the highest first)
    run = made(tmp_path, "r", {"ifd": first, "other": second})
    (pair,) = compare([run], differ=2).pairs
    assert pair.names == ("ifd", "other") and [one.row for one in pair.differ] == [3, 18]
    assert pair.differ[0].ranks == (17.0, 2.0) and pair.differ[0].scores == (3.0, 18.5)
    assert pair.differ[0].text == "Say the number 3." and pair.differ[0].response.startswith("It is 3.")
    expected = spearmanr(first, second).statistic
    assert pair.correlation.value == pytest.approx(expected)
    assert compare([run], differ=0).pairs[0].differ == []


def test_equal_scores_share_their_rank(tmp_path: Path) -> None:
    run = made(tmp_path, "r", {"ifd": [1.0, 1.0, 0.0, 2.0], "other": [4.0, 3.0, 2.0, 1.0]})
    (pair,) = compare([run]).pairs
    ranks = {one.row: one.ranks for one in pair.differ}
    assert ranks == {0: (2.5, 1.0), 1: (2.5, 2.0), 2: (4.0, 3.0), 3: (1.0, 4.0)}


def test_within_a_column(tmp_path: Path) -> None:
    """`kind` is `a` for even and `b` for odd records: one ranked alike, the other upside down."""
    first = [float(i) for i in range(40)]
    second = [float(i if i % 2 == 0 else 40 - i) for i in range(40)]
    run = made(tmp_path, "r", {"ifd": first, "other": second})
    (pair,) = compare([run], within="kind").pairs
    a, b = pair.categories
    assert (a.value, a.examples, b.value, b.examples) == ("a", 20, "b", 20)
    assert a.correlation == pytest.approx(1.0) and b.correlation == pytest.approx(-1.0)
    # Top 10 %, four: of the first 39, 38, 37, 36; of the second 1 (39), 38, 3 (37) and 36.
    assert a.tops == (2, 2, 2) and b.tops == (2, 2, 0)
    assert abs(a.shift + b.shift) < 1e-9  # ranks only change places
    assert {one.category for one in pair.differ} == {"b"}
    assert "category" not in str(compare([run])) and re.search(r"kind +records", str(compare([run], within="kind")))
    (pair,) = compare([run], within="response_tokens").pairs  # a column of the score table
    assert sum(one.examples for one in pair.categories) == 40
    with pytest.raises(SettingsError, match="no record has a column `knd`") as caught:
        compare([run], within="knd")
    assert caught.value.hint == "did you mean `kind`?"


def test_selections_are_compared_too(tmp_path: Path) -> None:
    scores: list[float | None] = [float(i) for i in range(20)]
    kept = [None if i >= 15 else "below" for i in range(20)]
    other = [None if 13 <= i < 18 else "below" for i in range(20)]
    a, b = made(tmp_path, "a", {"ifd": scores}, dropped=kept), made(tmp_path, "b", {"ifd": scores}, dropped=other)
    (pair,) = compare([a, b]).pairs
    assert pair.selected is not None and (pair.selected.kept, pair.selected.shared) == ((5, 5), 3)
    assert pair.selected.chance == 5 * 5 / 20 and "kept 5 and 5: 3 by both, 1.2 by chance" in str(compare([a, b]))


def test_which_pairs_are_made(tmp_path: Path) -> None:
    values: list[float | None] = [1.0, 2.0, 3.0]
    one = made(tmp_path, "one", {"ifd": values, "miwv": values, "empty": [None] * 3})
    two = made(tmp_path, "two", {"ifd": values, "miwv": values})
    far = made(tmp_path, "far", {"length": values})

    def names(*runs: Any, scorers: Sequence[str] = ()) -> list[tuple[str, str]]:
        return [(a.label, b.label) for a, b in find_rankings(runs, scorers)]

    assert names(one) == [("ifd", "miwv")]
    assert names(one, two) == [("one: ifd", "two: ifd"), ("one: miwv", "two: miwv")]
    assert names(one, two, scorers=["miwv"]) == [("one", "two")]
    assert names(one, far) == [("one: ifd", "far: length"), ("one: miwv", "far: length")]
    assert names(f"{one}:ifd", f"{two}:miwv") == [("one: ifd", "two: miwv")]
    assert split_name(str(one)) == (one, None) and split_name("a:b/c") == (Path("a:b/c"), None)
    for runs, scorers, message in (
        ([], (), "no run is given"),
        ([far], (), "there is only `length`"),
        ([one, one], (), "is given twice"),
        ([one, two], ["idf"], "has no scorer `idf`"),
        ([f"{one}:idf", two], (), "has no scorer `idf`"),
    ):
        with pytest.raises(SettingsError, match=message):
            names(*runs, scorers=scorers)


def change(run: Path, **keys: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | keys))


BAD = {
    "no folder": (lambda run: run.rename(run.with_name("x")), "no run folder"),
    "no record": (lambda run: (run / "run.json").unlink(), "is no run folder: it has no `run.json`"),
    "unfinished": (lambda run: change(run, outcome={"status": "interrupted"}), "did not finish: interrupted"),
    "other version": (
        lambda run: change(run, settings={"dataset": "d", "colour": "red"}, versions={"tithe": "9.9"}),
        "of tithe 9.9, are not known: unknown setting `colour`",
    ),
    "torn table": (lambda run: (run / "scores.parquet").write_bytes(b"PAR1"), "scores.parquet` cannot be read"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_run_that_cannot_be_compared_is_one_sentence(
    spoil: Any, message: str, tmp_path: Path, command: Command
) -> None:
    values: list[float | None] = [1.0, 2.0, 3.0]
    a, b = made(tmp_path, "a", {"ifd": values}), made(tmp_path, "b", {"ifd": values})
    spoil(b)
    done = command.fails("compare", a, b, "-o", tmp_path / "page.html")
    assert message in done.errors[0] and done.out == "" and not (tmp_path / "page.html").exists()


def test_nothing_in_common_and_nothing_scored(tmp_path: Path, command: Command) -> None:
    a = made(tmp_path, "a", {"ifd": [1.0, 2.0, 3.0, None]})
    other = made(tmp_path, "b", {"ifd": [1.0, 2.0]}, alpaca(9)[7:])
    assert "have no example in common" in command.fails("compare", a, other).err
    empty = made(tmp_path, "c", {"ifd": [None, None, None, None]})
    assert f"the run in `{empty}` has no scores to compare" in command.fails("compare", a, empty).err
    apart = made(tmp_path, "d", {"ifd": [None, None, None, 1.0]})
    assert "no example has a score of both" in command.fails("compare", a, apart).err
    with FileLock(a / ".lock"):
        assert "a run is at work in" in command.fails("compare", a, apart).err


def test_a_data_set_that_is_gone_leaves_the_numbers(tmp_path: Path) -> None:
    run = made(tmp_path, "r", {"ifd": [1.0, 2.0, 3.0], "other": [3.0, 1.0, 2.0]})
    (tmp_path / "r" / "data.jsonl").unlink()
    found = compare([run], output=tmp_path / "page.html")
    assert found.pairs[0].differ[0].text == "" and len(found.notes) == 1
    assert "note: no texts of the run in" in str(found) and found.pairs[0].differ[0].id in str(found)
    assert (tmp_path / "page.html").exists()
    with pytest.raises(TitheError, match="cannot be read"):
        compare([run], within="kind")


def test_the_page_never_replaces_what_it_reads(tmp_path: Path, command: Command) -> None:
    run = made(tmp_path, "r", {"ifd": [1.0, 2.0, 3.0], "other": [3.0, 1.0, 2.0]})
    (tmp_path / "mine.html").write_text("mine")
    command.fails("compare", run, "-o", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    for place in (run / "run.json", run / "scores.parquet", tmp_path / "r" / "data.jsonl"):
        before = place.read_bytes()
        command.fails("compare", run, "-o", place, "--overwrite")
        assert place.read_bytes() == before
    done = command.ok("compare", run, "-o", tmp_path / "mine.html", "--overwrite")
    assert "compare: " in done.err and (tmp_path / "mine.html").read_text().startswith("<!doctype html>")
    first = (tmp_path / "mine.html").read_bytes()
    command.ok("compare", run, "-o", tmp_path / "mine.html", "--overwrite")
    assert (tmp_path / "mine.html").read_bytes() == first
    assert "has no page to open" in command.fails("compare", run, "--open", code=2).err
    assert "not -1" in command.fails("compare", run, "--differ", "-1").err


def test_json_has_everything(tmp_path: Path, command: Command) -> None:
    run = made(tmp_path, "r", {"ifd": [1.0, 2.0, 3.0, 4.0], "other": [1.0, 1.0, 1.0, 1.0]})
    done = command.ok("compare", run, "--json", "--within", "kind")
    (pair,) = done.json["pairs"]
    assert pair["correlation"] == {"value": None, "low": None, "high": None}
    assert pair["tops"][0]["share"] == 0.0 and pair["tops"][0]["percent"] == 1 and pair["counts"]["both"] == 4
    assert len(pair["categories"]) == 2 and len(pair["differ"]) == 4
    assert "one of the two does not vary" in command.ok("compare", run).out


def test_hostile_names_and_texts_are_harmless_in_the_terminal(tmp_path: Path, command: Command) -> None:
    nasty = "\x1b[31m[bold]\u202e</script>"
    records = [{"instruction": f"{nasty}{i}", "input": "", "output": f"{nasty}{i}", "kind": nasty} for i in range(12)]
    values: list[float | None] = [float(i) for i in range(12)]
    run = made(tmp_path, "r", {"ifd": values, "other": values[::-1]}, records)
    out = command.ok("compare", run, "--within", "kind").out
    assert "\x1b" not in out and "\u202e" not in out and r"\x1b[31m[bold]\u202e" in out


def test_of_many_records_the_page_has_those_that_differ_most(tmp_path: Path) -> None:
    first: list[float | None] = [float(i) for i in range(30)]
    second = first.copy()
    second[2], second[27] = 27.5, 2.5
    run = made(tmp_path, "r", {"ifd": first, "other": second})
    pairs = find_rankings([run])
    from tithe.look.compared_pair import Joined

    joined = [Joined.of(*pair) for pair in pairs]
    ids, note = shown_ids(joined, 2)
    assert len(ids) == 2 and "2 of 30 examples: those whose ranks differ most" in note
    found = compare([run])
    data = comparison_data(found, pairs, joined, [FinishedRun.open(run)], None, 2)
    assert (
        data["row"] == [2, 27] and data["pairs"][0]["ranks"] == [[28.0, 3.0], [3.0, 28.0]] and data["notes"] == [note]
    )
    assert shown_ids(joined, 30) == (joined[0].ids, "")


def test_settings_that_differ(tmp_path: Path) -> None:
    values: list[float | None] = [1.0, 2.0, 3.0]
    template, own = {"template": "alpaca", "max_length": 512}, {"ifd": {"unit": "ratio", "same_tokens": True}}
    a = made(tmp_path, "a", {"ifd": values}, template=template, scorers=own, **model("m"))
    b = made(tmp_path, "b", {"ifd": values}, template={**template, "max_length": 1024}, **model("m"))
    found = what_differs([FinishedRun.open(one) for one in (a, b)])
    assert (
        found["max_length"] == ["512", "1024"]
        and "template" not in found
        and found["scorer ifd"] == ["same_tokens=True", "-"]
    )


@pytest.mark.slow
def test_real_runs_from_python(tmp_path: Path, model_dir: Path) -> None:
    """Two runs of one model agree wholly; a result stands for its folder."""
    data = write_jsonl(tmp_path / "data.jsonl", alpaca(30))
    how: dict[str, Any] = {"model": str(model_dir), "dtype": "fp32", "device": "cpu"}
    first = tithe.score(data, scorer="ifd,length", run_dir=tmp_path / "a.tithe", **how)
    second = tithe.select(data, scorer="ifd", keep=5, run_dir=tmp_path / "b.tithe", gate_check=False, **how)
    found = tithe.compare(first, second, output=tmp_path / "page.html")
    (pair,) = found.pairs
    assert pair.correlation.value == pytest.approx(1.0, abs=1e-3) and pair.counts.both == 30
    assert tithe.compare(tmp_path / "a.tithe", within="kind").pairs[0].scorers == ("ifd", "length")
    with pytest.raises(SettingsError, match="this result has no run folder"):
        tithe.compare(tithe.score(data, scorer="length", **how))
    with pytest.raises(OutputError, match="exists"):
        tithe.compare(first, second, output=tmp_path / "page.html")
    assert len(read_jsonl(data)) == 30
