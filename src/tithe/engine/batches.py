"""Group passes into batches: longest first, up to a token budget, with each shared prefix read once.

Passes share a prefix when they have the same template preamble or show the same worked example, which is another
record's prompt and response. If that record's own pass is read too, it is the exact prefix of every pass that shows it,
and the others only continue it: a star, with that pass at its centre.

Prefixes are nested: of the records with one template preamble, some share a system prompt, and some of those share a
question. The longer prefix continues the shorter one, and each is read once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from tithe.records import Pass

SAME_START = 16  # passes whose first 16 tokens agree are searched for a longer common prefix
WORTH_SHARING = 4  # passes that must have a preamble before it is read once
WORTH_NESTING = SAME_START * (WORTH_SHARING - 1)  # tokens that a longer prefix for some of them must save


@dataclass(frozen=True)
class Star:
    """A group of passes in which all but the first begin with tokens of the first.

    Args:
        members: indices of the passes.
        tokens: length of the prefix that the others share with the first; 0 for a single pass.
    """

    members: tuple[int, ...]
    tokens: int = 0

    def size(self, passes: Sequence[Pass]) -> int:
        """Count the tokens to read, counting shared ones once."""
        if len(self.members) == 1:  # the common case
            return len(passes[self.members[0]].ids)
        return sum(len(passes[i].ids) for i in self.members) - self.tokens * (len(self.members) - 1)

    def longest(self, passes: Sequence[Pass]) -> int:
        if len(self.members) == 1:
            return len(passes[self.members[0]].ids)
        return max(len(passes[i].ids) for i in self.members)

    def pieces(self, passes: Sequence[Pass], budget: int) -> Iterator[Star]:
        """Yield stars of at most `budget` tokens, or of one longer pass; each piece reads the prefix again."""
        part, used = list[int](), 0
        for i in self.members:
            own = len(passes[i].ids) - (self.tokens if part else 0)
            if part and used + own > budget:
                yield Star(tuple(part), self.tokens if len(part) > 1 else 0)
                part, used, own = [], 0, len(passes[i].ids)
            part.append(i)
            used += own
        yield Star(tuple(part), self.tokens if len(part) > 1 else 0)


def find_stars(passes: Sequence[Pass], single_above: int | None = None) -> tuple[list[Star], list[int]]:
    """Group passes that show the same worked examples.

    Args:
        passes: without duplicates.
        single_above: passes longer than this never share a batch.

    Returns:
        The stars, ordered by their first member: each has the pass of the worked examples themselves at its centre if
        that pass exists, and a pass that shares its worked examples with no other is a star by itself. Then the indices
        of all passes that are in no star.
    """
    plain: dict[bytes, int] = {}
    shown: dict[bytes, list[int]] = defaultdict(list)
    for i, pass_ in enumerate(passes):
        together = single_above is None or len(pass_.ids) <= single_above
        if pass_.shots:
            group = together and pass_.shots >= SAME_START
            shown[pass_.ids[: pass_.shots].tobytes() if group else b"%d" % i].append(i)
        elif together:
            plain[pass_.ids.tobytes()] = i
    stars = [make_star(passes, members, plain.get(shots)) for shots, members in shown.items()]
    taken = {i for one in stars for i in one.members}
    return sorted(stars, key=lambda one: one.members[0]), [i for i in range(len(passes)) if i not in taken]


def make_star(passes: Sequence[Pass], members: Sequence[int], centre: int | None) -> Star:
    """Make a star around a pass, or from what its members have in common if no pass is their exact prefix."""
    if centre is not None:
        return Star((centre, *members), len(passes[centre].ids))
    return Star(tuple(members), common_length([passes[i] for i in members]) if len(members) > 1 else 0)


def shared_starts(passes: Sequence[Pass]) -> list[tuple[list[int], int]]:
    """Return groups of passes with the length of their shared prefix; passes that share none come last, with 0."""
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
class Prefix:
    """A token prefix that several passes share.

    Args:
        tokens: its length.
        within: the shorter prefix, shared by more passes, that it continues.
    """

    tokens: int
    within: Prefix | None = None

    def chain(self) -> Iterator[Prefix]:
        """Yield this prefix and the shorter ones it continues, longest first."""
        one: Prefix | None = self
        while one is not None:
            yield one
            one = one.within


Part: TypeAlias = tuple[Sequence[int], Prefix]  # indices of passes, and the prefix they all share


def nested_order(passes: Sequence[Pass], longest: Sequence[int], tokens: int) -> Iterator[tuple[int, Prefix]]:
    """Order passes with a common prefix: longest first, but passes that share a longer prefix next to each other.

    Args:
        passes: one group.
        longest: for each pass, the length of the longest pass in its star.
        tokens: length of the prefix that all of them share.

    Yields:
        The index of each pass and the longest prefix of it that is read once; nothing if no longer prefix is shared.
    """

    def stacked(parts: Iterable[Part]) -> list[Part]:
        """Sort as a stack: the part with the longest pass is popped first, ties in input order."""
        return sorted(parts, key=lambda part: (max([longest[i] for i in part[0]]), -part[0][0]))

    parts = split_by_prefix(passes, range(len(passes)), Prefix(tokens))
    if len(parts) == len(passes):
        return
    todo = stacked(parts)
    while todo:  # a stack, not recursion: in a long dialogue each turn nests one level deeper
        members, start = todo.pop()
        if len(members) == 1:
            yield members[0], start
        else:
            todo += stacked(split_by_prefix(passes, members, start))


def split_by_prefix(passes: Sequence[Pass], members: Sequence[int], start: Prefix) -> list[Part]:
    """Split a group by longer shared prefixes, where that saves enough tokens; other passes become single parts."""
    parts, todo = list[Part](), [(members, start.tokens)]
    while todo:
        those, known = todo.pop()
        for same in group_by_next_tokens(passes, those, known):
            tokens = common_length([passes[i] for i in same], known + SAME_START) if len(same) > 1 else 0
            if (len(same) - 1) * (tokens - start.tokens) >= WORTH_NESTING:
                parts.append((same, Prefix(tokens, start)))
            elif len(same) > 1:
                todo.append((same, tokens))  # saves too little for these passes; a subset may share more
            else:
                parts.append((same, start))
    return parts


def group_by_next_tokens(passes: Sequence[Pass], members: Sequence[int], known: int) -> Iterable[list[int]]:
    """Group passes whose first `known` tokens agree by their next `SAME_START` tokens."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    end = known + SAME_START
    for i in members:
        alike[passes[i].ids[known:end].tobytes() if passes[i].start > end else b"%d" % i].append(i)
    return alike.values()


