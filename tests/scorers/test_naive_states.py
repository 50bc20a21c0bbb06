"""Scorers that read hidden states and ratings against the slow twin, through the library as users call it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

import tithe
from tests.e2e.command import write_jsonl
from tests.naive import Naive, alpaca, cosine
from tests.scorers.test_naive import SETTINGS, column, made
from tithe.scorers.deita import QUESTIONS
from tithe.scorers.rated import prompt_text
from tithe.scorers.selectit import OPENINGS, QUESTION

NEAR = 1e-5


@pytest.fixture(scope="module")
def naive(model_dir: Path) -> Naive:
    return Naive(model_dir)


@pytest.fixture
def twelve(tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    records = made(12)
    return write_jsonl(tmp_path / "twelve.jsonl", records), records


def test_rds(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]], tmp_path: Path) -> None:
    data, records = twelve
    targets = made(15)[12:]
    path = write_jsonl(tmp_path / "targets.jsonl", targets)
    theirs = [naive.direction(record) for record in targets]
    cosines = [[cosine(naive.direction(record), other) for other in theirs] for record in records]
    for by, of in (("max", max), ("mean", fmean)):
        spec = f"rds(by={by})"
        got = column(tithe.score(data, scorer=spec, model=str(model_dir), target=str(path), **SETTINGS), "rds")
        assert got == pytest.approx([of(each) for each in cosines], abs=NEAR)
    result = tithe.score(data, scorer="rds", model=str(model_dir), target=str(path), **SETTINGS)
    assert column(result, "rds_cosine") == pytest.approx([max(each) for each in cosines], abs=NEAR)
    assert column(result, "rds_target") == [each.index(max(each)) for each in cosines]
    order: list[int] = []
    for j in itertools.islice(itertools.cycle(range(3)), 12):
        order.append(max((i for i in range(12) if i not in order), key=lambda i: cosines[i][j]))
    scores = column(result, "rds")
    assert sorted(range(12), key=lambda i: -scores[i]) == order
    assert scores[order[5]] == pytest.approx(1 - 5 / 12)
    ids = column(result, "id")
    nearest = [ids[max(range(12), key=lambda i: cosines[i][j])] for j in range(3)]
    assert result.learned["targets"]["nearest"].to_pylist() == nearest


def shares(found: list[float]) -> list[float]:
    return [p / math.fsum(found) for p in found]


def asked(question: str) -> str:
    return alpaca({"instruction": question})


def test_selectit(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]]) -> None:
    data, records = twelve
    result = tithe.score(data, scorer="selectit", model=str(model_dir), **SETTINGS)
    for row, (example, record) in enumerate(zip(tithe.load(data), records, strict=True)):
        sure, masses = [], []
        for opening in OPENINGS:
            question = QUESTION.format(opening=opening, prompt=prompt_text(example), response=record["output"])
            found = naive.replies(asked(question), "12345")
            p = shares(found)
            best = max(range(5), key=p.__getitem__)
            sure.append((best + 1) * sum(p[best] - other for other in p) / 4)
            masses.append(math.fsum(found))
        assert column(result, "selectit")[row] == pytest.approx(fmean(sure) / (1 + 0.2 * pstdev(sure)), rel=1e-4)
        assert column(result, "selectit_spread")[row] == pytest.approx(pstdev(sure), abs=1e-5)
        assert column(result, "selectit_mass")[row] == pytest.approx(fmean(masses), rel=1e-4)
    assert len({round(value, 6) for value in column(result, "selectit")}) == 12


def deita(naive: Naive, what: str, query: str, answer: str) -> float:
    p = shares(naive.replies(asked(QUESTIONS[what].format(query=query, answer=answer)), "123456"))
    return math.fsum(k * value for k, value in enumerate(p, start=1))


def test_deita(naive: Naive, model_dir: Path, twelve: tuple[Path, list[dict[str, str]]]) -> None:
    data, records = twelve
    result = tithe.score(data, scorer="deita", model=str(model_dir), **SETTINGS)
    for row, (example, record) in enumerate(zip(tithe.load(data), records, strict=True)):
        c, q = (deita(naive, what, prompt_text(example), record["output"]) for what in ("complexity", "quality"))
        assert column(result, "deita")[row] == pytest.approx(c * q, rel=NEAR)
        assert column(result, "deita_complexity")[row] == pytest.approx(c, rel=NEAR)
    assert len({round(value, 6) for value in column(result, "deita")}) == 12


DIALOGUE = [("Hi there.", "Hello."), ("Name a colour.", "Red."), ("And a letter?", "A letter to a friend.")]


def test_deita_of_dialogues(naive: Naive, model_dir: Path, tmp_path: Path) -> None:
    """The sum goes over all turns up to the one that is scored; one model for both, or two one after the other."""
    messages = [
        {"role": role, "content": text}
        for turn in DIALOGUE
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    data = write_jsonl(tmp_path / "reporter.jsonl", [{"messages": messages}, {"messages": messages[:2]}])
    rated = [math.prod(deita(naive, what, *turn) for what in ("complexity", "quality")) for turn in DIALOGUE]
    more: dict[str, Any] = {"model": str(model_dir), **SETTINGS}
    got = column(tithe.score(data, scorer="deita", **more), "deita")
    assert got == pytest.approx([sum(rated), rated[0]], rel=NEAR)
    whole = column(tithe.score(tithe.load(data, turns="all"), scorer="deita", **more), "deita")
    assert whole == pytest.approx([*itertools.accumulate(rated), rated[0]], rel=NEAR)
    tithe.score(data, scorer="deita(part=complexity)", run_dir=tmp_path / "one", **more)
    table = tmp_path / "one" / "complexity.parquet"
    two = tithe.score(data, scorer=f"deita(complexity={table})", **more)
    assert column(two, "deita") == pytest.approx(got, rel=NEAR)


@pytest.mark.slow
def test_the_whole_set_or_one_by_one(
    model_dir: Path, twelve: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    data, records = twelve
    path = write_jsonl(tmp_path / "targets.jsonl", made(15)[12:])
    more: dict[str, Any] = {"model": str(model_dir), "target": str(path), **SETTINGS}
    names = ("rds", "selectit", "deita")
    whole = tithe.score(data, scorer=["rds(by=max)", "selectit", "deita"], **more)
    for row, record in enumerate(records[:6]):
        alone = tithe.score(
            write_jsonl(tmp_path / f"{row}.jsonl", [record]), scorer=["rds(by=max)", "selectit", "deita"], **more
        )
        for name in names:
            assert column(alone, name)[0] == pytest.approx(column(whole, name)[row], rel=1e-5, abs=1e-6)
