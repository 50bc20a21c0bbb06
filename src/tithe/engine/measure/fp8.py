"""Linear layers with weights in fp8 (e4m3): one scale per output row, activations quantised per token.

The scheme is "FP8 dynamic" of vLLM and llm-compressor: w = s_w q_w with s_w = max |w| / 448 per row, and likewise per
token for activations at run time; products accumulate in fp32 and are returned in bf16. Only linear layers inside
blocks are converted, not embeddings, norms, the output head or the routers of mixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tithe.engine.devices import E4M3
from tithe.engine.loaded_model import LoadedModel
from tithe.errors import ModelError

LARGEST = torch.finfo(E4M3).max  # 448
EVEN = 16  # fp8 units need both sides of a matrix to be multiples of this
ROUTERS = ("gate", "router")  # names of a mixture's router; the gate of a gated MLP is called `gate_proj`
TINY = 1e-12  # smallest scale, for rows of zeros


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row to e4m3 and a scale: (rows, dim) -> (rows, dim) e4m3, (rows, 1) float32.

    A row with infinity or NaN becomes NaN, not large finite numbers.
    """
    wide = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # fp8 units read row-major
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(TINY)
    return wide.div_(scale).clamp_(-LARGEST, LARGEST).to(E4M3), scale


class Fp8Linear(torch.nn.Module):
    """A linear layer whose weights are e4m3 with one scale per output row.

    Args:
        linear: the layer to replace; its weights are not kept.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantised(linear.weight.detach())
        self.weight = torch.nn.Parameter(weight, requires_grad=False)  # (out, in)
        self.register_buffer("scale", scale.T.contiguous())  # (1, out)
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute (..., in) -> (..., out), in the dtype of `hidden`."""
        rows, scale = quantised(hidden.flatten(0, -2))
        out: torch.Tensor = torch._scaled_mm(
            rows, self.weight.T, scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        if self.bias is not None:
            out = out + self.bias
        return out.view(*hidden.shape[:-1], self.out_features).to(hidden.dtype)


@dataclass(frozen=True)
class Fp8Layers:
    """How much of a model is in fp8.

    Args:
        layers: number of linear layers in fp8.
        left: linear layers in blocks that stay in bf16: routers, and those with a side that is no multiple of 16.
        parameters: number of the model's parameters in fp8.
        of: number of all its parameters.
        bytes_before: size of the weights in bf16.
        bytes_after: size of the weights now.
    """

    layers: int
    left: int
    parameters: int
    of: int
    bytes_before: int
    bytes_after: int


def linear_layers(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Yield the linear layers inside a model's blocks, each with its parent module and its name there."""
    blocks = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    seen: set[int] = set()
    for part in (inner for each in blocks for inner in each.modules()):
        for name, child in part.named_children():
            if type(child) is torch.nn.Linear and id(child) not in seen:
                seen.add(id(child))
                yield part, name, child


def fits(name: str, linear: torch.nn.Linear) -> bool:
    """Tell whether a linear layer can be converted to fp8."""
    return name not in ROUTERS and linear.in_features % EVEN == 0 and linear.out_features % EVEN == 0


def weight_bytes(model: torch.nn.Module) -> int:
    """Count the bytes of parameters and buffers."""
    return sum(part.numel() * part.element_size() for part in (*model.parameters(), *model.buffers()))


def hold_in_fp8(loaded: LoadedModel) -> Fp8Layers:
    """Convert a bf16 model to e4m3 layer by layer, so that at most one layer is in memory twice.

    Raises:
        ModelError: none of its layers can be converted.
    """
    model, head = loaded.model, loaded.model.get_output_embeddings()
    before, found = weight_bytes(model), [one for one in linear_layers(model) if one[2] is not head]
    taken = [(part, name) for part, name, linear in found if fits(name, linear)]
    if not taken:
        raise ModelError(
            f"`{loaded.source.name}` has no linear layer in its blocks that fp8 can hold",
            hint="`--dtype bf16`; layers of other kinds, such as fused experts, stay in bf16",
        )
    left = len(found) - len(taken)
    del found  # else it would keep all bf16 weights alive until the end
    for part, name in taken:
        setattr(part, name, Fp8Linear(getattr(part, name)))
    quantities = [w.numel() for w in model.parameters() if w.dtype == E4M3]
    return Fp8Layers(len(taken), left, sum(quantities), loaded.parameters, before, weight_bytes(model))