def common_length(passes: Sequence[Pass], known: int = 0) -> int:
    """Return the length of the longest common prefix.

    It ends before the token that predicts the first response token, so that every score is read from a pass's own tail.

    Args:
        passes: their responses all start beyond `known`.
        known: number of first tokens known to be equal.
    """
    shortest = min(pass_.start for pass_ in passes) - 1
    table = np.stack([pass_.ids[known:shortest] for pass_ in passes])  # (passes, shortest - known)
    same = (table == table[0]).all(axis=0)  # (shortest - known,)
    return int(shortest if same.all() else known + np.argmin(same))


class SharedPrefix(NamedTuple):
    """A prefix that a pass shares with an earlier pass of its batch, where it is read.

    Args:
        place: position of that earlier pass in the batch.
        tokens: length of the prefix.
    """

    place: int
    tokens: int


@dataclass(frozen=True)
class Batch:
    """Passes that are read in one forward pass.

    Args:
        index: their indices in the list that was batched.
        after: for each pass the prefix it shares with an earlier one, or None; empty if no pass shares one.
    """

    index: tuple[int, ...]
    after: tuple[SharedPrefix | None, ...] = ()

    @property
    def saved(self) -> int:
        """Count the tokens saved by reading shared prefixes once."""
        return sum(one.tokens for one in self.after if one is not None)

    def tokens(self, passes: Sequence[Pass]) -> int:
        """Count the tokens to read: all but each pass's last one, which predicts nothing unless others continue it."""
        lengths = [len(passes[i].ids) for i in self.index]
        whole = {one.place for one in self.after if one and one.tokens == lengths[one.place]}
        return sum(lengths) - (len(lengths) - len(whole)) - self.saved

    def halves(self) -> tuple[Batch, Batch]:
        """Split into two batches; a pass that continued one in the other half is read whole."""
        middle = len(self.index) // 2
        first, second = drop_if_empty(self.after[:middle]), drop_if_empty(self.after_of_second(middle))
        return Batch(self.index[:middle], first), Batch(self.index[middle:], second)

    def after_of_second(self, middle: int) -> tuple[SharedPrefix | None, ...]:
        """Return `after` for the second half: the first pass to continue a lost one takes its place."""
        instead: dict[int, SharedPrefix] = {}  # place of a lost pass -> its replacement in this half
        second = list[SharedPrefix | None]()
        for one in self.after[middle:]:
            if one is None or one.place >= middle:
                second.append(one and SharedPrefix(one.place - middle, one.tokens))
            elif one.place in instead:
                place, tokens = instead[one.place]
                second.append(SharedPrefix(place, min(tokens, one.tokens)))
            else:
                instead[one.place] = SharedPrefix(len(second), one.tokens)
                second.append(None)
        return tuple(second)


