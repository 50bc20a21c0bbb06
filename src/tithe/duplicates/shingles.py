"""The similarity of two examples: how many runs of five characters their texts have in common.

It is the smaller of two Jaccard indices: that of the whole texts, and that of the responses. Records that ask
different questions about one passage share nearly all of their text, and teach different things; so do two responses
to one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.contamination.index import words
from tithe.records import Example, Message

RUN = 5  # characters
SIMILARITY = (
    f"the smaller Jaccard index of the sets of {RUN}-character runs, of prompt and response together and of the "
    "response; words in NFKC and lower case"
)
Shingles: TypeAlias = npt.NDArray[np.uint64]
# Odd, so that multiplying by them modulo 2^64 loses nothing; the second one is from MurmurHash3's finalizer.
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)


@dataclass(frozen=True, slots=True)
class ComparedText:
    """What is compared of an example.

    Args:
        whole: runs of prompt and response.
        response: runs of the response.
    """

    whole: Shingles
    response: Shingles

    @classmethod
    def of(cls, example: Example) -> ComparedText:
        """Return the runs of an example's texts; without case, punctuation and white space.

        The system message is left out: thousands of records may share a long one and nothing else.
        """
        asked = [words(text) for message in example.prompt if message.role != "system" for text in texts_of(message)]
        said = [words(text) for text in texts_of(example.response)]
        return cls(shingles(" ".join(chain(*asked, *said))), shingles(" ".join(chain(*said))))

    def close_in_size(self, other: ComparedText, threshold: float) -> bool:
        """Tell whether the two can be similar at all: a smaller set has at least that share of a larger one."""
        a, b = len(self.whole), len(other.whole)
        return min(a, b) >= threshold * max(a, b)

    def similarity(self, other: ComparedText) -> float:
        """Return the similarity to another example, 0 to 1."""
        whole = jaccard(self.whole, other.whole)
        if not len(self.response) and not len(other.response):  # both are symbols only
            return whole
        return min(whole, jaccard(self.response, other.response))


def texts_of(message: Message) -> Iterator[str]:
    """Yield the texts of a message: reasoning, content, calls."""
    if message.reasoning:
        yield message.reasoning
    yield message.content
    for call in message.tool_calls:
        yield json.dumps(call, sort_keys=True, ensure_ascii=False, default=str)


def shingles(text: str) -> Shingles:
    """Return the sorted hashes of a text's runs of five characters; a shorter text is one run, an empty one has none.

    The hashes depend on the text alone, not on the process.
    """
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(letters):
        return np.empty(0, dtype=np.uint64)
    run = min(RUN, len(letters))
    count = len(letters) - run + 1
    hashes = np.full(count, run, dtype=np.uint64)
    for j in range(run):  # a polynomial in _FACTOR, all runs at once
        hashes = hashes * _FACTOR + letters[j : j + count]
    hashes = (hashes ^ (hashes >> np.uint64(33))) * _MIX
    hashes = np.sort(hashes ^ (hashes >> np.uint64(29)))
    return np.asarray(hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])])


def jaccard(a: Shingles, b: Shingles) -> float:
    """Return the share of all runs of two texts that both have, 0 to 1."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - both
    return both / union if union else 0.0
