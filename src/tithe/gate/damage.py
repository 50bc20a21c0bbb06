"""Define a kind of damage, draw records of the pool, and make damaged copies of them.

A kind is one class in one file, registered in the entry point group `tithe.damage`.
"""

from __future__ import annotations

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tithe.errors import DataError, SettingsError, brief
from tithe.records import Example

COPY = "damaged:"  # id prefix of copies
# Where a sentence or a line ends. Nothing before a split is read again, so that a long text takes linear time.
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？])|(?<=\S)(?=\s*\n)")  # noqa: RUF001
CANDIDATES = 4000  # records of the pool that a copy may take text from


@dataclass(frozen=True)
class Others:
    """Other records of the pool, from which a kind may take text.

    Args:
        like: a record whose response is about as long.
        near: a record with a similar prompt; sometimes the same as `like`.
    """

    like: Example
    near: Example


@dataclass(frozen=True)
class Damage(ABC):
    """A kind of damage: it turns a sound response into one that must not be learned from."""

    name: ClassVar[str]

    @abstractmethod
    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        """Return the damaged response, or None if this response cannot be damaged so.

        Args:
            example: a record of the pool.
            others: records whose text may be used.
            draw: the only source of randomness, seeded by the record.
        """


@dataclass(frozen=True)
class DamagedCopy:
    """A damaged copy of a record.

    Args:
        example: the copy.
        kind: name of its damage.
        place: index of its record among the drawn ones.
    """

    example: Example
    kind: str
    place: int


def order_of(example: Example, seed: int) -> bytes:
    """Return a number by which records are drawn: a hash, so that their order in the file does not matter."""
    return hashlib.blake2b(f"{seed}|{example.id}".encode(), digest_size=8).digest()


def draw_records(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draw records by a hash of their ids and the seed; the second occurrence of a content is not drawn."""
    first = {example.id: example for example in examples if "-" not in example.id}
    return sorted(first.values(), key=lambda one: order_of(one, seed))[:count]


def make_copies(
    drawn: Sequence[Example], pool: Sequence[Example], kinds: Mapping[str, Damage], *, copies: int, seed: int
) -> list[DamagedCopy]:
    """Damage every drawn record, kinds in turn; a kind that cannot damage it leaves its turn to the next.

    Args:
        drawn: records, in a fixed order.
        pool: all records; a few thousand of them, drawn like the rest, lend their text.
        kinds: kinds of damage by name.
        copies: copies of each record, at most one of a kind.
        seed: random seed.

    Raises:
        DataError: no record can be damaged.
        SettingsError: a kind raised an error, or returned a response unchanged.
    """
    lenders = draw_records(pool, CANDIDATES, seed)
    near = nearest_prompts(drawn, lenders)
    names, made, turn = list(kinds), list[DamagedCopy](), 0
    by_length = sorted(lenders, key=lambda one: (len(one.response.content), one.id))
    for place, example in enumerate(drawn):
        draw = random.Random(f"{seed}|{example.id}")
        others = Others(like_length(example, by_length, draw), near[place])
        found = 0
        for step in range(len(names)):
            if found == copies:
                break
            name = names[(turn + step) % len(names)]
            text = damaged(kinds[name], example, others, draw)
            if text is not None:
                made.append(DamagedCopy(copy_of(example, name, text), name, place))
                found += 1
                last = step
        turn += last + 1 if found else 0
    if not made:
        raise DataError(
            f"none of {len(drawn):,} drawn responses can be damaged: they are too short or all alike",
            hint="this data leaves nothing to compare with; leave the gate out",
        )
    return made


def damaged(kind: Damage, example: Example, others: Others, draw: random.Random) -> str | None:
    """Return the damaged response, or None if the kind cannot damage it or would leave it as it is.

    Raises:
        SettingsError: the kind raised an error or did not return a text.
    """
    if not example.response.content.strip():
        return None
    try:
        text = kind.damage(example, others, draw)
    except Exception as error:  # a plugin may raise anything
        raise SettingsError(
            f"the kind of damage `{kind.name}` failed on `{brief(example.response.content, 50)}`: "
            f"{type(error).__name__}: {error}",
            hint="choose others with `sound(kinds=...)`",
        ) from error
    if text is not None and not isinstance(text, str):
        raise SettingsError(f"the kind of damage `{kind.name}` returned {type(text).__name__}, not a text or None")
    unchanged = text is None or not text.strip() or text.split() == example.response.content.split()
    return None if unchanged else text


def copy_of(example: Example, kind: str, text: str) -> Example:
    """Return a copy of a record with another response, under an id of its own."""
    return replace(example, id=f"{COPY}{kind}:{example.id}", response=replace(example.response, content=text))


def like_length(example: Example, by_length: Sequence[Example], draw: random.Random) -> Example:
    """Return another record whose response is about as long, drawn from the twenty nearest in length."""
    lengths = [len(one.response.content) for one in by_length]
    from bisect import bisect_left

    at = bisect_left(lengths, len(example.response.content))
    near = [one for one in by_length[max(0, at - 10) : at + 11] if differs(one, example)]
    return draw.choice(near) if near else example


def nearest_prompts(drawn: Sequence[Example], lenders: Sequence[Example]) -> list[Example]:
    """Return for each drawn record the other record whose prompt shares most words with its own (TF-IDF cosine)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    made = TfidfVectorizer(sublinear_tf=True)
    try:
        rows = made.fit_transform([prompt_text(one) for one in lenders])
    except ValueError:  # no word in any prompt
        return list(drawn)
    found = []
    for start in range(0, len(drawn), 256):
        some = drawn[start : start + 256]
        cosines = (made.transform([prompt_text(one) for one in some]) @ rows.T).toarray()  # (some, lenders)
        for example, row in zip(some, cosines, strict=True):
            ranked = row.argsort(kind="stable")[::-1][:20].tolist()
            found.append(next((lenders[i] for i in ranked if differs(lenders[i], example)), example))
    return found


def differs(other: Example, example: Example) -> bool:
    """Tell whether another record has another prompt and another response."""
    return other.response.content.strip() != example.response.content.strip() and other.prompt != example.prompt


def prompt_text(example: Example) -> str:
    """Return the text of the prompt's last message."""
    return example.prompt[-1].content if example.prompt else ""


def pieces(text: str) -> list[str]:
    """Split a text into words with the space before each; joined they are the text without the space at its end."""
    return re.findall(r"\s*\S+", text.rstrip())  # at the end, every start in a run of spaces would read all of it


def sentences(text: str) -> list[str]:
    """Split a text into sentences or lines, with their ends.

    >>> sentences("One. Two words? Three")
    ['One.', ' Two words?', ' Three']
    """
    return [part for part in SENTENCE_END.split(text) if part]
