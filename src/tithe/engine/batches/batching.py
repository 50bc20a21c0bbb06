"""Which passes run together: longest first, as many as a token budget takes, common beginnings read once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tithe.engine.batches.sharing import Beginning, Star, find_stars, nested, shared_starts
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
        """Count the tokens that are not read again."""
        return sum(one.tokens for one in self.after if one is not None)

    def tokens(self, passes: Sequence[Pass]) -> int:
        """Tokens that are read: of each pass all but the last, which predicts nothing, unless others continue it."""
        whole = {one.place for one in self.after if one and one.tokens == len(passes[self.index[one.place]].ids)}
        return sum(len(passes[i].ids) for i in self.index) - (len(self.index) - len(whole)) - self.saved

    def halves(self) -> tuple[Batch, Batch]:
        """Return two smaller batches; what continued a pass of the other half is read whole."""
        middle = len(self.index) // 2
        first, second = tidy(self.after[:middle]), tidy(self.after_of_second(middle))
        return Batch(self.index[:middle], first), Batch(self.index[middle:], second)

    def after_of_second(self, middle: int) -> tuple[After | None, ...]:
        instead: dict[int, After] = {}  # of a pass that is no longer there
        second = list[After | None]()
        for one in self.after[middle:]:
            if one is None or one.place >= middle:
                second.append(one and After(one.place - middle, one.tokens))
            elif one.place in instead:
                place, tokens = instead[one.place]
                second.append(After(place, min(tokens, one.tokens)))
            else:
                instead[one.place] = After(len(second), one.tokens)
                second.append(None)
        return tuple(second)


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

    Longest first, so that running out of memory shows at once. Where beginnings are read once, passes that go on alike
    come one after the other, and the batches are sorted when they are made. The cut depends on the passes alone, never
    on what is already answered: a resumed run then repeats exactly the batches of a straight one.

    Args:
        passes: distinct passes.
        budget: tokens a batch may hold; padding counts where `padded`. A longer pass is a batch of its own.
        padded: whether every sequence of a batch takes the longest one's room.
        share: whether a common beginning may be read once for passes of a batch.
        alone_above: sequences longer than this are never batched (rotary scalings that look at the longest one).
    """
    filler = Filler(passes, budget, padded, alone_above)
    if not share:
        batches = filler.longest_first([Star((i,)) for i in range(len(passes))])
    else:
        # Stars keep to themselves: when a scorer asks later for passes with worked examples, no batch of passes that
        # are in no star has to be read again.
        stars, rest = find_stars(passes, alone_above)
        cut = [piece for star in stars for piece in star.pieces(passes, budget)]
        batches = [
            batch
            for part in (cut, [Star((i,)) for i in rest])
            for members, tokens in shared_starts([passes[star.members[0]] for star in part])
            for batch in filler.share([part[i] for i in members], tokens)
        ]
    return sorted(batches, key=lambda batch: -max(len(passes[i].ids) for i in batch.index))


@dataclass(frozen=True)
class Filler:
    """Fills batches with stars, in their order."""

    passes: Sequence[Pass]
    budget: int
    padded: bool
    alone_above: int | None

    def share(self, stars: Sequence[Star], tokens: int) -> list[Batch]:
        """Batches of these alone, of which all have so many first tokens in common, and some have more."""
        plain = self.longest_first(stars, tokens)
        if not tokens:
            return plain
        longest = [star.longest(self.passes) for star in stars]
        order = list(nested([self.passes[star.members[0]] for star in stars], longest, tokens))
        # In another order batches can happen to be less full, and some more.
        return max(self.fill((stars[i], start) for i, start in order), plain, key=tokens_saved) if order else plain

    def longest_first(self, stars: Sequence[Star], tokens: int = 0) -> list[Batch]:
        start = Beginning(tokens)
        return self.fill((star, start) for star in sorted(stars, key=lambda star: -star.longest(self.passes)))

    def fill(self, stars: Iterable[tuple[Star, Beginning]]) -> list[Batch]:
        """Batches of these stars, each with what it begins with; that is read where it first comes in a batch."""
        batches, index, after = list[Batch](), list[int](), list[After | None]()
        read = dict[Beginning, int]()  # at which place of the batch
        used = longest = 0

        def close() -> None:
            if index:
                batches.append(Batch(tuple(index), tidy(tuple(after))))
                for held in (index, after, read):
                    held.clear()

        for star, start in stars:
            size, length = star.size(self.passes), star.longest(self.passes)
            known = start if start in read else next((one for one in start.chain() if one in read), None)
            own = size if known is None else size - known.tokens
            alone = self.alone_above is not None and length > self.alone_above
            full = (len(index) + 1) * longest if self.padded else used + own
            if alone or full > self.budget:
                close()
                known, own = None, size
            place = len(index)
            after.append(After(read[known], known.tokens) if known and known.tokens else None)
            after.extend(After(place, star.tokens) for _ in star.members[1:])
            used, longest = (used + own, longest) if index else (own, length)
            index.extend(star.members)
            if known is not start:
                read |= {one: read.get(one, place) for one in start.chain()}
            if alone:
                close()
        close()
        return batches


def tokens_saved(batches: Sequence[Batch]) -> int:
    return sum(batch.saved for batch in batches)
