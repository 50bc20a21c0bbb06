"""Which passes run together: longest first, as many as a token budget takes, common beginnings read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tithe.engine.sharing import Star, find_stars, shared_starts
from tithe.records import Pass


class After(NamedTuple):
    """How a pass continues another one.

    Args:
        place: of the other one in the batch, an earlier one.
        tokens: how many first tokens the two have in common, which are read there.
    """

    place: int
    tokens: int


@dataclass(frozen=True)
class Batch:
    """Passes that share one forward pass.

    Args:
        index: which, in the list that was batched.
        after: per pass what it continues, or None; empty where none continues another.
    """

    index: tuple[int, ...]
    after: tuple[After | None, ...] = ()

    @property
    def saved(self) -> int:
        """Tokens that are not read again."""
        return sum(one.tokens for one in self.after if one is not None)

    def tokens(self, passes: Sequence[Pass]) -> int:
        """Tokens that are read: of each pass all but the last, which predicts nothing, unless others continue it."""
        whole = {one.place for one in self.after if one and one.tokens == len(passes[self.index[one.place]].ids)}
        return sum(len(passes[i].ids) for i in self.index) - (len(self.index) - len(whole)) - self.saved

    def halves(self) -> tuple[Batch, Batch]:
        """Two smaller ones; what continued a pass of the first half is read whole in the second."""
        middle = len(self.index) // 2
        second = tuple(
            None if one is None or one.place < middle else After(one.place - middle, one.tokens)
            for one in self.after[middle:]
        )
        return Batch(self.index[:middle], tidy(self.after[:middle])), Batch(self.index[middle:], tidy(second))


def tidy(after: tuple[After | None, ...]) -> tuple[After | None, ...]:
    return after if any(after) else ()


def make_batches(
    passes: Sequence[Pass],
    *,
    budget: int,
    padded: bool = False,
    share: bool = False,
    alone_above: int | None = None,
) -> list[Batch]:
    """Sort by length, longest first, and cut into batches of at most `budget` tokens.

    Longest first, so that running out of memory shows at once. The cut depends on the passes alone, never on what is
    already answered: a resumed run then repeats exactly the batches of a straight one.

    Args:
        passes: distinct passes.
        budget: tokens a batch may hold; padding counts where `padded`. A longer pass is a batch of its own.
        padded: whether every sequence of a batch takes the longest one's room.
        share: whether a common beginning may be read once for passes of a batch.
        alone_above: sequences longer than this are never batched (rotary scalings that look at the longest one).
    """
    filler = Filler(passes, budget, padded, alone_above)
    if not share:
        filler.fill([Star((i,)) for i in range(len(passes))], 0)
    else:
        # Stars keep to themselves: when a scorer asks later for passes with worked examples, no batch of passes that
        # are in no star has to be read again.
        stars, rest = find_stars(passes, alone_above)
        cut = [piece for star in stars for piece in star.pieces(passes, budget)]
        for part in (cut, [Star((i,)) for i in rest]):
            for members, prefix in shared_starts([passes[star.members[0]] for star in part]):
                filler.fill([part[i] for i in members], prefix)
    return sorted(filler.batches, key=lambda batch: -max(len(passes[i].ids) for i in batch.index))


class Filler:
    """Fills batches with stars, longest first."""

    def __init__(self, passes: Sequence[Pass], budget: int, padded: bool, alone_above: int | None) -> None:
        self.passes, self.budget, self.padded, self.alone_above = passes, budget, padded, alone_above
        self.batches: list[Batch] = []

    def fill(self, stars: Sequence[Star], prefix: int) -> None:
        """Batches of these alone, of which all begin with `prefix` common tokens."""
        index, after = list[int](), list[After | None]()
        used = longest = 0

        def close() -> None:
            if index:
                self.batches.append(Batch(tuple(index), tidy(tuple(after))))
                index.clear()
                after.clear()

        for star in sorted(stars, key=lambda star: -star.longest(self.passes)):
            size = star.size(self.passes)
            alone = self.alone_above is not None and star.longest(self.passes) > self.alone_above
            full = (len(index) + 1) * longest if self.padded else used + size - prefix
            if alone or full > self.budget:
                close()
            first = len(index)
            after.append(After(0, prefix) if index and prefix else None)
            after.extend(After(first, star.tokens) for _ in star.members[1:])
            used, longest = (used + size - prefix, longest) if index else (size, size)
            index.extend(star.members)
            if alone:
                close()
        close()
