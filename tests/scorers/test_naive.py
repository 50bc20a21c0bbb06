"""Scores with worked examples against the slow twin, through the library as users call it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import tithe
from tests.e2e.command import write_jsonl
from tests.naive import Naive, by_likeness, cosine, words

SETTINGS: dict[str, Any] = {"template": "alpaca", "dtype": "fp32", "device": "cpu"}
RELATIVE = 1e-5


def made(n: int) -> list[dict[str, str]]:
    """Records of three topics, of several lengths."""
    topics = [("colours", "red green blue"), ("letters", "friend weather book"), ("sums", "twelve thirty forty-two")]
    out = []
    for i in range(n):
        topic, vocabulary = topics[i % 3]
        reply = itertools.islice(itertools.cycle(vocabulary.split()), 1 + (i * 5) % 7)
        extra = f"Number {i}." if i % 2 else ""
        out.append({"instruction": f"Tell me {i} things of {topic}.", "input": extra, "output": " ".join(reply) + "."})
    return out


@pytest.fixture(scope="module")
def naive(model_dir: Path) -> Naive:
    return Naive(model_dir)


@pytest.fixture
def twelve(tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    records = made(12)
    return write_jsonl(tmp_path / "twelve.jsonl", records), records


def column(result: tithe.run.ScoreResult, name: str) -> list[float]:
    return result.table[name].to_pylist()


def close(got: float, wanted: float, size: float) -> bool:
    """1e-5 of the number, or of what it is a difference of."""
    return abs(got - wanted) <= RELATIVE * max(abs(wanted), size)


def neighbours(result: tithe.run.ScoreResult) -> list[list[int]]:
    """Rows of each record's neighbours, the nearest first."""
    rows = {id_: row for id_, row in zip(column(result, "id"), column(result, "row"), strict=True)}  # type: ignore[var-annotated]
    found: dict[int, list[int]] = {}
    for one in result.learned["neighbours"].sort_by("rank").to_pylist():
        found.setdefault(rows[one["id"]], []).append(rows[one["neighbour"]])
    return [found[row] for row in range(len(rows))]


@pytest.mark.parametrize("shots", [1, 2])
def test_miwv(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]], shots: int) -> None:
    data, records = twelve
    result = tithe.score(data, scorer="miwv", model=str(model_dir), shots=shots, **SETTINGS)
    vectors = [naive.vector(words(record)) for record in records]
    nearest = [by_likeness(vectors, i)[:shots] for i in range(len(records))]
    assert neighbours(result) == nearest
    for i, record in enumerate(records):
        before = [records[j] for j in reversed(nearest[i])]  # the nearest stands last
        (zero, tokens), (one, _) = naive.given(record), naive.shown(record, *before)
        assert close(column(result, "nll_given")[i], zero / tokens, 0)
        assert close(column(result, "nll_shown")[i], one / tokens, 0)
        assert close(column(result, "miwv")[i], naive.miwv(record, *before), zero / tokens)


@pytest.mark.slow
def test_wici(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]]) -> None:
    """With as many probes as near records, k-means has nothing to choose."""
    data, records = twelve
    ifd = [naive.ifd(record) for record in records]
    vectors = [naive.vector(words(record)) for record in records]
    for terms in ("all", "positive"):
        spec = f"wici(near=3, probes=3, terms={terms})"
        result = tithe.score(data, scorer=spec, model=str(model_dir), **SETTINGS)
        for i, record in enumerate(records):
            able = [j for j in by_likeness(vectors, i) if terms == "all" or ifd[j] <= 1]
            total = 0.0
            for j in able[:3]:
                influence = ifd[j] - naive.ifd(records[j], record)
                weight = (1 - cosine(vectors[i], vectors[j])) / (2 * 3)
                total += weight * (influence if terms == "all" else max(0.0, influence))
            assert column(result, "wici")[i] == pytest.approx(total, rel=RELATIVE, abs=1e-6), (terms, i)


@pytest.mark.slow
def test_nuggets(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]]) -> None:
    """With as many anchors as records, each is one; a record does not judge itself."""
    data, records = twelve
    result = tithe.score(data, scorer="nuggets(anchors=12)", model=str(model_dir), **SETTINGS)
    assert column(result, "nll_shown") == column(result, "nll_given") == [None] * 12  # those of others are not its own
    for i, record in enumerate(records):
        anchors = [other for j, other in enumerate(records) if j != i]
        helped = [naive.shown(anchor, record)[0] < naive.given(anchor)[0] for anchor in anchors]
        assert column(result, "nuggets")[i] == sum(helped) / 11


def test_likelihoods_of_others_are_not_its_own(model_dir: Path, twelve: tuple[Path, list[dict[str, str]]]) -> None:
    """One probe each: a single shown pass, and it is about another record's response."""
    data, _ = twelve
    result = tithe.score(data, scorer="wici(near=1, probes=1)", model=str(model_dir), **SETTINGS)
    assert column(result, "nll_shown") == column(result, "nll_given") == column(result, "nll_alone") == [None] * 12
    assert None not in column(result, "wici")


def test_grape(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]]) -> None:
    data, records = twelve
    result = tithe.score(data, scorer="grape", model=str(model_dir), **SETTINGS)
    for got, record in zip(column(result, "grape"), records, strict=True):
        total, tokens = naive.given(record)
        assert got == pytest.approx(-total / tokens, rel=RELATIVE)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["alpaca_20k", "dolly_15k"])
def test_miwv_of_real_records(shared: Path, tmp_path: Path, name: str) -> None:
    """The bundled model, and six short records of a real data set."""
    names = {"context": "input", "response": "output"}
    records = []
    for line in (shared / "data" / "sft" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:2000]:
        record = {names.get(key, key): value for key, value in json.loads(line).items()}
        if len(record["output"]) < 60 and len(words(record)) < 120 and record["output"]:
            records.append({key: record[key] for key in ("instruction", "input", "output")})
        if len(records) == 6:
            break
    from tithe.engine.model_source import BUNDLED

    naive = Naive(BUNDLED["pocket"])
    data = write_jsonl(tmp_path / "real.jsonl", records)
    result = tithe.score(data, scorer="miwv", model="pocket", **SETTINGS)
    vectors = [naive.vector(words(record)) for record in records]
    nearest = [by_likeness(vectors, i)[0] for i in range(len(records))]
    assert neighbours(result) == [[j] for j in nearest]
    for i, record in enumerate(records):
        zero, tokens = naive.given(record)
        assert close(column(result, "miwv")[i], naive.miwv(record, records[nearest[i]]), zero / tokens)
