"""What people use instead: the authors' loop, and batches of padded rows with logits of every position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tithe.records import Pass

SIZE = 16  # rows of a batch
IGNORED = -100


def loop(model: Any, passes: Sequence[Pass], device: torch.device) -> list[np.ndarray]:
    """One pass at a time, full logits, a Python loop over the response's tokens.

    The authors' scripts, in the cheaper reading of their description: no loss of the model's besides, and the
    response's tokens alone. Rows of logits become float32, so that numbers can be compared.
    """
    out = []
    for pass_ in passes:
        ids = torch.from_numpy(pass_.ids.astype(np.int64))[None].to(device)
        with torch.no_grad():
            logits = model(ids).logits
        losses = []
        for i in range(max(pass_.start, 1), ids.shape[1]):
            distribution = torch.log_softmax(logits[0, i - 1].float(), dim=-1)
            losses.append(torch.nn.functional.nll_loss(distribution[None], ids[0, i : i + 1]).item())
        out.append(np.array(losses, dtype=np.float32))
    return out


def batched(model: Any, passes: Sequence[Pass], device: torch.device, *, by_length: bool) -> list[np.ndarray]:
    """Batches of right-padded rows, logits and cross-entropy of every position, in order or longest first."""
    order = sorted(range(len(passes)), key=lambda i: -len(passes[i].ids)) if by_length else range(len(passes))
    out: list[np.ndarray] = [np.empty(0)] * len(passes)
    for first in range(0, len(passes), SIZE):
        chosen = order[first : first + SIZE]
        for i, nll in zip(chosen, one_batch(model, [passes[i] for i in chosen], device), strict=True):
            out[i] = nll
    return out


def one_batch(model: Any, passes: Sequence[Pass], device: torch.device) -> list[np.ndarray]:
    width = max(len(pass_.ids) for pass_ in passes)
    ids = np.zeros((len(passes), width), dtype=np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
    for row, pass_ in enumerate(passes):
        ids[row, : len(pass_.ids)], mask[row, : len(pass_.ids)] = pass_.ids, 1
        labels[row, max(pass_.start, 1) : len(pass_.ids)] = pass_.ids[max(pass_.start, 1) :]
    ids_there, mask_there, labels_there = (torch.from_numpy(x).to(device) for x in (ids, mask, labels))
    with torch.no_grad():
        logits = model(input_ids=ids_there, attention_mask=mask_there, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels_there[:, 1:].flatten(), reduction="none", ignore_index=IGNORED
        )
    rows = nll.view(len(passes), width - 1).cpu().numpy()
    return [row[max(pass_.start, 1) - 1 : len(pass_.ids) - 1] for row, pass_ in zip(rows, passes, strict=True)]
