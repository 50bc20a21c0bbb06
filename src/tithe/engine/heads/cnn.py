"""The convolutional head of CPQS (ICLR 2026), as its authors trained it, reading layer by layer.

    for k in 3, 4, 5:  Conv2d(layers -> 256, (k, width)), ReLU          a response shorter than k is filled with zeros
                       Conv1d(256 -> 256, 3, padding 1), ReLU, twice    the same two for every k
                       maximum over time
    768 -> dropout -> Linear 512, ReLU -> dropout -> Linear 2           class 1 is the high tier

A convolution over (layers, k, width) is a product of each layer's states with k matrices, summed over layers, then
shifted and summed over time. So layers can come one at a time. All convolutions are written as products: on a GPU
torch's own may round float32 to TF32.
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
    """The network for training, with its authors' names of the weights.

    Args:
        layers: how many hidden states it reads.
        width: of one state.
        generator: where the first weights come from, uniform in +-1/sqrt(inputs) as is torch's habit.
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
        """Logits of responses: (responses, 2).

        Args:
            states: (layers, tokens, width) of each response.
            dropout: where its random numbers come from; None leaves it out, as scoring does.
        """
        weights = dict(self.named_parameters())
        lengths = [one.shape[1] for one in states]
        rows = torch.cat([one.movedim(0, 1).flatten(1) for one in states])  # (tokens, layers * width)
        products = rows.to(weights["fc.3.bias"]) @ by_layer(weights).flatten(0, 1)
        return over_time(products, lengths, weights, dropout)


def conv_names() -> list[str]:
    return [f"convs.{place}.weight" for place in range(len(KERNELS))]


def expected_shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, k in enumerate(KERNELS):
        shapes[f"convs.{place}.weight"] = (CHANNELS, layers, k, width)
    for place in range(2):
        shapes[f"deep_convs.{place}.weight"] = (CHANNELS, CHANNELS, DEEP)
    shapes["fc.0.weight"], shapes["fc.3.weight"] = (HIDDEN, CHANNELS * len(KERNELS)), (CLASSES, HIDDEN)
    return shapes | {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}


