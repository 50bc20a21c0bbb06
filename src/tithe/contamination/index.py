"""Index the n-grams of evaluation items, to find them in any text.

A text is compared as words that do not depend on case, punctuation, white space, Unicode form or invisible characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import regex

from tithe.contamination.items import Item
from tithe.records import IntArray

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
How = Literal["run", "item", "question"]
BREAK = -1  # a word that no item has, and the end of a text
_P = 0x9E3779B97F4A7C15  # odd, so that multiplying by it modulo 2^64 loses nothing

_SCRIPTS = "Han Hiragana Katakana Thai Lao Khmer Myanmar Javanese Balinese Tai_Le New_Tai_Lue Tai_Tham Tai_Viet"
# These scripts have no spaces between words: each character is a word, with the marks on it.
_UNSPACED = "".join(rf"\p{{Script_Extensions={script}}}" for script in _SCRIPTS.split())
# Letters that are typed as apostrophes: they separate words, as other punctuation does.
_APOSTROPHES = "\u02bb\u02bc"
_LETTER = rf"[\p{{L}}\p{{N}}]--[{_APOSTROPHES}]"
# Vowel signs, accents, tones and points belong to the letter before them; a single mark is no word.
_MARK = r"\p{Mn}\p{Mc}"
_CHARACTER = rf"[{_LETTER}&&[{_UNSPACED}]][{_MARK}]*"
_RUN = rf"[{_LETTER}--[{_UNSPACED}]][[{_LETTER}--[{_UNSPACED}]]{_MARK}]*"
_WORD = regex.compile(f"{_CHARACTER}|{_RUN}", regex.V1)
# For texts of Latin letters, symbols and emoji, the standard library finds the same words in a third of the time.
_OTHER = re.compile(
    "[^\0-\u02ff\u1e00-\u206f\u20a0-\u20bf\u2100-\u218b\u2190-\u2426\u2500-\u2b73\U0001f300-\U0001f9ff]"
)
_PLAIN_RUN = re.compile(rf"[^\W_{_APOSTROPHES}]+")
# Joiners, soft hyphens, variation selectors, direction marks; and the stroke that lengthens an Arabic word.
_UNSEEN = regex.compile("[\\p{Default_Ignorable_Code_Point}\u0640]+")

_ASCII = "".join(chr(i).lower() if chr(i).isalnum() else " " for i in range(128))


def words(text: str) -> list[str]:
    """Split a text into words: letters and digits with the marks on them, in NFKC and lower case; the rest separates.

    >>> words("It's  the ＣＡＦÉ_owner's 3.5!")
    ['it', 's', 'the', 'café', 'owner', 's', '3', '5']
    >>> words("हिन्दी में, ภาษา")
    ['हिन्दी', 'में', 'ภ', 'า', 'ษ', 'า']
    """
    if text.isascii():  # same result in half the time
        return text.translate(_ASCII).split()
    seen = _UNSEEN.sub("", unicodedata.normalize("NFKC", text)).lower()
    seen = unicodedata.normalize("NFKC", seen)  # small letters may compose where capitals did not
    return (_WORD if _OTHER.search(seen) else _PLAIN_RUN).findall(seen)


@dataclass(frozen=True, slots=True)
class Hit:
    """What one text shares with one item.

    Args:
        item: number of the item.
        how: `run`: they share n-grams; `item` or `question`: that is shorter than n words and occurs whole.
        shared: how many of the item's n-grams are in the text.
        text: the first of these n-grams, or the short text.
    """

    item: int
    how: How
    shared: int
    text: str


@dataclass
class Index:
    """An index of evaluation items by their n-grams.

    It holds about 20 bytes for each word of the items, and each distinct word once; nothing of the texts searched.

    Args:
        n: words in an n-gram.
    """

    n: int
    where: list[str] = field(default_factory=list)
    vocabulary: dict[str, int] = field(default_factory=dict)
    short: dict[str, list[tuple[int, How]]] = field(default_factory=dict)
    parts: list[IntArray] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)

    def add(self, items: Iterable[Item]) -> None:
        """Add items; call `build` after the last."""
        for item in items:
            number = len(self.where)
            self.where.append(item.where)
            said = list(chain.from_iterable(map(words, item.texts)))
            asked = words(item.question) if item.question is not None else []
            wholes: dict[str, How] = {" ".join(asked): "question"} if 0 < len(asked) < self.n else {}
            wholes |= {" ".join(said): "item"} if 0 < len(said) < self.n else {}
            for whole, how in wholes.items():
                self.short.setdefault(whole, []).append((number, how))
            for word in said:
                self.vocabulary.setdefault(word, len(self.vocabulary))
            # The break after each item keeps n-grams from crossing into the next one.
            self.parts += [self.ids(said), np.array([BREAK], dtype=np.int32)]
            self.runs.append(max(0, len(said) - self.n + 1))

    def build(self) -> None:
        """Sort the n-grams of the items added."""
        self.text = np.concatenate([*self.parts, np.array([], dtype=np.int32)])
        self.owner = np.repeat(np.arange(len(self.where)), [len(part) + 1 for part in self.parts[::2]]).astype(np.int32)
        self.parts = []
        hashes, places = runs_of(self.text, self.n)
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.places = hashes[order], places[order]
        self.known = list(self.vocabulary)
        self.covered = np.zeros(len(self.text), dtype=bool)

    def ids(self, said: Sequence[str]) -> IntArray:
        return np.fromiter(map(self.vocabulary.get, said, repeat(BREAK)), dtype=np.int32, count=len(said))

    def find(self, texts: Sequence[Sequence[Sequence[str]]]) -> Iterator[list[Hit]]:
        """Yield the hits of each text, those that share most first.

        Args:
            texts: each a list of parts (messages), each part a list of words. An n-gram may cross from one part to the
                next; a short item must equal one part, or all of them together.
        """
        joined = [list(chain.from_iterable(parts)) for parts in texts]
        flat = self.ids([word for said in joined for word in (*said, "")])  # "" is in no item: a break
        ends = np.cumsum([len(said) + 1 for said in joined])
        found: list[dict[int, list[int]]] = [{} for _ in texts]
        hashes, places = runs_of(flat, self.n)
        for at, place in self.equal(hashes, places, flat):
            text = int(np.searchsorted(ends, at, side="right"))
            found[text].setdefault(int(self.owner[place]), []).append(place)
            self.covered[place] = True
        for parts, said, runs in zip(texts, joined, found, strict=True):
            hits = [Hit(item, "run", len({*of}), self.words_at(min(of))) for item, of in runs.items()]
            yield sorted([*hits, *self.same(parts, said, runs)], key=lambda hit: (-hit.shared, hit.item))

    def equal(self, hashes: Hashes, places: Places, flat: IntArray) -> Iterator[tuple[int, int]]:
        """Yield (position in the texts, position in the items) of every n-gram in both; equal hashes are verified."""
        order = np.argsort(hashes)  # sorted look-ups stay in the cache and take half the time
        hashes, places = hashes[order], places[order]
        low = np.searchsorted(self.hashes, hashes, side="left")
        there = low < len(self.hashes)
        there[there] = self.hashes[low[there]] == hashes[there]
        for start, at, value in zip(low[there].tolist(), places[there].tolist(), hashes[there], strict=True):
            stop = int(np.searchsorted(self.hashes, value, side="right"))
            run = flat[at : at + self.n]
            for place in self.places[start:stop].tolist():
                if np.array_equal(self.text[place : place + self.n], run):
                    yield at, place

    def same(self, parts: Sequence[Sequence[str]], said: Sequence[str], runs: dict[int, Any]) -> Iterator[Hit]:
        """Yield hits of short items that equal one of the parts, or all of them together."""
        seen = set(runs)
        for one in (*parts, said):
            if 0 < len(one) < self.n:
                whole = " ".join(one)
                for item, how in self.short.get(whole, ()):
                    if item not in seen:
                        seen.add(item)
                        yield Hit(item, how, 0, whole)

    def words_at(self, place: int) -> str:
        return " ".join(self.known[i] for i in self.text[place : place + self.n].tolist())

    def share(self, hit: Hit) -> float | None:
        """Return the share of an item's n-grams found: 1 for a whole short item, None for a short question only."""
        if hit.how == "run":
            return hit.shared / self.runs[hit.item]
        return 1.0 if hit.how == "item" else None

    def covered_shares(self) -> npt.NDArray[np.float64]:
        """Return the share of each item's n-grams that any text so far contains: (items,)."""
        sums = np.bincount(self.owner[self.covered], minlength=len(self.where))
        return sums / np.maximum(1, np.array(self.runs, dtype=np.int64))


def runs_of(ids: IntArray, n: int) -> tuple[Hashes, Places]:
    """Return hash and position of every n-gram without a break in it.

    Args:
        ids: (words,) with `BREAK` where an n-gram must not reach.
        n: words in an n-gram.
    """
    count = len(ids) - n + 1
    if count < 1:
        return np.array([], dtype=np.uint64), np.array([], dtype=np.int64)
    breaks = np.concatenate([[0], np.cumsum(ids == BREAK)])  # breaks before each position
    places = np.flatnonzero(breaks[n:] == breaks[:-n])
    mixed = mix(ids)
    hashes = np.zeros(len(places), dtype=np.uint64)  # a polynomial in _P, modulo 2^64
    for k in range(n):
        hashes = hashes * np.uint64(_P) + mixed[places + k]
    return hashes, places


def mix(ids: IntArray) -> Hashes:
    """Hash each word id to 64 bits with SplitMix64."""
    z = ids.astype(np.int64).astype(np.uint64) * np.uint64(_P)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
