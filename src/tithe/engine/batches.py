"""Make batches of passes: longest first, as many as a token budget takes, common beginnings read once.

Passes share a beginning where they have a template's preamble or a worked example in common, which is another example's
prompt and response. Where that example's own pass is read too, it is the very beginning of every pass that shows it,
and these only continue it: a star, with that pass at its centre.

Beginnings lie within each other: of the records that have a template's preamble some have one system prompt, and some
of these one question. The longer beginning goes on from the shorter one, and each is read once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from tithe.records import Pass

SAME_START = 16  # passes that agree in this many first tokens are looked at for a longer common beginning
WORTH_SHARING = 4  # a preamble is read once where at least this many passes have it
WORTH_NESTING = SAME_START * (WORTH_SHARING - 1)  # tokens that must be saved where some of these go on alike


@dataclass(frozen=True)
class Star:
    """Passes of which all but the first begin with tokens of the first.

    Args:
        members: which.
        tokens: how many tokens the others have in common with the first; 0 where there are no others.
    """

    members: tuple[int, ...]
    tokens: int = 0

    def size(self, passes: Sequence[Pass]) -> int:
        """Count the tokens to read, each common one once."""
        if len(self.members) == 1:  # most are
            return len(passes[self.members[0]].ids)
        return sum(len(passes[i].ids) for i in self.members) - self.tokens * (len(self.members) - 1)

    def longest(self, passes: Sequence[Pass]) -> int:
        if len(self.members) == 1:
            return len(passes[self.members[0]].ids)
        return max(len(passes[i].ids) for i in self.members)

    def pieces(self, passes: Sequence[Pass], budget: int) -> Iterator[Star]:
        """Stars of at most so many tokens, as far as single passes allow; each reads the beginning again."""
        part, used = list[int](), 0
        for i in self.members:
            own = len(passes[i].ids) - (self.tokens if part else 0)
            if part and used + own > budget:
                yield Star(tuple(part), self.tokens if len(part) > 1 else 0)
                part, used, own = [], 0, len(passes[i].ids)
            part.append(i)
            used += own
        yield Star(tuple(part), self.tokens if len(part) > 1 else 0)


def find_stars(passes: Sequence[Pass], alone_above: int | None = None) -> tuple[list[Star], list[int]]:
    """Passes that show the same worked examples, each star with the examples' own pass where it is there; and the rest.

    Args:
        passes: distinct ones.
        alone_above: longer ones never share a batch.

    Returns:
        Stars, of one pass each where a pass with shots has no company, in the order of their first; and all passes
        that are in none.
    """
    plain: dict[bytes, int] = {}
    shown: dict[bytes, list[int]] = defaultdict(list)
    for i, pass_ in enumerate(passes):
        together = alone_above is None or len(pass_.ids) <= alone_above
        if pass_.shots:
            group = together and pass_.shots >= SAME_START
            shown[pass_.ids[: pass_.shots].tobytes() if group else b"%d" % i].append(i)
        elif together:
            plain[pass_.ids.tobytes()] = i
    stars = [star(passes, members, plain.get(shots)) for shots, members in shown.items()]
    taken = {i for one in stars for i in one.members}
    return sorted(stars, key=lambda one: one.members[0]), [i for i in range(len(passes)) if i not in taken]


def star(passes: Sequence[Pass], members: Sequence[int], centre: int | None) -> Star:
    if centre is not None:
        return Star((centre, *members), len(passes[centre].ids))
    return Star(tuple(members), common_length([passes[i] for i in members]) if len(members) > 1 else 0)


def shared_starts(passes: Sequence[Pass]) -> list[tuple[list[int], int]]:
    """Group passes by shared beginning, with its length; passes that share none come last, with 0."""
    groups = list[tuple[list[int], int]]()
    starts: dict[bytes, list[int]] = defaultdict(list)
    alone: list[int] = []
    for i, pass_ in enumerate(passes):
        if pass_.start > SAME_START:
            starts[pass_.ids[:SAME_START].tobytes()].append(i)
        else:
            alone.append(i)
    for members in starts.values():
        if len(members) < WORTH_SHARING:
            alone += members
        else:
            groups.append((members, common_length([passes[i] for i in members])))
    return [*groups, (sorted(alone), 0)]


@dataclass(frozen=True, eq=False)
class Beginning:
    """What several passes begin with.

    Args:
        tokens: how many these are.
        within: a shorter one, of more passes, that it begins with.
    """

    tokens: int
    within: Beginning | None = None

    def chain(self) -> Iterator[Beginning]:
        """It, and those that it begins with, the longest first."""
        one: Beginning | None = self
        while one is not None:
            yield one
            one = one.within


Part: TypeAlias = tuple[Sequence[int], Beginning]  # passes, and what they all begin with


def nested(passes: Sequence[Pass], longest: Sequence[int], tokens: int) -> Iterator[tuple[int, Beginning]]:
    """Passes that begin alike, longest first, but side by side those that go on alike, and again among these.

    Args:
        passes: of one group.
        longest: of each the tokens of the longest one that continues it alone.
        tokens: how many all have in common.

    Yields:
        Which, and the longest beginning that is read once; nothing where none go on alike.
    """

    def stacked(parts: Iterable[Part]) -> list[Part]:
        """The longest, which comes first, last; of equally long ones the first."""
        return sorted(parts, key=lambda part: (max([longest[i] for i in part[0]]), -part[0][0]))

    parts = split(passes, range(len(passes)), Beginning(tokens))
    if len(parts) == len(passes):
        return
    todo = stacked(parts)
    while todo:  # not by recursion: in a long dialogue each turn goes on from the one before
        members, start = todo.pop()
        if len(members) == 1:
            yield members[0], start
        else:
            todo += stacked(split(passes, members, start))


def split(passes: Sequence[Pass], members: Sequence[int], start: Beginning) -> list[Part]:
    """Those together that go on alike, where that saves enough; all others by themselves."""
    parts, todo = list[Part](), [(members, start.tokens)]
    while todo:
        those, known = todo.pop()
        for same in go_on_alike(passes, those, known):
            tokens = common_length([passes[i] for i in same], known + SAME_START) if len(same) > 1 else 0
            if (len(same) - 1) * (tokens - start.tokens) >= WORTH_NESTING:
                parts.append((same, Beginning(tokens, start)))
            elif len(same) > 1:
                todo.append((same, tokens))  # too few tokens for so few passes; some may have more in common
            else:
                parts.append((same, start))
    return parts


def go_on_alike(passes: Sequence[Pass], members: Sequence[int], known: int) -> Iterable[list[int]]:
    """Of passes with so many common first tokens those together that agree in the next `SAME_START`, too."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    end = known + SAME_START
    for i in members:
        alike[passes[i].ids[known:end].tobytes() if passes[i].start > end else b"%d" % i].append(i)
    return alike.values()


def common_length(passes: Sequence[Pass], known: int = 0) -> int:
    """Count the tokens with which all begin; fewer than any response's start, so that each score is read in a tail.

    Args:
        passes: whose starts all lie behind what is known.
        known: how many first tokens are known to be common.
    """
    shortest = min(pass_.start for pass_ in passes) - 1
    table = np.stack([pass_.ids[known:shortest] for pass_ in passes])
    same = (table == table[0]).all(axis=0)
    return int(shortest if same.all() else known + np.argmin(same))


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
        lengths = [len(passes[i].ids) for i in self.index]
        whole = {one.place for one in self.after if one and one.tokens == lengths[one.place]}
        return sum(lengths) - (len(lengths) - len(whole)) - self.saved

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
    return sorted(batches, key=lambda batch: -max([len(passes[i].ids) for i in batch.index]))


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
        start, lengths = Beginning(tokens), [star.longest(self.passes) for star in stars]
        order = sorted(range(len(stars)), key=lengths.__getitem__, reverse=True)  # equally long ones stay in order
        return self.fill([(stars[i], start) for i in order])

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
