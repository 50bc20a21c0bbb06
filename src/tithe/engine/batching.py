"""Which passes run together: longest first, as many as a token budget takes, a shared beginning read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tithe.records import Pass

SAME_START = 16  # passes that agree in this many first tokens are looked at for a longer common beginning
WORTH_SHARING = 4  # a beginning is read once where at least this many passes have it
TOKENS_WORTH_SHARING = 512  # and worked examples, where that saves so many tokens


@dataclass(frozen=True)
class Batch:
    """Passes that share one forward pass.

    Args:
        index: which, in the list that was batched.
        prefix: how many first tokens they all have in common and the model reads once; 0 where none are shared.
    """

    index: tuple[int, ...]
    prefix: int = 0


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
        share: whether a template's preamble may be read once for all passes of a batch.
        alone_above: sequences longer than this are never batched (rotary scalings that look at the longest one).
    """
    batches: list[Batch] = []
    # Passes with worked examples keep to themselves: when they are asked for later, by another scorer, no batch of
    # the others has to be read again.
    plain, shown = (
        [i for i, pass_ in enumerate(passes) if (pass_.shots > 0) == with_shots] for with_shots in (False, True)
    )
    for part in (plain, shown):
        for found, prefix in shared_starts([passes[i] for i in part]) if share else [(range(len(part)), 0)]:
            members = sorted((part[i] for i in found), key=lambda i: -len(passes[i].ids))
            batches += cut(passes, members, prefix, budget, padded, alone_above)
    return sorted(batches, key=lambda batch: -len(passes[batch.index[0]].ids))


def cut(
    passes: Sequence[Pass], members: Sequence[int], prefix: int, budget: int, padded: bool, alone_above: int | None
) -> list[Batch]:
    """Fill batches in the order of `members`; a batch of one reads its own beginning."""
    batches: list[Batch] = []
    group: list[int] = []
    longest = used = 0

    def close() -> None:
        if group:
            batches.append(Batch(tuple(group), prefix if len(group) > 1 else 0))
            group.clear()

    for i in members:
        length = len(passes[i].ids) - prefix
        alone = alone_above is not None and len(passes[i].ids) > alone_above
        size = (len(group) + 1) * longest if padded else used + length
        if alone or size > budget:
            close()
        if not group:
            longest, used = length, prefix
        group.append(i)
        used += length
        if alone:
            close()
    close()
    return batches


def shared_starts(passes: Sequence[Pass]) -> Sequence[tuple[Sequence[int], int]]:
    """Groups of passes and the length of the beginning each group shares; what shares none comes last, with 0."""
    groups, rest = same_shots(passes)
    starts: dict[bytes, list[int]] = defaultdict(list)
    alone: list[int] = []
    for i in rest:
        if passes[i].start > SAME_START:
            starts[passes[i].ids[:SAME_START].tobytes()].append(i)
        else:
            alone.append(i)
    for members in starts.values():
        if len(members) < WORTH_SHARING:
            alone += members
        else:
            groups.append((members, common_length([passes[i] for i in members])))
    return [*groups, (sorted(alone), 0)]


def same_shots(passes: Sequence[Pass]) -> tuple[list[tuple[list[int], int]], list[int]]:
    """Groups that put the same worked examples in front, where that saves enough reading, and all other passes.

    A group fills batches of its own, the last of them in part: a few tokens saved would be lost to that.
    """
    shots: dict[bytes, list[int]] = defaultdict(list)
    for i, pass_ in enumerate(passes):
        shots[pass_.ids[: pass_.shots].tobytes()].append(i)
    groups, rest = list[tuple[list[int], int]](), list[int]()
    for members in shots.values():
        saved = (len(members) - 1) * passes[members[0]].shots
        if len(members) < WORTH_SHARING or saved < TOKENS_WORTH_SHARING:
            rest += members
        else:
            groups.append((members, common_length([passes[i] for i in members])))
    return groups, sorted(rest)


def common_length(passes: Sequence[Pass]) -> int:
    """Tokens with which all of these begin; less than any response's start, so that every score is read in a tail."""
    shortest = min(pass_.start for pass_ in passes) - 1
    table = np.stack([pass_.ids[:shortest] for pass_ in passes])
    same = (table == table[0]).all(axis=0)
    return int(shortest if same.all() else np.argmin(same))