def drop_if_empty(after: tuple[SharedPrefix | None, ...]) -> tuple[SharedPrefix | None, ...]:
    """Return `after`, or an empty tuple if nothing is shared."""
    return after if any(after) else ()


def make_batches(
    passes: Sequence[Pass],
    *,
    budget: int,
    padded: bool = False,
    share: bool = False,
    single_above: int | None = None,
) -> list[Batch]:
    """Sort passes by length, longest first, and cut them into batches of at most `budget` tokens.

    Longest first, so that running out of memory shows at once. With shared prefixes, passes that continue alike come
    one after the other, and it is the finished batches that are sorted. The cut depends on the passes alone, never on
    what is already answered: a resumed run repeats exactly the batches of an uninterrupted one.

    Args:
        passes: without duplicates.
        budget: tokens a batch may hold, padding included if `padded`. A longer pass becomes a batch of its own.
        padded: whether every sequence is padded to the longest one of its batch.
        share: whether a common prefix may be read once per batch.
        single_above: sequences longer than this are never batched, as some rotary scalings depend on the longest one.
    """
    filler = Filler(passes, budget, padded, single_above)
    if not share:
        batches = filler.longest_first([Star((i,)) for i in range(len(passes))])
    else:
        # Stars get batches of their own: if a scorer asks later for passes with worked examples, the batches of all
        # other passes stay as they are and need not be read again.
        stars, rest = find_stars(passes, single_above)
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
    """A builder of batches, which adds stars in the order it is given them."""

    passes: Sequence[Pass]
    budget: int
    padded: bool
    single_above: int | None

    def share(self, stars: Sequence[Star], tokens: int) -> list[Batch]:
        """Make batches of stars that all share their first `tokens` tokens; some may share more."""
        plain = self.longest_first(stars, tokens)
        if not tokens:
            return plain
        longest = [star.longest(self.passes) for star in stars]
        order = list(nested_order([self.passes[star.members[0]] for star in stars], longest, tokens))
        # The nested order can happen to fill batches worse and save less, so the better of the two is kept.
        return max(self.fill((stars[i], start) for i, start in order), plain, key=tokens_saved) if order else plain

    def longest_first(self, stars: Sequence[Star], tokens: int = 0) -> list[Batch]:
        """Make batches of stars sorted by their longest pass."""
        start, lengths = Prefix(tokens), [star.longest(self.passes) for star in stars]
        order = sorted(range(len(stars)), key=lengths.__getitem__, reverse=True)  # stable: ties keep input order
        return self.fill([(stars[i], start) for i in order])

    def fill(self, stars: Iterable[tuple[Star, Prefix]]) -> list[Batch]:
        """Make batches of stars and their prefixes; a prefix is read with the first star of a batch that has it."""
        batches, index, after = list[Batch](), list[int](), list[SharedPrefix | None]()
        read = dict[Prefix, int]()  # prefix -> place in the batch where it is read
        used = longest = 0

        def close() -> None:
            if index:
                batches.append(Batch(tuple(index), drop_if_empty(tuple(after))))
                for held in (index, after, read):
                    held.clear()

        for star, start in stars:
            size, length = star.size(self.passes), star.longest(self.passes)
            known = start if start in read else next((one for one in start.chain() if one in read), None)
            own = size if known is None else size - known.tokens
            alone = self.single_above is not None and length > self.single_above
            full = (len(index) + 1) * longest if self.padded else used + own
            if alone or full > self.budget:
                close()
                known, own = None, size
            place = len(index)
            after.append(SharedPrefix(read[known], known.tokens) if known and known.tokens else None)
            after.extend(SharedPrefix(place, star.tokens) for _ in star.members[1:])
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
