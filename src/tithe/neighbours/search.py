"""Nearest neighbours by cosine: the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from tithe.errors import DataError, SettingsError
from tithe.neighbours.found import Neighbours, Search
from tithe.neighbours.rows import Rows, Vectors, distinct

if TYPE_CHECKING:
    from tithe.neighbours.ann import Ann

EXACT_UP_TO = 1_000_000  # rows of the pool

Method: TypeAlias = "Literal['auto', 'exact', 'ann'] | Ann"


def nearest(
    vectors: Vectors,
    k: int = 1,
    *,
    pool: Vectors | None = None,
    exclude_above: float | None = None,
    device: str = "auto",
    method: Method = "auto",
) -> Neighbours:
    """The k nearest by cosine of each vector, ties by the lowest row.

    The exact search is exact for each row, also among near ties and thousands of equal vectors, and gives the same on
    every machine: a cosine is taken to a multiple of 2^-40, and is the same number whatever it is computed with (see
    `cosine`). Equal vectors have cosine 1. A vector of zeros has cosine 0 with every vector, another one of zeros
    included, and so its neighbours are the lowest rows. Memory is bounded: some 200 MB beside vectors and result.

    Args:
        vectors: (n, dim) float32, each of length 1 (or zeros).
        k: how many neighbours, at least 1.
        pool: (rows, dim) where to find them; None for `vectors` themselves, of which none is its own neighbour.
        exclude_above: neighbours of this cosine or a greater one are passed over, for the next best; compared before
            a cosine is rounded to float32. 1 passes over equal vectors.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        method: `exact`; `ann` or the settings of an approximate search; `auto` is exact for pools of up to a million.

    Raises:
        DataError: numbers that are not finite, lengths that are not 1, or a pool of another dimension.
        SettingsError: a setting out of range.
        MissingExtraError: an approximate search without the extra `tithe[ann]`.
    """
    check(k, exclude_above, method)
    queries, targets = Rows.of(vectors, device), Rows.of(vectors if pool is None else pool, device, "pool")
    if queries.dim != targets.dim:
        raise DataError(
            f"vectors have {queries.dim} numbers each, those of the pool {targets.dim}", hint="use one encoder for both"
        )
    groups = distinct(targets)
    asked = groups if pool is None else distinct(queries)
    ask = Search(queries, asked, targets, groups, k, pool is None, exclude_above)
    if method == "exact" or (method == "auto" and len(targets) <= EXACT_UP_TO):
        return ask.exact()
    from tithe.neighbours.ann import Ann, approximate

    return approximate(ask, method if isinstance(method, Ann) else Ann())


def check(k: int, exclude_above: float | None, method: Method) -> None:
    if k < 1:
        raise SettingsError(f"at least 1 neighbour is to be found, not {k}")
    if exclude_above is not None and not -1 < exclude_above <= 1:
        raise SettingsError(
            f"neighbours are passed over from a cosine above -1 and at most 1, not {exclude_above}",
            hint="1 passes over equal vectors, 0.95 near duplicates",
        )
    if isinstance(method, str) and method not in ("auto", "exact", "ann"):
        raise SettingsError(f"there is no search `{method}`", hint="there is: ann, auto, exact")
