"""Find near-duplicates: candidates by MinHash, each then compared exactly.

Two examples are near-duplicates if their similarity (`shingles.py`) is at least a threshold. MinHash with banding
proposes pairs by their whole texts. Every pair is verified on the runs themselves, so no reported pair is below the
threshold. Banding may miss a pair: at the threshold with a probability of at most 2 %, above it more rarely.

Examples are visited best first, and one that is similar to an example already kept is dropped. So every dropped
example has a kept twin, and no two kept ones are near-duplicates; a chain of ever less similar texts is not one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.data.dataset import Dataset
from tithe.data.ids import is_repeated, strip_occurrence
from tithe.duplicates.shingles import SIMILARITY, ComparedText
from tithe.errors import MissingExtraError, SettingsError
from tithe.extras import install_hint, versions
from tithe.records import Example
from tithe.report.reporter import Reporter

NEAR = "near-duplicate"
HASHES, SEED = 128, 1
MISSED = 0.02  # most probability of missing a pair whose similarity is the threshold
LEAST = 0.5  # less similar texts are no near-duplicates
EVERY = 512  # examples between two reports of progress
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC4CEB9FE1A85EC53)
Signatures = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Twin:
    """A kept example to which a dropped one is similar.

    Args:
        id: of the kept example.
        similarity: of the two, 0 to 1.
    """

    id: str
    similarity: float

    @property
    def reason(self) -> str:
        """The reason to drop the other one; what is in brackets is left out where reasons are counted."""
        return f"{NEAR} ({self.similarity:.2f} like {self.id})"


def demand_threshold(threshold: float) -> None:
    """Refuse a threshold that makes no sense.

    Raises:
        SettingsError: it is below 0.5 or above 1.
    """
    if not LEAST <= threshold <= 1:
        raise SettingsError(
            f"a near-duplicate is similar by {LEAST} to 1, not by {threshold:g}",
            hint="0.8 finds typing errors, cut ends and changed sentences of long texts; 1 only case and punctuation",
        )


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return the number of bands and the hashes in each: the most hashes that still find nearly all pairs."""
    for rows in range(HASHES // 2, 0, -1):
        if missed(threshold, HASHES // rows, rows) <= MISSED:
            return HASHES // rows, rows
    raise AssertionError(f"one hash a band finds all pairs of {threshold}")


def missed(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that a pair of this similarity is no candidate: no band is equal in all its hashes."""
    return float((1 - similarity**rows) ** bands)


def import_datasketch() -> Any:
    """Import datasketch.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import datasketch
    except ImportError:
        raise MissingExtraError(
            "near-duplicates need the package `datasketch`", hint=install_hint("near-duplicates")
        ) from None
    return datasketch


@dataclass
class NearDuplicates:
    """An index of the examples of a data set that may have near-duplicates.

    It is made in two readings: `sign` takes every example, then `add` those that `may_have_twins` names. It holds 0.6
    kB of each example, and of each of those 6 kB and up to 16 bytes a character. Of equal examples the first counts.

    Args:
        threshold: similarity from which two examples are near-duplicates.
    """

    threshold: float
    without_text: int = field(default=0, init=False)
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False)  # content -> row of the signatures
    _signed: bytearray = field(default_factory=bytearray, init=False, repr=False)
    _texts: dict[str, ComparedText] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        demand_threshold(self.threshold)
        self._datasketch = import_datasketch()
        self.bands, self.rows = choose_bands(self.threshold)
        self._fresh = self._datasketch.MinHash(HASHES, seed=SEED, hashfunc=int, scheme="affine32")

    @classmethod
    def of(cls, dataset: Dataset, threshold: float, reporter: Reporter | None = None) -> NearDuplicates:
        """Read a data set twice and index it.

        Raises:
            SettingsError: the threshold makes no sense.
            MissingExtraError: the extra is not installed.
        """
        found, reporter = cls(threshold), reporter or Reporter()
        reporter.phase("looking for near-duplicates")
        reporter.expect(None)
        try:
            for number, item in enumerate(dataset, 1):
                if isinstance(item, Example):
                    found.sign(item)
                if number % EVERY == 0:
                    reporter.progress(EVERY, 0)
        finally:
            reporter.done()
        if wanted := found.may_have_twins():
            found.add_all((item for item in dataset if isinstance(item, Example)), wanted)
        return found

    def sign(self, example: Example) -> None:
        """Take an example in the first reading."""
        if is_repeated(example.id):
            return
        runs = ComparedText.of(example).whole
        if not len(runs):  # symbols only: nothing to compare
            self.without_text += 1
            return
        hashed = self._fresh.copy()
        hashed.update_batch((runs >> np.uint64(32)).tolist())
        self._places[example.id] = len(self._places)
        self._signed += hashed.hashvalues.tobytes()

    def may_have_twins(self) -> set[str]:
        """Return the ids of all examples that agree with another one in a whole band."""
        table, shared = self.signatures, np.zeros(len(self._places), dtype=bool)
        for band in range(self.bands):
            part = table[:, band * self.rows : (band + 1) * self.rows]  # (examples, rows)
            key = np.zeros(len(table), dtype=np.uint64)
            for column in part.T:  # equal hashes have equal keys; that others may have, too, does no harm
                key = (key ^ column) * _FACTOR
                key ^= key >> np.uint64(31)
            _, inverse, times = np.unique(key * _MIX, return_inverse=True, return_counts=True)
            shared |= times[inverse] > 1
        return {id_ for id_, place in self._places.items() if shared[place]}

    def add(self, example: Example) -> None:
        """Take an example that may have twins in the second reading."""
        self._texts[example.id] = ComparedText.of(example)

    def add_all(self, examples: Iterable[Example], wanted: set[str]) -> None:
        for example in examples:
            if example.id in wanted:
                self.add(example)

    @property
    def signatures(self) -> Signatures:
        """MinHash signatures, (examples, 128)."""
        return np.frombuffer(self._signed, dtype=np.uint32).reshape(-1, HASHES)

    def find(self, ids: Sequence[str], rows: Sequence[int]) -> dict[str, Twin]:
        """Return id -> kept twin, for each example that is similar to one before it that is kept.

        Args:
            ids: of the examples, best first, no two with equal content.
            rows: of their records. Turns of one record share their beginning, and are no near-duplicates.
        """
        lsh = self._datasketch.MinHashLSH(num_perm=HASHES, params=(self.bands, self.rows))
        table, found = self.signatures, dict[str, Twin]()
        for place, (id_, row) in enumerate(zip(ids, rows, strict=True)):
            content = strip_occurrence(id_)
            own = self._texts.get(content)
            if own is None:  # alone in each of its bands
                continue
            hashed = self._datasketch.MinHash(
                HASHES,
                seed=SEED,
                hashfunc=int,
                hashvalues=table[self._places[content]],
                permutations=self._fresh.permutations,
                scheme="affine32",
            )
            alike = []
            for other in lsh.query(hashed):
                text = self._texts[strip_occurrence(ids[other])]
                if rows[other] != row and own.close_in_size(text, self.threshold):
                    alike.append((own.similarity(text), -other))
            similarity, other = max(alike, default=(0.0, 0))  # of equally similar ones, the better
            if similarity >= self.threshold:
                found[id_] = Twin(ids[-other], similarity)
            else:
                lsh.insert(place, hashed, check_duplication=False)
        return found

    @property
    def record(self) -> dict[str, Any]:
        """Say how near-duplicates were found."""
        return {
            "threshold": self.threshold,
            "similarity": SIMILARITY,
            "candidates": f"MinHash, {self.bands} bands of {self.rows} hashes, seed {SEED}",
            "missed_at_threshold": round(missed(self.threshold, self.bands, self.rows), 4),
            "compared": len(self._places),
            "without_text": self.without_text,
            "versions": dict(versions(("datasketch",))),
        }
