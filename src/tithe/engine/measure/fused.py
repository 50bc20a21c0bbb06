"""Norms, MLPs and the rotation of positions compiled by torch: what moves memory and computes little.

The products with weights stay whose they were; what stands between them becomes one kernel, and in fp8 what makes
e4m3 of the activations.

Parts are found by what they are, and put into this one model: classes and modules of transformers stay as they are.
They round as they did; last bits may differ all the same, so the whole model is read with and without them before they
stay.
"""

from __future__ import annotations

import inspect
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from tithe.engine.forward.forward import TokenNlls
from tithe.engine.forward.path_choice import TOLERANCE, probe_passes, read_batched
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.fp8 import Fp8Linear
from tithe.engine.model_files import first_line

NORM, PRODUCT, ROTATION, IN_FP8 = "norms", "MLPs", "rotations", "fp8 layers"
ROTARY = re.compile(r"apply_\w*rotary\w*")  # what models call the function
# Multiply-adds x 2 of a job that compiling repays: measured on an H200, it takes 5 s with its trial and saves a sixth
# of a large model's time and a quarter of a small one's, which runs at some 250 TFLOP/s.
WORTH = 5 * 5 * 2.5e14


@dataclass
class Fused:
    """Compiled parts of a model.

    Args:
        model: whose parts they are.
        backend: of torch.compile.

    Attributes:
        parts: how many of each kind are compiled; empty where they were not taken.
        why_not: why they were not taken.
        off: nats by which a token differs at most.
        seconds: that compiling and trying took.
    """

    model: Any = field(repr=False)
    backend: str = "inductor"
    parts: dict[str, int] = field(default_factory=dict, init=False)
    why_not: str | None = field(default=None, init=False)
    off: float | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)

    @cached_property
    def made(self) -> list[tuple[str, torch.nn.Module, Any]]:
        """Kind, module and its other forward: a class's method is compiled once for all its layers."""
        options = as_uncompiled() if self.backend == "inductor" else None
        compiled = cache(lambda function: torch.compile(function, dynamic=True, backend=self.backend, options=options))
        found = []
        for kind, module in find_parts(self.model):
            forward = type(module).forward
            other = with_rotation(forward, compiled) if kind == ROTATION else compiled(forward)
            found.append((kind, module, MethodType(other, module)))
        return found

    def put_in(self) -> None:
        for _, module, forward in self.made:
            module.forward = forward
        self.parts = dict(Counter(kind for kind, *_ in self.made))

    def take_out(self) -> None:
        """Leave the model as it was."""
        for _, module, _ in vars(self).get("made", ()):  # not made, if that failed
            vars(module).pop("forward", None)
        self.parts = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Put the parts in for a while."""
        try:
            self.put_in()
            yield
        finally:
            self.take_out()

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        found = {"parts": self.parts, "why_not": self.why_not, "off": self.off, "seconds": round(self.seconds, 1)}
        return {name: value for name, value in found.items() if value is not None}

    def words(self) -> str:
        """Say in a few words what was compiled, for the terminal."""
        if self.why_not is not None:
            return f"nothing compiled ({self.why_not})"
        return f"{', '.join(self.parts)} compiled in {self.seconds:.0f} s"


def as_uncompiled() -> dict[str, Any]:
    """Return inductor's options for rounding where torch rounds: to bf16 between two operations.

    Without, a model is off by what bf16 is off itself, in nats where attention is a near tie, and no bound would tell
    that from a wrong kernel.
    """
    from torch._inductor import config

    name = "emulate_precision_casts"
    return {name: True} if name in config.get_config_copy() else {}


def find_parts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield kind and module of what is worth compiling; what somebody else has hooked into is left alone."""
    inside: set[torch.nn.Module] = set()  # what is compiled with the part that holds it
    for module in model.modules():
        if type(module).__module__.startswith("torch.") or "forward" in vars(module) or module in inside:
            continue
        if is_norm(module):
            yield NORM, module
        elif is_product(module):
            inside.update(module.children())
            yield PRODUCT, module
        elif isinstance(module, Fp8Linear):
            yield IN_FP8, module
        elif rotation(type(module).forward) is not None:
            yield ROTATION, module


