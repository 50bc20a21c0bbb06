"""The linear head: a weighted sum of a response's mean hidden state in each layer.

margin = sum over layers of (w_l . mean over response tokens of h_l) + b
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.heads.base import LayerOrderCheck, StateHead, demand_weights

Means: TypeAlias = npt.NDArray[np.float32]


class ProbeReader:
    """A reader that computes the mean state of each response in each layer, the input of a probe.

    Args:
        layers: numbers of the layers that will come, ascending.
        width: of one state.
        lengths: tokens of each response.
    """

    def __init__(self, layers: Sequence[int], width: int, lengths: Sequence[int]) -> None:
        self.progress = LayerOrderCheck(layers, width, lengths)
        self.lengths = list(lengths)
        self.parts: list[torch.Tensor] = []

    @torch.inference_mode()
    def take(self, layer: int, rows: torch.Tensor) -> None:
        self.progress.step(layer, rows)
        # Response by response, so that the order of summation does not depend on the rest of the batch.
        means = [part.mean(0, dtype=torch.float32) for part in torch.split(rows, self.lengths)]
        self.parts.append(torch.stack(means))  # (responses, width)

    @torch.inference_mode()
    def found(self) -> torch.Tensor:
        """Return the mean states, on their device: (responses, layers, width) float32."""
        self.progress.end()
        return torch.stack(self.parts, dim=1)


class ProbeHead(StateHead):
    """A head with one weight per component of the mean states, and a bias.

    Args:
        weight: (layers, width).
        bias: a scalar.
    """

    kind: ClassVar[str] = "probe"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, layers: Sequence[int], count: int, width: int) -> None:
        super().__init__(layers, count, width)
        found = {"weight": weight.detach(), "bias": bias.detach()}
        demand_weights(found, {"weight": (len(self.layers), width), "bias": ()}, self.kind)
        self.weight, self.bias = (one.to("cpu", torch.float32).contiguous() for one in found.values())

    def to(self, device: torch.device | str) -> ProbeHead:
        """Return this head itself: means are computed on the states' device, and weighted on the CPU."""
        return self

    def reader(self, lengths: Sequence[int]) -> ProbeReader:
        return ProbeReader(self.layers, self.width, lengths)

    def weights(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> Self:
        demand_weights(weights, {"weight": (len(layers), width), "bias": ()}, cls.kind)
        return cls(weights["weight"], weights["bias"], layers, count, width)

    def margins(self, found: Means) -> npt.NDArray[np.float32]:
        """Return the margins from mean states, (responses, layers, width).

        The sum is in float64, as a few components of a state may be thousands of times larger than the rest.
        """
        weight = self.weight.numpy().astype(np.float64)
        margins = [np.vdot(one.astype(np.float64), weight) + self.bias.item() for one in found]
        return np.array(margins, dtype=np.float32)
