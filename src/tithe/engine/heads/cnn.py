"""The convolutional head of CPQS (ICLR 2026), reading layer by layer; `network.py` has the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from tithe.engine.heads.base import Progression, StateHead
from tithe.engine.heads.network import by_layer, conv_names, expected_shapes, over_time
from tithe.engine.heads.shapes import demand_weights

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
        self.progress = Progression(head.layers, head.width, lengths)
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