def by_layer(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The first convolutions as one matrix a layer: (layers, width, 256 * 12), kernel by kernel, offset by offset."""
    parts = [weights[name].permute(1, 3, 2, 0).flatten(2) for name in conv_names()]  # (layers, width, k * 256)
    return torch.cat(parts, dim=2)


def over_time(
    products: torch.Tensor,
    lengths: Sequence[int],
    weights: Mapping[str, torch.Tensor],
    dropout: torch.Generator | None = None,
) -> torch.Tensor:
    """From the products of the first convolution, (tokens, 256 * 12), to logits, (responses, 2)."""
    rooms = [max(tokens, KERNELS[-1]) for tokens in lengths]
    parts = torch.split(filled(products, lengths), [k * CHANNELS for k in KERNELS], dim=1)
    pooled = [branch(part, lengths, rooms, place, weights) for place, part in enumerate(parts)]
    states = thin(torch.cat(pooled, dim=1), dropout)  # (responses, 768)
    states = thin(relu(linear(states, weights["fc.0.weight"], weights["fc.0.bias"])), dropout)
    return linear(states, weights["fc.3.weight"], weights["fc.3.bias"])


def filled(rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The same rows, those of a response shorter than the longest kernel with zeros behind them."""
    longest = KERNELS[-1]
    if min(lengths) >= longest:
        return rows
    return torch.cat([pad(part, (0, 0, 0, max(0, longest - len(part)))) for part in torch.split(rows, list(lengths))])


def branch(
    part: torch.Tensor, lengths: Sequence[int], rooms: Sequence[int], place: int, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """One kernel size, all responses in one row: (tokens, k * 256) -> (responses, 256).

    A window that reaches into the next response is masked after every convolution. There are k - 1 or more of them
    between two responses, 2 at the least: to a convolution over 3 they are the zeros around a response that is alone.
    """
    k, tokens = KERNELS[place], len(part)
    rows = pad(part, (0, 0, 0, k - 1)).view(-1, k, CHANNELS)
    states = weights[f"convs.{place}.bias"] + rows[:tokens, 0]
    for offset in range(1, k):
        states = states + rows[offset : offset + tokens, offset]  # (tokens, 256)
    mask = windows(lengths, rooms, k, part.device)
    states = relu(states) * mask
    for deep in range(2):
        states = relu(convolve(states, weights[f"deep_convs.{deep}.weight"], weights[f"deep_convs.{deep}.bias"])) * mask
    own = torch.split(states.masked_fill(~mask, -torch.inf), list(rooms))
    return torch.stack([one.max(dim=0).values for one in own])


def windows(lengths: Sequence[int], rooms: Sequence[int], k: int, device: torch.device) -> torch.Tensor:
    """Where a window of k tokens lies within one response, or begins one that is shorter: (tokens, 1) bool."""
    room, own = torch.tensor(rooms), torch.tensor([max(tokens - k, 0) + 1 for tokens in lengths])
    place = torch.arange(int(room.sum())) - torch.repeat_interleave(room.cumsum(0) - room, room)
    mask = (place < torch.repeat_interleave(own, room))[:, None]
    # Pinned: a copy from any other memory would wait for all that a GPU has to do.
    return mask.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else mask.to(device)


def convolve(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Conv1d with kernel 3 and padding 1: (tokens, 256), time first."""
    rows, tokens = pad(states, (0, 0, 1, 1)), len(states)
    found = bias + rows[:tokens] @ weight[:, :, 0].T
    for offset in range(1, DEEP):
        found = found + rows[offset : offset + tokens] @ weight[:, :, offset].T
    return found


def thin(states: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Dropout with random numbers of its own; torch's would draw from everybody's."""
    if generator is None:
        return states
    kept = torch.rand(states.shape, generator=generator, device=states.device) >= DROPOUT
    return states * kept / (1 - DROPOUT)


EVEN = 64  # rows are filled up to a multiple of it on a CPU, whose bf16 kernels are compiled and kept per shape


class CnnHead(StateHead):
    """The trained network.

    Args:
        state: its weights by their authors' names, on the CPU; cast once for every dtype that is read.
    """

    kind: ClassVar[str] = "cnn"

    def __init__(self, state: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> None:
        super().__init__(layers, count, width)
        demand_weights(state, expected_shapes(len(self.layers), width), self.kind)
        self.state = {name: state[name].detach().to("cpu", torch.float32).contiguous() for name in state}
        self.device = torch.device("cpu")
        self.first: dict[torch.dtype, torch.Tensor] = {}
        self.rest: dict[str, torch.Tensor] = {}
        self.lock = Lock()  # several threads may read at once

    def to(self, device: torch.device | str) -> CnnHead:
        moved = CnnHead(self.state, self.layers, self.count, self.width)
        moved.device = torch.device(device)
        return moved

    def reader(self, lengths: Sequence[int]) -> CnnReader:
        return CnnReader(self, lengths)

    def margins(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Of logits, (responses, 2)."""
        with np.errstate(invalid="ignore"):  # of states that are not finite, which are reported as such
            return found[:, 1] - found[:, 0]

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.state)

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> Self:
        return cls(weights, layers, count, width)

    def first_of(self, dtype: torch.dtype) -> torch.Tensor:
        """What multiplies the states of each layer, in their dtype: (layers, width, 256 * 12)."""
        with self.lock:
            if dtype not in self.first:
                parts = {name: self.state[name].to(dtype) for name in conv_names()}
                self.first[dtype] = by_layer(parts).contiguous().to(self.device)  # nothing else of it is put there
            return self.first[dtype]

    def later(self) -> dict[str, torch.Tensor]:
        """Everything behind the first products, float32."""
        with self.lock:
            if not self.rest:
                skip = set(conv_names())
                self.rest = {name: one.to(self.device) for name, one in self.state.items() if name not in skip}
            return self.rest


class CnnReader:
    """One batch: products of the first convolution, (tokens, 256 * 12) float32, summed as layers come."""

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
        """Logits: (responses, 2)."""
        self.progress.end()
        assert self.products is not None
        return over_time(self.products, self.lengths, self.head.later())
