"""Which rows of a pool can be among the nearest, while products with its blocks go by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

CROWD = 64  # candidates from which a row is repeated more precisely, and 8 for each neighbour


@dataclass
class Sieve:
    """What is left of the pool as candidates, while its blocks go by.

    Args:
        rows: queries.
        k: neighbours wanted of each.
        error: of the products, at most.
        sure: products up to here are surely of cosines that are allowed.
        device: where products are.
    """

    rows: int
    k: int
    error: float
    sure: float
    device: str
    peaks: torch.Tensor = field(init=False)  # (rows, k): the k greatest chunks so far, by their allowed maxima
    crowded: torch.Tensor = field(init=False)  # (rows,) bool: too many candidates
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = field(init=False)  # query, place in the pool, product

    def __post_init__(self) -> None:
        self.peaks = torch.full((self.rows, self.k), -torch.inf, device=self.device)
        self.crowded = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        self.found = (none, none, none.float())

    @property
    def bar(self) -> torch.Tensor:
        """(rows,): candidates have products from here on. k chunks with greater maxima are k greater products."""
        return (self.peaks[:, -1] - 2 * self.error).masked_fill(self.crowded, torch.inf)

    def add(self, products: torch.Tensor, offset: int, chunk: int) -> None:
        """Take in a block: (rows, columns), columns a multiple of the chunk, -inf where nothing is."""
        tops = products.view(self.rows, chunk, -1).amax(1)  # (rows, chunks): of every so many columns the greatest
        chunks = tops.shape[1]
        allowed = tops.float()
        allowed = allowed.masked_fill(allowed > self.sure, -torch.inf) if self.sure < 1 else allowed
        self.peaks = torch.cat([self.peaks, allowed], 1).topk(self.k, 1).values
        hits = (tops >= self.bar[:, None]) & (tops > -torch.inf)
        self.crowded |= hits.sum(1) > self.most
        row, first = (hits & ~self.crowded[:, None]).nonzero(as_tuple=True)
        columns = first[:, None] + chunks * torch.arange(chunk, device=first.device)
        inside = products[row[:, None], columns]  # (hits, chunk)
        hit, which = ((inside >= self.bar[row, None]) & (inside > -torch.inf)).nonzero(as_tuple=True)
        new = (row[hit], offset + columns[hit, which], inside[hit, which].float())
        self.keep(*(torch.cat(both) for both in zip(self.found, new, strict=True)))

    def keep(self, row: torch.Tensor, place: torch.Tensor, product: torch.Tensor) -> None:
        """Only what is above the bar by now, and of rows that are not crowded."""
        self.crowded |= torch.bincount(row[product >= self.bar[row]], minlength=self.rows) > self.most
        left = product >= self.bar[row]
        self.found = (row[left], place[left], product[left])

    def check(self, off: torch.Tensor, error: float) -> None:
        """Where products are off by more than they may be, this device cannot be relied upon: no row is done."""
        if (off.abs() > error).any():
            self.crowded.fill_(True)

    @property
    def most(self) -> int:
        return CROWD + 8 * self.k
