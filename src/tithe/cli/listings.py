"""Collect the rows of the listings: scorers, selectors, templates, and what this machine has."""

from __future__ import annotations

import importlib.util
import inspect
import platform
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from tithe import plugins
from tithe.extras import install_hint, versions
from tithe.scorers.base import settings_of

EXTRAS = {  # extra -> a module that it installs
    "hub": "datasets",
    "track": "trackio",
    "encoders": "sentence_transformers",
    "ann": "faiss",
    "near-duplicates": "datasketch",
    "check": "py3langid",
    "report": "altair",
    "tune": "trl",
    "eval": "lm_eval",
    "experiment": "statsmodels",
    "large": "accelerate",
    "gpu": "liger_kernel",
}


def first_sentence(thing: type) -> str:
    """Return the first paragraph of a class's docstring."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def settings_text(thing: type) -> str:
    """Return a scorer's or selector's settings with their defaults."""
    parts = []
    for one in settings_of(thing):
        default = "" if one.default is MISSING else f"={one.default}"
        parts.append(f"{one.name}{default}")
    return ", ".join(parts)


def scorer_rows() -> list[dict[str, Any]]:
    found = [plugins.scorer(name) for name in plugins.names(plugins.SCORERS)]
    return [
        {"name": s.name, "unit": s.unit, "reads": s.reads, "settings": settings_text(s), "about": first_sentence(s)}
        for s in found
    ]


def selector_rows() -> list[dict[str, Any]]:
    found = [plugins.selector(name) for name in plugins.names(plugins.SELECTORS)]
    return [{"name": s.name, "settings": settings_text(s), "about": first_sentence(s)} for s in found]


def template_rows() -> list[dict[str, Any]]:
    from tithe.data.templates import TEXT_TEMPLATES

    rows = [{"name": "auto", "about": "`chat` where the tokenizer has a chat template, else `plain`"}]
    rows += [{"name": "chat", "about": "the model's own chat template"}]
    rows += [{"name": name, "about": repr(t.prompt("{instruction}", "{input}"))} for name, t in TEXT_TEMPLATES.items()]
    return [*rows, {"name": "FILE.jinja", "about": "a chat template of your own"}]


def doctor_rows() -> list[dict[str, Any]]:
    """List versions, devices, dtypes and extras as the engine would find them."""
    import torch

    from tithe.engine.devices import choose_devices, choose_dtype, dtype_name
    from tithe.engine.host import cpu_cores
    from tithe.engine.model_source import BUNDLED
    from tithe.lab.evaluate.sandbox import sandbox_row

    devices = choose_devices("auto")
    rows = [(name, number) for name, number in versions().items()]
    rows += [("platform", platform.platform()), ("CPU cores usable", str(cpu_cores()))]
    rows += [
        ("CPU capability", torch.backends.cpu.get_cpu_capability()),
        ("device taken", ", ".join(map(str, devices))),
    ]
    rows += [(f"GPU {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    rows += [("dtype taken", dtype_name(choose_dtype("auto", devices[0])))]
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        rows.append((f"extra `tithe[{extra}]`", "installed" if there else install_hint(extra)))
    rows += [("sandbox for generated code", sandbox_row())]
    rows += [
        (f"bundled model `{name}`", "there" if Path(path).is_dir() else "missing") for name, path in BUNDLED.items()
    ]
    rows += [("how to use it, for assistants", skill_file())]
    return [{"what": what, "found": found} for what, found in rows]


def skill_file() -> str:
    """Return the path of `SKILL.md`: in an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    places = [package / "SKILL.md", package.parents[1] / "SKILL.md"]
    return next((str(place) for place in places if place.is_file()), "missing")
