"""Drawing tokens so that a prompt gets the same answer in every batch.

`generate` draws all rows of a batch from one stream of random numbers, so that a row's answer depends on its
neighbours. Here each prompt has a stream of its own, fixed by its seed: its n-th token is drawn with the n-th number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

FIRST = 256  # most likely tokens that are looked at first; seldom are more needed, and to sort them all is slow


class Draw(LogitsProcessor):
    """Draws every row's next token and leaves no other to choose from, so that a greedy `generate` takes it.

    Args:
        seeds: one per row.
        start: tokens of the padded prompt.
        steps: tokens to be drawn at most.
        temperature: above 0; scores are divided by it.
        top_p: the least set of most likely tokens that has this probability is drawn from.
        device: where the scores are.
    """

    def __init__(
        self, seeds: Sequence[int], start: int, steps: int, temperature: float, top_p: float, device: torch.device
    ) -> None:
        self.start, self.temperature, self.top_p = start, temperature, top_p
        numbers = np.stack([np.random.Generator(np.random.Philox(seed)).random(steps) for seed in seeds])
        kind = torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
        self.numbers = torch.tensor(numbers, dtype=kind, device=device)  # (rows, steps) in [0, 1)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        numbers = self.numbers[:, input_ids.shape[1] - self.start]
        chosen = draw(scores.to(self.numbers.dtype) / self.temperature, numbers, self.top_p)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


def draw(scores: torch.Tensor, numbers: torch.Tensor, top_p: float) -> torch.Tensor:
    """(rows,) token ids: where each row's number falls among the kept probabilities, laid end to end by token id.

    By token id and not by rank: rounding that swaps two ranks then moves no boundary but theirs.
    """
    kept = nucleus(scores.softmax(-1), top_p)
    ends = kept.cumsum(-1)
    aims = numbers[:, None] * ends[:, -1:]
    chosen = torch.searchsorted(ends, aims, right=True)[:, 0]
    last = kept.shape[-1] - 1 - (kept.flip(-1) > 0).int().argmax(-1)  # rounding may aim beyond all of them
    return torch.minimum(chosen, last)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probabilities of the most likely tokens that together reach `top_p`, 0 elsewhere; at least one is kept.

    Tokens as likely as the last of them are kept with it, so that no order among equals decides.
    """
    if top_p >= 1:
        return probabilities
    ranked = probabilities.topk(min(FIRST, probabilities.shape[-1]), dim=-1).values
    if bool((ranked.sum(-1) < top_p).any()):
        ranked = probabilities.sort(dim=-1, descending=True).values
    before = ranked.cumsum(-1) - ranked
    least = ranked.masked_fill(before >= top_p, float("inf")).amin(-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)
