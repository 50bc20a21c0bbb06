"""Responses that are the same, or nearly so.

Two responses are near duplicates where the Jaccard index of their sets of three-word runs is at least 0.8. Candidates
are found by MinHash (64 hashes in 16 bands of 4 rows: a pair of index 0.8 is met with a chance above 0.999), and each
is then compared exactly on the 32-bit hashes of its runs.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import regex

WORDS, LEAST = 3, 0.8
BANDS, ROWS = 16, 4
NEIGHBOURS = 20  # of a bucket that are compared with each new one: a crowd of equals costs no square of it
METHOD = f"Jaccard of {WORDS}-word runs >= {LEAST}, candidates by MinHash ({BANDS} bands of {ROWS})"
_WORD = regex.compile(r"\w+|[^\w\s]")  # its `\w` matches vowel signs, where the standard library's cuts words
Runs = npt.NDArray[np.uint64]


def runs(text: str) -> Runs:
    """Sorted hashes of a text's three-word runs; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - WORDS + 1)
    joined = (" ".join(words[i : i + WORDS]) for i in range(last))
    hashes = [zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in joined]
    return np.unique(np.array(hashes, dtype=np.uint64))


def signatures(all_runs: Sequence[Runs]) -> npt.NDArray[np.uint64]:
    """(texts, 64) MinHash: the least of each text's runs under 64 fixed hash functions."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**64, size=(BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
    terms = rng.integers(0, 2**64, size=(BANDS * ROWS, 1), dtype=np.uint64)
    found = np.empty((len(all_runs), BANDS * ROWS), dtype=np.uint64)
    for i, one in enumerate(all_runs):
        found[i] = ((one * factors + terms) >> np.uint64(32)).min(axis=1)  # multiply-shift, modulo 2**64
    return found


def jaccard(a: Runs, b: Runs) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def candidates(found: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a whole band, each once."""
    met: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        part = np.ascontiguousarray(found[:, band * ROWS : (band + 1) * ROWS])
        for i, row in enumerate(part):
            bucket = buckets[row.tobytes()]
            for j in bucket[-NEIGHBOURS:]:
                if (j, i) not in met:
                    met.add((j, i))
                    yield j, i
            bucket.append(i)


def near(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of near duplicates among distinct texts, by index."""
    all_runs = [runs(text) for text in texts]
    return [(i, j) for i, j in candidates(signatures(all_runs)) if jaccard(all_runs[i], all_runs[j]) >= LEAST]


def shares(high: Sequence[str], low: Sequence[str]) -> dict[str, float | str | None]:
    """Which part of the responses has an equal, or a near duplicate, in its own tier and in the other.

    Equal texts count as near duplicates, too. A share is None where a tier has no response.
    """
    sides = {"high": [text.strip() for text in high], "low": [text.strip() for text in low]}
    times = {tier: counted(texts) for tier, texts in sides.items()}
    distinct = list(dict.fromkeys([*times["high"], *times["low"]]))
    alike: dict[str, set[str]] = defaultdict(set)
    for i, j in near(distinct):
        alike[distinct[i]].add(distinct[j])
        alike[distinct[j]].add(distinct[i])
    out: dict[str, float | str | None] = {"method": METHOD}
    for tier, other in (("high", "low"), ("low", "high")):
        texts, own, their = sides[tier], times[tier], times[other]
        out[f"equal_within_{tier}"] = share([own[text] > 1 for text in texts])
        out[f"near_within_{tier}"] = share([own[text] > 1 or not alike[text].isdisjoint(own) for text in texts])
        out[f"equal_{tier}_in_{other}"] = share([text in their for text in texts])
        out[f"near_{tier}_in_{other}"] = share([text in their or not alike[text].isdisjoint(their) for text in texts])
    return out


def counted(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        found[text] = found.get(text, 0) + 1
    return found


def share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
