"""Roads through a model: token ids in, NLL of each response token out.

Three roads, from fast to safe. `packed`: sequences one after another in one row, no padding. `padded`: right-padded
rows. `single`: one sequence, the model's own full forward. `probe.py` finds which are true for a model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.attention import segments
from tithe.records import Pass

HEAD_ROWS = 256  # logits rows at a time, at most, where a head has to be run as it is
CPU_LOGITS = 1 << 22  # logits at a time on a CPU: fewer rows would read the head's weights too often
# A head that is one matrix is multiplied in tiles on a CPU: the logits of a tile stay in the cache, and so many rows
# stand against one reading of the weights that the multiplication runs at full speed.
TILE_ROWS = 512
TILE_VOCABULARY = 2048
# Rows are filled up to a multiple of this on a CPU: its kernels are compiled and kept per shape, and lengths that all
# differ would compile hundreds, at a cost in time and memory.
EVEN = 32  # of the output head
PACK_EVEN = 64  # of a pack
TokenNlls = npt.NDArray[np.float32]


def split_last(pass_: Pass) -> tuple[npt.NDArray[np.int64], range]:
    """What the model reads (the last token predicts nothing) and the places whose next token is scored."""
    first = max(pass_.start, 1) - 1
    return pass_.ids[:-1].astype(np.int64), range(first, len(pass_.ids) - 1)


class Handed(tuple[torch.Tensor]):
    """What a backbone gives back: hidden states, and None for whatever else a head looks for."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Backbone(torch.nn.Module):
    """Stands in for a model's backbone, and for its parts, and gives back the hidden states it is handed."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Handed:
        return Handed((inputs_embeds,))


class Head:
    """The model's own way from hidden states to logits, run on chosen rows alone.

    Soft-capping, logit scales and vocabulary cuts live in each model's `forward`, after the backbone. So that
    `forward` is run as it is, on a shallow copy whose backbone is a stand-in: no list of models to keep.

    Raises:
        AttributeError: no part of the model holds its token embedding.
    """

    def __init__(self, model: Any) -> None:
        embedding = model.get_input_embeddings()
        found = [(name, part) for name, part in model.named_children() if embedding in part.modules()]
        if not found:
            raise AttributeError("no part of the model holds its token embedding")
        self.vocabulary = int(embedding.weight.shape[0])
        name, self.backbone = found[0]
        stand_in = Backbone()
        for part, _ in self.backbone.named_children():  # some call a part of it: OPT its `model.decoder`
            stand_in.add_module(part, Backbone())
        self.shell = copy.copy(model)
        self.shell._modules = {**model._modules, name: stand_in}
        self.matrix = self.plain_matrix(model)

    def plain_matrix(self, model: Any) -> torch.nn.Linear | None:
        """The output embedding, if logits are that one product to the last bit: no scale, no cap, nothing cut."""
        output = model.get_output_embeddings()
        if type(output) is not torch.nn.Linear or output.weight.device.type != "cpu":
            return None
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(8, output.in_features, generator=generator)
        hidden = (hidden * torch.logspace(-2, 3, 8)[:, None]).to(output.weight.dtype)  # a cap bends large ones
        with torch.inference_mode():
            whole, product = self.logits(hidden), output(hidden)
        same = whole.shape == product.shape and bool(torch.equal(whole.float(), product.float()))
        return output if same else None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, dim) -> (rows, vocabulary)."""
        out = self.shell(inputs_embeds=hidden[None], use_cache=False)
        logits: torch.Tensor = out.logits[0]
        return logits

    def nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target, in float32: (rows,), a few rows of logits at a time."""
        size, count = HEAD_ROWS, len(targets)
        if hidden.device.type == "cpu":
            size = max(EVEN, min(size, CPU_LOGITS // self.vocabulary // EVEN * EVEN))
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, -count % EVEN))
            targets = torch.nn.functional.pad(targets, (0, -count % EVEN))
        if self.matrix is not None:
            size = TILE_ROWS
        parts = [
            token_nll(self.logits(rows), wanted) if self.matrix is None else tiled_nll(rows, self.matrix, wanted)
            for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        ]
        return torch.cat(parts)[:count]


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per row in float32, whatever the logits' dtype: (rows, vocabulary), (rows,) -> (rows,)."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def tiled_nll(hidden: torch.Tensor, matrix: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """The same from hidden states and the output matrix, the vocabulary in tiles: (rows, dim), (rows,) -> (rows,).

    The log-sum-exp runs along: `total` is the sum of exp(logit - highest) so far.
    """
    highest = hidden.new_full((len(hidden),), float("-inf"), dtype=torch.float32)
    total, wanted = torch.zeros_like(highest), torch.zeros_like(highest)
    room = hidden.new_empty(len(hidden) * TILE_VOCABULARY)
    biases = (None,) if matrix.bias is None else torch.split(matrix.bias, TILE_VOCABULARY)
    start = 0
    for weight, bias in zip_longest(torch.split(matrix.weight, TILE_VOCABULARY), biases):
        tile = room[: len(hidden) * len(weight)].view(len(hidden), len(weight))
        torch.mm(hidden, weight.T, out=tile)
        logits = (tile if bias is None else tile.add_(bias)).float()
        inside = (targets >= start) & (targets < start + len(weight))
        place = (targets - start).clamp(0, len(weight) - 1)[:, None]
        wanted = torch.where(inside, logits.gather(1, place)[:, 0], wanted)
        above = torch.maximum(highest, logits.amax(dim=1))
        total.mul_((highest - above).exp_()).add_(logits.sub_(above[:, None]).exp_().sum(dim=1))
        highest = above
        start += len(weight)
    return highest + total.log_() - wanted


def packed(head: Head, passes: Sequence[Pass], device: torch.device, prefix: int = 0) -> list[TokenNlls]:
    """All sequences in one row, attention within each; their first `prefix` tokens, the same in all, are read once."""
    inputs = [passes[0].ids[:prefix].astype(np.int64)] if prefix else []
    places, targets, positions = [], [], [np.arange(len(ids)) for ids in inputs]
    offset = prefix
    for pass_ in passes:
        ids, scored = split_last(pass_)
        inputs.append(ids[prefix:])
        positions.append(np.arange(prefix, len(ids)))
        places.append(np.arange(scored.start, scored.stop) - prefix + offset)
        targets.append(pass_.ids[scored.start + 1 :].astype(np.int64))
        offset += len(ids) - prefix
    if device.type == "cpu" and offset % PACK_EVEN:
        filler = -offset % PACK_EVEN  # a segment of its own, read by nobody
        inputs.append(np.zeros(filler, dtype=np.int64))
        positions.append(np.zeros(filler, dtype=np.int64))  # counted up, they could switch a rotary scaling
    with segments([len(ids) for ids in inputs], prefix):
        hidden = head.backbone(
            input_ids=to(np.concatenate(inputs)[None], device),
            position_ids=to(np.concatenate(positions)[None], device),
            use_cache=False,
        )[0][0]  # (tokens, dim)
    nll = head.nll(hidden[to(np.concatenate(places), device)], to(np.concatenate(targets), device))
    return cut(nll, [len(t) for t in targets])


def padded(head: Head, passes: Sequence[Pass], device: torch.device) -> list[TokenNlls]:
    """Right-padded rows: with causal attention no real token sees the padding."""
    width = max(len(p.ids) for p in passes) - 1
    ids = np.zeros((len(passes), width), dtype=np.int64)
    mask = np.zeros((len(passes), width), dtype=np.int64)
    places, targets = [], []
    for row, pass_ in enumerate(passes):
        read, scored = split_last(pass_)
        ids[row, : len(read)], mask[row, : len(read)] = read, 1
        places.append(np.arange(scored.start, scored.stop) + row * width)
        targets.append(pass_.ids[scored.start + 1 :].astype(np.int64))
    # A full mask of ones is left out: that lets the fused causal kernels run.
    given = None if mask.all() else to(mask, device)
    hidden = head.backbone(input_ids=to(ids, device), attention_mask=given, use_cache=False)[0]
    rows = hidden.flatten(0, 1)[to(np.concatenate(places), device)]
    return cut(head.nll(rows, to(np.concatenate(targets), device)), [len(t) for t in targets])


def single(model: Any, passes: Sequence[Pass], device: torch.device) -> list[TokenNlls]:
    """One by one through the model's own forward, full logits: slow, and what the others are held against."""
    out = []
    for pass_ in passes:
        ids, scored = split_last(pass_)
        logits = model(input_ids=to(ids[None], device), use_cache=False).logits[0]
        targets = to(pass_.ids[scored.start + 1 :].astype(np.int64), device)
        out.extend(cut(token_nll(logits[scored.start : scored.stop], targets), [len(scored)]))
    return out


def to(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def cut(nll: torch.Tensor, lengths: Sequence[int]) -> list[TokenNlls]:
    values = nll.float().cpu().numpy()
    return np.split(values, np.cumsum(lengths)[:-1])
