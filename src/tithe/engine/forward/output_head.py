"""From hidden states to likelihoods: the model's own output head on chosen rows, a few rows or one tile at a time."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any

import torch

from tithe.engine.measure.loss_kernels import LossKernel, choose_loss

HEAD_ROWS = 256  # most rows of logits at a time, if the head is the model's own forward
# Logits held at a time. Much fewer would mean reading the head's weights too often.
CPU_LOGITS = 1 << 22
GPU_LOGITS, GPU_ROWS = 1 << 26, 2048  # 670 MB in bf16 and their float32 copy
# On a CPU a head that is one matrix is multiplied in tiles: a tile's logits stay in the cache, and enough rows share
# one reading of the weights for the product to run at full speed.
TILE_ROWS = 512
TILE_VOCABULARY = 2048
# On a CPU rows are padded to a multiple of this: kernels are compiled and cached per shape, and arbitrary lengths would
# compile hundreds of them, at a cost in time and memory.
EVEN = 32


class Handed(tuple[torch.Tensor]):
    """A backbone's output: hidden states, and None for any other field that a head looks for."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Backbone(torch.nn.Module):
    """A stub for a model's backbone, and for its parts, that returns the hidden states it is given."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Handed:
        return Handed((inputs_embeds,))


class OutputHead:
    """The model's own computation from hidden states to logits, run on chosen rows only.

    Each model's `forward` applies soft caps, logit scales and vocabulary cuts after the backbone. So that `forward`
    itself is run, on a shallow copy of the model whose backbone is a stub; no list of architectures is needed.

    Args:
        model: the model whose head it is.
        loss: the likelihood kernel that a resumed run began with; None for the fastest.

    Raises:
        AttributeError: no child module holds the token embedding.
        ModelError: the run began with a kernel that is not correct here.
    """

    def __init__(self, model: Any, loss: str | None = None) -> None:
        embedding = model.get_input_embeddings()
        found = [(name, part) for name, part in model.named_children() if embedding in part.modules()]
        if not found:
            raise AttributeError("no part of the model holds its token embedding")
        self.vocabulary = int(embedding.weight.shape[0])
        name, self.backbone = found[0]
        stub = Backbone()
        for part, _ in self.backbone.named_children():  # some models call a part of it: OPT its `model.decoder`
            stub.add_module(part, Backbone())
        self.shell = copy.copy(model)
        vars(self.shell).pop("forward", None)  # accelerate's hook, which is bound to the whole model
        self.shell._modules = {**model._modules, name: stub}
        self.matrix: torch.nn.Linear | None = None
        self.loss: LossKernel | None = None
        matrix = self.plain_matrix(model)
        if matrix is not None and matrix.weight.device.type == "cuda":
            self.loss = choose_loss(matrix, self.nll, begun=loss)
        else:
            self.matrix = matrix

    def plain_matrix(self, model: Any) -> torch.nn.Linear | None:
        """Return the output matrix if logits are exactly that one product: no scale, no cap, no cut."""
        output = model.get_output_embeddings()
        if type(output) is not torch.nn.Linear or output.weight.device.type not in ("cpu", "cuda"):
            return None
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(8, output.in_features, generator=generator)
        hidden = (hidden * torch.logspace(-2, 3, 8)[:, None]).to(output.weight)  # large ones, which a soft cap bends
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
        """Return -log p of each target in float32: (rows,); by a fused kernel, or a few rows of logits at a time."""
        if self.loss is not None and self.loss.kernel is not None:
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
    """Return the cross-entropy of each row in float32, whatever the logits' dtype: (rows, vocabulary) -> (rows,)."""
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


def tiled_nll(hidden: torch.Tensor, matrix: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each row from hidden states, in tiles of the vocabulary: (rows, dim) -> (rows,).

    The log-sum-exp is computed online (Milakov and Gimelshein 2018, arXiv:1805.02867): `highest` is the largest logit
    so far, `total` the sum of exp(logit - highest), which is rescaled whenever `highest` grows.
    """
    highest = hidden.new_full((len(hidden),), float("-inf"), dtype=torch.float32)
    total, wanted = torch.zeros_like(highest), torch.zeros_like(highest)
    buffer = hidden.new_empty(len(hidden) * TILE_VOCABULARY)  # one allocation for all tiles
    biases = (None,) if matrix.bias is None else torch.split(matrix.bias, TILE_VOCABULARY)
    start = 0
    for weight, bias in zip_longest(torch.split(matrix.weight, TILE_VOCABULARY), biases):
        tile = buffer[: len(hidden) * len(weight)].view(len(hidden), len(weight))
        torch.mm(hidden, weight.T, out=tile)
        logits = (tile if bias is None else tile.add_(bias)).float()
        # The target's logit, if its id is in this tile: (rows,)
        inside = (targets >= start) & (targets < start + len(weight))
        place = (targets - start).clamp(0, len(weight) - 1)[:, None]
        wanted = torch.where(inside, logits.gather(1, place)[:, 0], wanted)
        above = torch.maximum(highest, logits.amax(dim=1))
        total.mul_((highest - above).exp_()).add_(logits.sub_(above[:, None]).exp_().sum(dim=1))
        highest = above
        start += len(weight)
    return highest + total.log_() - wanted
