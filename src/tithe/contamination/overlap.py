"""Find examples that also occur in evaluation files, and evaluation items that occur in the data set."""

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
from tithe.data.counts import RecordCounts
from tithe.data.dataset import Dataset
from tithe.data.input_check import InputCheck
from tithe.errors import DataError, SettingsError
from tithe.extras import versions
from tithe.planner import windows
from tithe.records import Example
from tithe.report.reporter import Reporter

NGRAM = 13  # words in a row, as in Brown et al. 2020, arXiv 2005.14165, appendix C
BATCH = 512
WORST = 10  # items of each evaluation file that are listed, each with the example that shares most with it
MOSTLY = 0.8  # share of an item's n-grams
RULE = "NFKC, lower case, runs of letters and digits; punctuation separates words"


@dataclass(frozen=True)
class ContaminationResult:
    """What a data set shares with evaluation files.

    Args:
        record: counts per evaluation file, the worst matches, digests.
        examples: id -> reason, for every example that shares something.
    """

    record: dict[str, Any] = field(repr=False)
    examples: Mapping[str, str] = field(repr=False)

    @property
    def told(self) -> dict[str, Any]:
        """Return what the record of a run that drops these examples says."""
        return {"contamination": dict(self.record)} if self.record else {}


@dataclass(frozen=True, slots=True)
class Match:
    """An example and an item of an evaluation file that share text.

    Args:
        example: where the example is.
        item: where the item is.
        hit: what they share.
        share: share of the item that is in the example; None if only its short question is.
    """

    example: str
    item: str
    hit: Hit
    share: float | None

    @property
    def rank(self) -> tuple[float, int]:
        """Return a sort key that puts the worst first."""
        return -(1.0 if self.share is None else self.share), -self.hit.shared

    def as_dict(self) -> dict[str, Any]:
        share = None if self.share is None else round(self.share, 4)
        counts = {"shared_ngrams": self.hit.shared, "share_of_item": share}
        return {"example": self.example, "item": self.item, "how": self.hit.how, **counts, "text": self.hit.text}


@dataclass
class EvalFile:
    """An evaluation file, and which of its items were found.

    Args:
        path: where it is.
        name: its name in reasons.
        items: numbers of its items in the index.
    """

    path: Path
    name: str
    items: range
    examples: int = field(default=0, init=False)
    worst: dict[int, Match] = field(default_factory=dict, init=False)  # item -> the match that shares most with it

    def take(self, example: Example, hits: Sequence[Hit], index: Index) -> str:
        """Note what an example shares, and return the reason to drop it."""
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
    """Find what a data set shares with evaluation files; ids are the same as in every other command."""
    return ItemSearch.of(dataset, against, n).result(reporter or Reporter())


@dataclass
class ItemSearch:
    """Search a data set for evaluation items.

    Args:
        dataset: where to look.
        index: all items.
        files: the evaluation files that they come from.
        input_check: the state of the data set at the start.
        examples: id -> reason, for every example found so far that shares something.
        counts: what was read so far.
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
        """Search the whole data set."""
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
        """Return the record of what was found so far."""
        shares, counts = self.index.covered_shares(), self.counts.as_dict()
        del counts["duplicates"]  # a duplicate shares what the first one shares
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
    """Index all evaluation files; files with equal names are named by their whole path.

    Raises:
        SettingsError: no file is given, or one twice, or n is below 1.
        DataError: a file has no text.
    """
    if n < 1:
        raise SettingsError(f"`ngram` cannot be `{n}`: it must be at least 1")
    if not against:
        raise SettingsError("no evaluation file given", hint="`--against FILE`, more than once for several")
    twice = [str(path) for i, path in enumerate(against) if path in against[:i]]
    if twice:
        raise SettingsError(f"the evaluation file `{twice[0]}` is given twice")
    names = [path.name for path in against]
    index, files = Index(n), []
    for path in against:
        first = len(index.where)
        index.add(read_items(path))
        if len(index.where) == first:
            raise DataError(f"the evaluation file `{path}` has no text")
        name = path.name if names.count(path.name) == 1 else str(path)
        files.append(EvalFile(path, name, range(first, len(index.where))))
    index.build()
    return index, files


def by_file(files: Sequence[EvalFile], hits: Sequence[Hit]) -> Iterator[tuple[EvalFile, list[Hit]]]:
    """Yield each file that has hits, with these."""
    for file in files if hits else ():
        if own := [hit for hit in hits if hit.item in file.items]:
            yield file, own


def texts(example: Example) -> Iterator[str]:
    """Yield the texts of its messages."""
    for message in (*example.prompt, example.response):
        if message.reasoning:
            yield message.reasoning
        if message.content:
            yield message.content
        for call in message.tool_calls:
            yield json.dumps(call, ensure_ascii=False, default=str)
