"""The convolutional head of CPQS (ICLR 2026), with its authors' network, reading layer by layer.

    for k in 3, 4, 5:  Conv2d(layers -> 256, (k, width)), ReLU          a response shorter than k is padded with zeros
                       Conv1d(256 -> 256, 3, padding 1), ReLU, twice    both shared by all k
                       maximum over time
    768 -> dropout -> Linear 512, ReLU -> dropout -> Linear 2           class 1 is the high tier

A convolution over (layers, k, width) is a product of each layer's states with k matrices, summed over layers, then
shifted and summed over time. So layers can come one at a time. All convolutions are written as matrix products, because
torch's own may round float32 to TF32 on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import Conv1d, Conv2d, Linear, Module, ModuleDict, ModuleList
from torch.nn.functional import linear, pad, relu

from tithe.engine.heads.base import LayerOrderCheck, StateHead, demand_weights

KERNELS = (3, 4, 5)
CHANNELS, HIDDEN, CLASSES, DEEP = 256, 512, 2, 3
DROPOUT = 0.5


class ResponseCnn(Module):
    """The network for training; its weights have the authors' names.

    Args:
        layers: number of hidden states it reads.
        width: of one state.
        generator: draws the initial weights, uniform in +-1/sqrt(inputs) as in torch's layers.
    """

    def __init__(self, layers: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.convs = ModuleList(Conv2d(layers, CHANNELS, (k, width), device="meta") for k in KERNELS)
        self.deep_convs = ModuleList(Conv1d(CHANNELS, CHANNELS, DEEP, padding=1, device="meta") for _ in range(2))
        first, last = Linear(CHANNELS * len(KERNELS), HIDDEN, device="meta"), Linear(HIDDEN, CLASSES, device="meta")
        self.fc = ModuleDict({"0": first, "3": last})
        self.to_empty(device=generator.device)
        for part in (*self.convs, *self.deep_convs, *self.fc.values()):
            bound = part.weight[0].numel() ** -0.5
            torch.nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            torch.nn.init.uniform_(part.bias, -bound, bound, generator=generator)

    def forward(self, states: Sequence[torch.Tensor], dropout: torch.Generator | None = None) -> torch.Tensor:
        """Return the logits of responses: (responses, 2).

        Args:
            states: (layers, tokens, width) of each response.
            dropout: generator of its random numbers; None turns dropout off, as for scoring.
        """
        weights = dict(self.named_parameters())
        lengths = [one.shape[1] for one in states]
        rows = torch.cat([one.movedim(0, 1).flatten(1) for one in states])  # (tokens, layers * width)
        products = rows.to(weights["fc.3.bias"]) @ by_layer(weights).flatten(0, 1)
        return over_time(products, lengths, weights, dropout)


def conv_names() -> list[str]:
    """Return the weight names of the first convolutions."""
    return [f"convs.{place}.weight" for place in range(len(KERNELS))]


def expected_shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, k in enumerate(KERNELS):
        shapes[f"convs.{place}.weight"] = (CHANNELS, layers, k, width)
    for place in range(2):
        shapes[f"deep_convs.{place}.weight"] = (CHANNELS, CHANNELS, DEEP)
    shapes["fc.0.weight"], shapes["fc.3.weight"] = (HIDDEN, CHANNELS * len(KERNELS)), (CLASSES, HIDDEN)
    return shapes | {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}


def by_layer(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the first convolutions as one matrix per layer: (layers, width, 12 * 256).

    The columns are ordered by kernel, then by offset within the kernel; 12 = 3 + 4 + 5 offsets.
    """
    parts = [weights[name].permute(1, 3, 2, 0).flatten(2) for name in conv_names()]  # (layers, width, k * 256)
    return torch.cat(parts, dim=2)


def over_time(
    products: torch.Tensor,
    lengths: Sequence[int],
    weights: Mapping[str, torch.Tensor],
    dropout: torch.Generator | None = None,
) -> torch.Tensor:
    """Compute the rest of the network: products of the first convolution, (tokens, 12 * 256), -> (responses, 2)."""
    padded = [max(tokens, KERNELS[-1]) for tokens in lengths]  # rows of each response after `pad_short`
    parts = torch.split(pad_short(products, lengths), [k * CHANNELS for k in KERNELS], dim=1)
    pooled = [branch(part, lengths, padded, place, weights) for place, part in enumerate(parts)]
    states = drop(torch.cat(pooled, dim=1), dropout)  # (responses, 768)
    states = drop(relu(linear(states, weights["fc.0.weight"], weights["fc.0.bias"])), dropout)
    return linear(states, weights["fc.3.weight"], weights["fc.3.bias"])


