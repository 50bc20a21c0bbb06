"""Compile a model's norms, MLPs and rotary embeddings with torch: the parts that are bound by memory traffic.

Products with weights still run in the same library kernels; the operations between them are fused into one kernel, and
so is the quantisation of activations in fp8.

Parts are recognised by their structure and replaced in this one model only; transformers' classes stay as they are.
Compiled parts round where the originals do, but last bits may still differ, so the whole model is read with and without
them before they are kept.
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

NORM, MLP, ROTATION, IN_FP8 = "norms", "MLPs", "rotations", "fp8 layers"
ROTARY = re.compile(r"apply_\w*rotary\w*")  # transformers' names for the function
# FLOPs above which compiling pays off. On an H200 it takes 5 s with its check, and saves a sixth of a large model's
# time and a quarter of a small one's: 5 s are saved in about 5 x 5 s of work, at some 250 TFLOP/s.
WORTH = 5 * 5 * 2.5e14


@dataclass
class Fused:
    """The compiled parts of a model.

    Args:
        model: the model.
        backend: of torch.compile.

    Attributes:
        parts: number of compiled parts of each kind; empty if they were not kept.
        why_not: why they were not kept.
        off: largest difference of a token's NLL, in nats.
        seconds: time that compiling and checking took.
    """

    model: Any = field(repr=False)
    backend: str = "inductor"
    parts: dict[str, int] = field(default_factory=dict, init=False)
    why_not: str | None = field(default=None, init=False)
    off: float | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)

    @cached_property
    def made(self) -> list[tuple[str, torch.nn.Module, Any]]:
        """List the kind, module and compiled forward of each part; a class is compiled once for all its layers."""
        options = as_uncompiled() if self.backend == "inductor" else None
        compiled = cache(lambda function: torch.compile(function, dynamic=True, backend=self.backend, options=options))
        found = []
        for kind, module in find_parts(self.model):
            forward = type(module).forward
            other = with_compiled_rotary(forward, compiled) if kind == ROTATION else compiled(forward)
            found.append((kind, module, MethodType(other, module)))
        return found

    def put_in(self) -> None:
        """Replace the forward of each part with its compiled one."""
        for _, module, forward in self.made:
            module.forward = forward
        self.parts = dict(Counter(kind for kind, *_ in self.made))

    def take_out(self) -> None:
        """Restore the model's own forwards."""
        for _, module, _ in vars(self).get("made", ()):  # the cached property is missing if compiling failed
            vars(module).pop("forward", None)
        self.parts = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Use the compiled parts within the `with` block."""
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
        """Return what was compiled, for the terminal."""
        if self.why_not is not None:
            return f"nothing compiled ({self.why_not})"
        return f"{', '.join(self.parts)} compiled in {self.seconds:.0f} s"


def as_uncompiled() -> dict[str, Any]:
    """Return inductor's options for rounding where eager torch does: to bf16 between two operations.

    Without them the difference is as large as bf16's own error, up to nats where attention is nearly tied, and no bound
    could tell that from a wrong kernel.
    """
    from torch._inductor import config

    name = "emulate_precision_casts"
    return {name: True} if name in config.get_config_copy() else {}


def find_parts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the kind and module of each part worth compiling; skip modules whose forward is already replaced."""
    inside: set[torch.nn.Module] = set()  # modules compiled as part of their parent
    for module in model.modules():
        if type(module).__module__.startswith("torch.") or "forward" in vars(module) or module in inside:
            continue
        if is_norm(module):
            yield NORM, module
        elif is_mlp(module):
            inside.update(module.children())
            yield MLP, module
        elif isinstance(module, Fp8Linear):
            yield IN_FP8, module
        elif rotary_name(type(module).forward) is not None:
            yield ROTATION, module


def is_norm(module: torch.nn.Module) -> bool:
    """Tell whether a module is a norm: no submodules, only vectors as weights, one input tensor."""
    weights = list(module.parameters())
    leaf = not list(module.children()) and bool(weights)
    return leaf and all(weight.ndim == 1 for weight in weights) and takes_one(module)


def is_mlp(module: torch.nn.Module) -> bool:
    """Tell whether a module is an MLP: linear layers around an activation, one input tensor."""
    children = list(module.children())
    linear = [child for child in children if getattr(getattr(child, "weight", None), "ndim", 0) == 2]
    others = [child for child in children if child not in linear]
    bare = all(not list(child.children()) and not list(child.parameters()) for child in others)
    return len(linear) >= 2 and bool(others) and bare and takes_one(module)


def takes_one(module: torch.nn.Module) -> bool:
    return len(inspect.signature(type(module).forward).parameters) == 2  # `self` and a tensor


def rotary_name(forward: Callable[..., Any]) -> str | None:
    """Return the name of the global function with which a forward rotates queries and keys; None if it has none."""
    code, known = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    names = () if code is None else code.co_names
    return next((name for name in names if ROTARY.fullmatch(name) and callable(known.get(name))), None)


def with_compiled_rotary(forward: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a forward with globals in which its rotary function is compiled; the original still calls its own."""
    assert isinstance(forward, FunctionType)
    name = rotary_name(forward)
    assert name is not None
    # Replacing the function in its module would change all models of that class.
    known = {**forward.__globals__, name: compiled(forward.__globals__[name])}
    copied = FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__)
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied


def fuse(loaded: LoadedModel, backend: str = "inductor", wrong: Callable[[], str | None] | None = None) -> Fused:
    """Compile a model's parts, and keep them if its likelihoods stay the same; return the outcome.

    Args:
        loaded: the model; if it was compiled before, that outcome is returned.
        backend: of torch.compile.
        wrong: called with the compiled parts in place, returns why they must not be kept; None compares the model's
            likelihoods with and without them.
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
    except Exception as error:  # compilers raise errors of many types
        fused.why_not = f"{type(error).__name__}: {first_line(error)}"
    if fused.why_not is not None:
        fused.take_out()
    fused.seconds = time.perf_counter() - began
    loaded.fused = fused
    return fused


def readings(loaded: LoadedModel) -> list[TokenNlls]:
    """Read the probe's passes in batches of several shapes, as compiled code must be correct for all of them."""
    passes = probe_passes(loaded.vocabulary)
    whole = [nll for _, nll in read_batched(loaded, loaded.forward_path, passes)]
    return whole + loaded.read_on(loaded.forward_path, passes[:2])


def why_not_compilable(device: torch.device) -> str | None:
    """Return why nothing can be compiled for a device; None if it can."""
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
    """Return why compiling would not pay off; None if it would.

    Args:
        device: of the model.
        parameters: number of the model's parameters.
        tokens: rough number of tokens to read; None if unknown.
    """
    if device.type != "cuda":
        return "it pays on a GPU alone"
    if tokens is None:
        return "how much is to be read is not known"
    flops = 2.0 * parameters * tokens
    return why_not_compilable(device) if flops >= WORTH else f"a job of {flops:.1e} operations does not repay it"