def is_norm(module: torch.nn.Module) -> bool:
    """Tell whether it is a norm: no parts of its own, only vectors as weights, one tensor in."""
    weights = list(module.parameters())
    leaf = not list(module.children()) and bool(weights)
    return leaf and all(weight.ndim == 1 for weight in weights) and takes_one(module)


def is_product(module: torch.nn.Module) -> bool:
    """Tell whether it is linear maps around an activation, one tensor in."""
    children = list(module.children())
    linear = [child for child in children if getattr(getattr(child, "weight", None), "ndim", 0) == 2]
    others = [child for child in children if child not in linear]
    bare = all(not list(child.children()) and not list(child.parameters()) for child in others)
    return len(linear) >= 2 and bool(others) and bare and takes_one(module)


def takes_one(module: torch.nn.Module) -> bool:
    return len(inspect.signature(type(module).forward).parameters) == 2  # itself, and a tensor


def rotation(forward: Callable[..., Any]) -> str | None:
    """Return the name by which a forward calls a function that rotates queries and keys."""
    code, known = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    names = () if code is None else code.co_names
    return next((name for name in names if ROTARY.fullmatch(name) and callable(known.get(name))), None)


def with_rotation(forward: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a forward so that it calls the compiled function under its name; other models call their own."""
    assert isinstance(forward, FunctionType)
    name = rotation(forward)
    assert name is not None
    known = {**forward.__globals__, name: compiled(forward.__globals__[name])}
    copied = FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__)
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied


def fuse(loaded: LoadedModel, backend: str = "inductor", wrong: Callable[[], str | None] | None = None) -> Fused:
    """Compile a model's parts, if the model then still says the same; what happened is in the result.

    Args:
        loaded: the model; one that was tried before stays as it is.
        backend: of torch.compile.
        wrong: asked with the parts in, why they are not to be taken; None holds readings of the model against those
            without.
    """
    if isinstance(loaded.fused, Fused):
        return loaded.fused
    fused, began = Fused(loaded.model, backend), time.perf_counter()
    before = [] if wrong else readings(loaded)
    try:
        fused.put_in()
        fused.why_not = None if fused.parts else "the model has no such parts"
        if fused.parts and wrong is not None:
            fused.why_not = wrong()
        elif fused.parts:
            fused.off = max(float(np.abs(a - b).max()) for a, b in zip(before, readings(loaded), strict=True))
            if not fused.off <= TOLERANCE[loaded.dtype]:
                fused.why_not = f"off by {fused.off:.3g} nats"
    except (torch.OutOfMemoryError, MemoryError):
        fused.take_out()
        raise
    except Exception as error:  # compilers fail in their own ways
        fused.why_not = f"{type(error).__name__}: {first_line(error)}"
    if fused.why_not is not None:
        fused.take_out()
    fused.seconds = time.perf_counter() - began
    loaded.fused = fused
    return fused


def readings(loaded: LoadedModel) -> list[TokenNlls]:
    """Read the probe's passes in batches of several shapes: compiled code must be true for all."""
    passes = probe_passes(loaded.vocabulary)
    whole = [nll for _, nll in read_batched(loaded, loaded.forward_path, passes)]
    return whole + loaded.read_on(loaded.forward_path, passes[:2])


def why_not_compilable(device: torch.device) -> str | None:
    """Say why nothing can be compiled for a device; None if it can."""
    if device.type == "cuda":
        return None if find_spec("triton") else "`triton` is not installed"
    if device.type != "cpu":
        return f"it is not tried on `{device.type}`"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler"
    return None


def why_not_worth_compiling(device: torch.device, parameters: int, tokens: int | None) -> str | None:
    """Say why compiling does not pay, as far as that is known; None if it does.

    Args:
        device: the model's.
        parameters: of the model.
        tokens: that are to be read, about; None where nobody knows.
    """
    if device.type != "cuda":
        return "it pays on a GPU alone"
    if tokens is None:
        return "how much is to be read is not known"
    flops = 2.0 * parameters * tokens
    return why_not_compilable(device) if flops >= WORTH else f"a job of {flops:.1e} operations does not repay it"