def pad_short(rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Pad each response that is shorter than the longest kernel with rows of zeros."""
    longest = KERNELS[-1]
    if min(lengths) >= longest:
        return rows
    return torch.cat([pad(part, (0, 0, 0, max(0, longest - len(part)))) for part in torch.split(rows, list(lengths))])


def branch(
    part: torch.Tensor, lengths: Sequence[int], padded: Sequence[int], place: int, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Compute the branch of one kernel size, with all responses in one row: (tokens, k * 256) -> (responses, 256).

    Windows that reach into the next response are masked to 0 after every convolution. There are at least k - 1 >= 2 of
    them between two responses, which a convolution over 3 sees as the zero padding around a single response.
    """
    k, tokens = KERNELS[place], len(part)
    rows = pad(part, (0, 0, 0, k - 1)).view(-1, k, CHANNELS)
    states = weights[f"convs.{place}.bias"] + rows[:tokens, 0]
    for offset in range(1, k):
        states = states + rows[offset : offset + tokens, offset]  # (tokens, 256)
    mask = window_mask(lengths, padded, k, part.device)
    states = relu(states) * mask
    for deep in range(2):
        states = relu(convolve(states, weights[f"deep_convs.{deep}.weight"], weights[f"deep_convs.{deep}.bias"])) * mask
    own = torch.split(states.masked_fill(~mask, -torch.inf), list(padded))  # (tokens of a response, 256) each
    return torch.stack([one.max(dim=0).values for one in own])


def window_mask(lengths: Sequence[int], padded: Sequence[int], k: int, device: torch.device) -> torch.Tensor:
    """Return where a window of k tokens lies within its response: (tokens, 1) bool.

    A response shorter than k has one window, its first.
    """
    rows, own = torch.tensor(padded), torch.tensor([max(tokens - k, 0) + 1 for tokens in lengths])
    place = torch.arange(int(rows.sum())) - torch.repeat_interleave(rows.cumsum(0) - rows, rows)
    mask = (place < torch.repeat_interleave(own, rows))[:, None]
    # From pinned memory, as any other copy would wait for all queued work of a GPU.
    return mask.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else mask.to(device)


def convolve(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute a Conv1d with kernel 3 and padding 1: (tokens, 256) -> (tokens, 256)."""
    rows, tokens = pad(states, (0, 0, 1, 1)), len(states)
    found = bias + rows[:tokens] @ weight[:, :, 0].T
    for offset in range(1, DEEP):
        found = found + rows[offset : offset + tokens] @ weight[:, :, offset].T
    return found


def drop(states: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Apply dropout with a generator of its own; torch's dropout would use the global one."""
    if generator is None:
        return states
    kept = torch.rand(states.shape, generator=generator, device=states.device) >= DROPOUT
    return states * kept / (1 - DROPOUT)


EVEN = 64  # on a CPU rows are padded to a multiple of this, as its bf16 kernels are compiled and cached per shape


class CnnHead(StateHead):
    """The trained network as a head.

    Args:
        state: its weights by the authors' names, on the CPU; cast once per dtype of the hidden states.
    """

    kind: ClassVar[str] = "cnn"

    def __init__(self, state: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> None:
        super().__init__(layers, count, width)
        demand_weights(state, expected_shapes(len(self.layers), width), self.kind)
        self.state = {name: state[name].detach().to("cpu", torch.float32).contiguous() for name in state}
        self.device = torch.device("cpu")
        self.first: dict[torch.dtype, torch.Tensor] = {}
        self.rest: dict[str, torch.Tensor] = {}
        self.lock = Lock()  # for `first` and `rest`, as several threads may read at once

    def to(self, device: torch.device | str) -> CnnHead:
        moved = CnnHead(self.state, self.layers, self.count, self.width)
        moved.device = torch.device(device)
        return moved

    def reader(self, lengths: Sequence[int]) -> CnnReader:
        return CnnReader(self, lengths)

    def margins(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return z_high - z_low from the logits, (responses, 2)."""
        with np.errstate(invalid="ignore"):  # states that are not finite are reported elsewhere
            return found[:, 1] - found[:, 0]

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.state)

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> Self:
        return cls(weights, layers, count, width)

    def first_of(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the matrices that multiply each layer's states, in their dtype: (layers, width, 12 * 256)."""
        with self.lock:
            if dtype not in self.first:
                parts = {name: self.state[name].to(dtype) for name in conv_names()}
                self.first[dtype] = by_layer(parts).contiguous().to(self.device)  # only the result is put there
            return self.first[dtype]

    def later(self) -> dict[str, torch.Tensor]:
        """Return the weights of everything after the first products, float32."""
        with self.lock:
            if not self.rest:
                skip = set(conv_names())
                self.rest = {name: one.to(self.device) for name, one in self.state.items() if name not in skip}
            return self.rest


class CnnReader:
    """A reader of one batch, which sums the first convolution's products layer by layer: (tokens, 12 * 256) float32."""

    def __init__(self, head: CnnHead, lengths: Sequence[int]) -> None:
        self.head, self.lengths = head, list(lengths)
        self.progress = LayerOrderCheck(head.layers, head.width, lengths)
        self.place = 0
        self.products: torch.Tensor | None = None

    @torch.inference_mode()
    def take(self, layer: int, rows: torch.Tensor) -> None:
        self.progress.step(layer, rows)
        weights = self.head.first_of(rows.dtype)[self.place]
        even = pad(rows, (0, 0, 0, -len(rows) % EVEN)) if rows.device.type == "cpu" else rows
        found = (even @ weights)[: len(rows)]
        self.place += 1
        if self.products is None:
            self.products = found.float()
        else:
            self.products += found

    @torch.inference_mode()
    def found(self) -> torch.Tensor:
        """Return the logits: (responses, 2)."""
        self.progress.end()
        assert self.products is not None
        return over_time(self.products, self.lengths, self.head.later())
