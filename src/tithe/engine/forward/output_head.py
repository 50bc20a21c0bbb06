"""From hidden states to likelihoods: the model's own head on chosen rows, its logits some rows or a tile at a time."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any

import torch

from tithe.engine.measure.loss_kernels import LossKernel, choose_loss

HEAD_ROWS = 256  # logits rows at a time, at most, where a head has to be run as it is
# Logits at a time: fewer rows would read the head's weights too often.
CPU_LOGITS = 1 << 22
GPU_LOGITS, GPU_ROWS = 1 << 26, 2048  # 670 MB in bf16 with their float32
# A head that is one matrix is multiplied in tiles on a CPU: the logits of a tile stay in the cache, and so many rows
# stand against one reading of the weights that the multiplication runs at full speed.
TILE_ROWS = 512
TILE_VOCABULARY = 2048
# Rows are filled up to a multiple of this on a CPU: its kernels are compiled and kept per shape, and lengths that all
# differ would compile hundreds, at a cost in time and memory.
EVEN = 32


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
    `forward` is run as it is, on a shallow copy whose backbone is a stub: no list of models to keep.

    Args:
        model: whose head it is.
        loss: the kernel of likelihoods with which a run began; None for the fastest.

    Raises:
        AttributeError: no part of the model holds its token embedding.
        ModelError: the run began with a kernel that is not true here.
    """

    def __init__(self, model: Any, loss: str | None = None) -> None:
        embedding = model.get_input_embeddings()
        found = [(name, part) for name, part in model.named_children() if embedding in part.modules()]
        if not found:
            raise AttributeError("no part of the model holds its token embedding")
        self.vocabulary = int(embedding.weight.shape[0])
        name, self.backbone = found[0]
        stub = Backbone()
        for part, _ in self.backbone.named_children():  # some call a part of it: OPT its `model.decoder`
            stub.add_module(part, Backbone())
        self.shell = copy.copy(model)
        vars(self.shell).pop("forward", None)  # a hook of accelerate's, which would run the whole model
        self.shell._modules = {**model._modules, name: stub}
        self.matrix: torch.nn.Linear | None = None
        self.loss: LossKernel | None = None
        matrix = self.plain_matrix(model)
        if matrix is not None and matrix.weight.device.type == "cuda":
            self.loss = choose_loss(matrix, self.nll, begun=loss)
        else:
            self.matrix = matrix

    def plain_matrix(self, model: Any) -> torch.nn.Linear | None:
        """Return the output embedding if logits are that one product to the last bit: no scale, no cap, no cut."""
        output = model.get_output_embeddings()
        if type(output) is not torch.nn.Linear or output.weight.device.type not in ("cpu", "cuda"):
            return None
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(8, output.in_features, generator=generator)
        hidden = (hidden * torch.logspace(-2, 3, 8)[:, None]).to(output.weight)  # a cap bends large ones
        with torch.inference_mode():
            whole, product = self.logits(hidden), output(hidden)
        same = whole.shape == product.shape and bool(torch.equal(whole.float(), product.float()))
        return output if same else None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute (rows, dim) -> (rows, vocabulary)."""
        out = self.shell(inputs_embeds=hidden[None], use_cache=False)
        logits: torch.Tensor = out.logits[0]
        return logits

    def nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return -log p of each target in float32: (rows,), a few rows of logits at a time, or by a fused kernel."""
        if self.loss is not None and self.loss.way is not None:
            return self.loss.nll(hidden, targets)
        size, count = HEAD_ROWS, len(targets)
        if hidden.device.type == "cpu":
            size = max(EVEN, min(size, CPU_LOGITS // self.vocabulary // EVEN * EVEN))
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, -count % EVEN))
            targets = torch.nn.functional.pad(targets, (0, -count % EVEN))
        elif hidden.device.type == "cuda":
            size = min(GPU_ROWS, max(size, GPU_LOGITS // self.vocabulary))
        if self.matrix is not None:
            size = TILE_ROWS
        parts = [
            token_nll(self.logits(rows), wanted) if self.matrix is None else tiled_nll(rows, self.matrix, wanted)
            for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        ]
        return torch.cat(parts)[:count]


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy per row in float32, whatever the logits' dtype: (rows, vocabulary) -> (rows,)."""
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


def tiled_nll(hidden: torch.Tensor, matrix: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy per row from hidden states, the vocabulary in tiles: (rows, dim), (rows,) -> (rows,).

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
