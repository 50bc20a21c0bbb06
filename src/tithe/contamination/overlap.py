"""Which examples of a data set are in evaluation sets, and which evaluation items are in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.contamination.index import Hit, Index, words
from tithe.contamination.items import file_digest, read_items
from tithe.data.files import Dataset
from tithe.data.input_check import InputCheck
from tithe.data.record_counts import RecordCounts
from tithe.errors import DataError, SettingsError
from tithe.extras import versions
from tithe.planner import windows
from tithe.records import Example
from tithe.report.reporter import Reporter

NGRAM = 13  # words in a row, as in Brown et al. 2020, arXiv 2005.14165, appendix C
BATCH = 512
WORST = 10  # items of each evaluation file that are told, each with the example that shares most with it
MOSTLY = 0.8  # of an item's runs
RULE = "NFKC, lower case, runs of letters and digits; punctuation separates words"


@dataclass(frozen=True)
class ContaminationResult:
    """What a data set shares with evaluation files.

    Args:
        record: counts per evaluation file, the worst matches, digests.
        examples: id -> reason, of every example that shares something.
    """

    record: dict[str, Any] = field(repr=False)
    examples: Mapping[str, str] = field(repr=False)

    @property
    def told(self) -> dict[str, Any]:
        """For the record of a run that drops these examples."""
        return {"contamination": dict(self.record)} if self.record else {}


@dataclass(frozen=True, slots=True)
class Match:
    """One example and one item of an evaluation file.

    Args:
        example: its place.
        item: its place.
        hit: what they share.
        share: part of the item that is in the example; None where only its question is.
    """

    example: str
    item: str
    hit: Hit
    share: float | None

    @property
    def rank(self) -> tuple[float, int]:
        """The worst first."""
        return -(1.0 if self.share is None else self.share), -self.hit.shared

    def as_dict(self) -> dict[str, Any]:
        share = None if self.share is None else round(self.share, 4)
        counts = {"shared_ngrams": self.hit.shared, "share_of_item": share}
        return {"example": self.example, "item": self.item, "how": self.hit.how, **counts, "text": self.hit.text}


@dataclass
class EvalFile:
    """An evaluation file and what was found of it.

    Args:
        path: where it is.
        name: what reasons call it.
        items: which of the index's items are its.
    """

    path: Path
    name: str
    items: range
    examples: int = field(default=0, init=False)
    worst: dict[int, Match] = field(default_factory=dict, init=False)  # item -> what shares most with it

    def take(self, example: Example, hits: Sequence[Hit], index: Index) -> str:
        """Note what one example shares; gives the reason to drop it."""
        self.examples += 1
        for hit in hits:
            found = Match(example.where, index.where[hit.item], hit, index.share(hit))
            self.worst[hit.item] = min(self.worst.get(hit.item, found), found, key=lambda match: match.rank)
        what = {"run": f"{index.n}-gram shared with", "item": "the same as a short item of"}
        return f"contaminated: {what.get(hits[0].how, 'the same prompt as a short question of')} {self.name}"

    def record(self, index: Index, shares: npt.NDArray[np.float64]) -> dict[str, Any]:
        whole = [item for item, match in self.worst.items() if match.hit.how == "item" or shares[item] >= MOSTLY]
        worst = sorted(self.worst.values(), key=lambda match: match.rank)[:WORST]
        return {
            "source": str(self.path),
            "digest": file_digest(self.path),
            "items": len(self.items),
            "items_shorter_than_ngram": sum(index.runs[item] == 0 for item in self.items),
            "examples_hit": self.examples,
            "items_hit": len(self.worst),
            "items_mostly_covered": len(whole),
            "worst": [match.as_dict() for match in worst],
        }


def find(
    dataset: Dataset, against: Sequence[Path], *, n: int = NGRAM, reporter: Reporter | None = None
) -> ContaminationResult:
    """Find what an open data set shares with evaluation files; its examples have the ids that they have elsewhere."""
    return ItemSearch.of(dataset, against, n).result(reporter or Reporter())


@dataclass
class ItemSearch:
    """Looks for evaluation items in a data set.

    Args:
        dataset: where.
        index: of all items.
        files: whose items.
        input_check: what the data set was when this began.
        examples: id -> reason, of every example found so far that shares something.
        counts: what was read of the data set so far.
    """

    dataset: Dataset
    index: Index
    files: Sequence[EvalFile]
    input_check: InputCheck
    examples: dict[str, str] = field(default_factory=dict)
    counts: RecordCounts = field(default_factory=lambda: RecordCounts(deed="looked at", learning=False))
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, dataset: Dataset, against: Sequence[Path], n: int) -> ItemSearch:
        """Read the evaluation files.

        Raises:
            TitheError: see `eval_files`.
        """
        began = time.monotonic()
        return cls(dataset, *eval_files(against, n), InputCheck(dataset), began=began)

    def result(self, reporter: Reporter) -> ContaminationResult:
        """Read the data set through."""
        reporter.phase("looking for evaluation items")
        reporter.expect(None)
        try:
            for batch in windows(self.counts.counting(self.dataset), BATCH):
                self.look([item for item in batch if isinstance(item, Example)])
                reporter.progress(len(batch), 0)
        finally:
            reporter.done()
        self.input_check.check()
        return ContaminationResult(self.so_far(), self.examples)

    def look(self, batch: Sequence[Example]) -> None:
        hits = self.index.find([[*map(words, texts(one))] for one in batch])
        for example, found in zip(batch, hits, strict=True):
            for file, own in by_file(self.files, found):
                self.examples.setdefault(example.id, file.take(example, own, self.index))

    def so_far(self) -> dict[str, Any]:
        """Return the record of what was found by now."""
        shares, counts = self.index.covered_shares(), self.counts.as_dict()
        del counts["duplicates"]  # which share what the first of them shares
        data = {"examples": self.counts.examples, "bad_rows": self.counts.bad.total()}
        return {
            "ngram": self.index.n,
            "words": RULE,
            "versions": versions(()),
            "dataset": self.input_check.describe() | data,
            "counts": counts,
            "examples_hit": len(self.examples),
            "against": {file.name: file.record(self.index, shares) for file in self.files},
            "seconds": round(time.monotonic() - self.began, 2),
        }


def eval_files(against: Sequence[Path], n: int) -> tuple[Index, list[EvalFile]]:
    """All of them in one index; files of the same name are told apart by their whole path.

    Raises:
        SettingsError: none is given, one twice, or n is no length.
        DataError: one holds no text.
    """
    if n < 1:
        raise SettingsError(f"`ngram` cannot be `{n}`: it must be at least 1")
    if not against:
        raise SettingsError("no evaluation file is given", hint="`--against FILE`, more than once for several")
    twice = [str(path) for i, path in enumerate(against) if path in against[:i]]
    if twice:
        raise SettingsError(f"the evaluation file `{twice[0]}` is given twice")
    names = [path.name for path in against]
    index, files = Index(n), []
    for path in against:
        first = len(index.where)
        index.add(read_items(path))
        if len(index.where) == first:
            raise DataError(f"the evaluation file `{path}` holds no text")
        name = path.name if names.count(path.name) == 1 else str(path)
        files.append(EvalFile(path, name, range(first, len(index.where))))
    index.build()
    return index, files


def by_file(files: Sequence[EvalFile], hits: Sequence[Hit]) -> Iterator[tuple[EvalFile, list[Hit]]]:
    """The hits of each file that has some."""
    for file in files if hits else ():
        if own := [hit for hit in hits if hit.item in file.items]:
            yield file, own


def texts(example: Example) -> Iterator[str]:
    """What its messages say, each by itself."""
    for message in (*example.prompt, example.response):
        if message.reasoning:
            yield message.reasoning
        if message.content:
            yield message.content
        for call in message.tool_calls:
            yield json.dumps(call, ensure_ascii=False, default=str)
