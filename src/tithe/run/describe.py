"""What a run was made of, for the run record and for people."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tithe import __version__
from tithe.scorers.base import Scorer, settings_of

if TYPE_CHECKING:
    from tithe.engine.engine import Engine
    from tithe.engine.measure.cpu_kernels import Fp32Route
    from tithe.engine.model import LoadedModel


def scorer_record(scorer: Scorer) -> dict[str, Any]:
    settings = {one.name: getattr(scorer, one.name) for one in settings_of(scorer)}
    return {"unit": scorer.unit, "reads": scorer.reads, **settings}


def engine_record(engine: Engine) -> dict[str, Any]:
    """How the model was run."""
    model = engine.model
    return {
        "device": str(model.device),
        "devices": engine.devices,
        "dtype": weights_dtype(model),
        "road": model.road,
        "attention": model.implementation,
        "roads_not_taken": model.fallbacks,
        "parameters": model.parameters,
        "batch_tokens": engine.budget,
        "workers": engine.workers,
        **({} if engine.threads is None else {"threads": engine.threads}),
        "batches_halved": engine.halved,
        **({} if model.fp32 is None else {"fp32": model.fp32.as_dict()}),
        **engine.facts,
    }


def engine_sentence(engine: Engine) -> str:
    """Model, size, devices, dtype and road, for the terminal."""
    model = engine.model
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if model.parameters >= s)
    size = f"{model.parameters / scale:.3g}{unit}"
    dtype = weights_dtype(model)
    if model.fp32 is not None:
        dtype += kernels(model.fp32)
    where = ", ".join(engine.devices)
    if len(engine.devices) > 1:
        where += " (one process each)" if engine.model.model is None else " (a part of it on each)"
    how = [road_words(model), *at_once(engine), *engine.words]
    return f"model {model.source.name} ({size}) on {where} in {dtype}: {', '.join(how)}"


def at_once(engine: Engine) -> list[str]:
    """How many passes, and threads of each."""
    words = [f"{engine.workers} at once"] if engine.workers != 1 else []
    if engine.threads is not None:
        each = " each" if engine.workers != 1 or len(engine.devices) > 1 else ""
        words.append(f"{engine.threads} {'thread' if engine.threads == 1 else 'threads'}{each}")
    return words


def road_words(model: LoadedModel) -> str:
    """The road, and on a GPU why it is not the packed one."""
    how = {"packed": "packed, no padding", "padded": "padded batches", "single": "one sequence at a time"}[model.road]
    refused = [] if model.device.type == "cpu" else [one for one in model.fallbacks if one.startswith("packed")]
    return " ".join([how, *(f"({shortened(one)})" for one in refused)])


def shortened(text: str, longest: int = 160) -> str:
    """The run record has all of it."""
    return text if len(text) <= longest else f"{text[:longest]} ..."


def weights_dtype(model: LoadedModel) -> str:
    """That of the weights in its blocks, by torch's name."""
    return "float8_e4m3fn" if model.awaits_fp8 or model.fp8 is not None else str(model.dtype).removeprefix("torch.")


def torch_name(dtype: str) -> str:
    """Return torch's name for ours: `float32` for `fp32`."""
    from tithe.engine.devices import WEIGHTS

    return str(WEIGHTS[dtype]).removeprefix("torch.")


def kernels(route: Fp32Route) -> str:
    """Who multiplies fp32 on a CPU, where that is not torch as it comes, or not true."""
    by = f" by oneDNN ({route.why})" if route.name == "onednn" else ""
    wrong = route.relative_error[route.name]
    return by if route.is_true(route.name) else f"{by} that is not true fp32 here (relative error {wrong:.1e})"


def versions(names: Iterable[str] = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")) -> Mapping[str, str]:
    found = {"tithe": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
