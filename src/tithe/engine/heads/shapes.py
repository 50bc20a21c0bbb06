"""Whether weights are those of a head: names, shapes, and numbers that are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from tithe.errors import ModelError


def demand_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Raises: ModelError, where a weight is missing, is too much, has another shape, or is not finite."""
    missing, strange = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing:
        raise ModelError(f"a `{kind}` head needs {listed(missing)}", hint=f"there is: {listed(sorted(weights))}")
    if strange:
        raise ModelError(f"a `{kind}` head has no {listed(strange)}", hint=f"it has: {listed(sorted(expected))}")
    for name, shape in expected.items():
        found = weights[name]
        if tuple(found.shape) != shape:
            raise ModelError(
                f"`{name}` has the shape {tuple(found.shape)}, it must have {shape}",
                hint="the head belongs to a model of another depth or width, or reads other layers",
            )
        if not found.dtype.is_floating_point or not torch.isfinite(found).all():
            raise ModelError(f"`{name}` holds something that is no finite number", hint="train the head again")


def listed(names: Iterable[str], most: int = 4) -> str:
    """`a`, `b` and 3 more."""
    shown = [f"`{name}`" for name in names]
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "") if shown else "nothing"
