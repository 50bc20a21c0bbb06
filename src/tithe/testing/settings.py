"""Check what scorers and selectors share: each is a frozen dataclass of settings, and creating one loads nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tithe.scorers.base import settings_of

HEAVY = ("torch", "transformers", "pandas", "datasets")

# Run in a fresh process: import the module, create the object, and print what that loaded and opened.
_PROBE = """
import importlib, json, sys
module, name, settings, heavy = json.loads(sys.argv[1])
opened, watching = [], False
def hook(event, args):
    if watching and (event == "socket.connect" or event == "open"):
        path = str(args[0]) if event == "open" else "a network connection"
        if not path.endswith((".py", ".pyc", ".so", ".pyd")):
            opened.append(path)
sys.addaudithook(hook)
cls = importlib.import_module(module)
for part in name.split("."):
    cls = getattr(cls, part)
if settings is not None:
    watching = True
    cls(**settings)
    watching = False
print(json.dumps([[one for one in heavy if one in sys.modules], opened]))
"""


def expect(holds: bool, message: str) -> None:
    """Raise AssertionError unless it holds. An `assert` statement would do nothing under `python -O`."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global random states of Python and numpy, and restore them afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def check_settings(one: Any, kind: str) -> None:
    """Assert that it is a frozen dataclass with a name and a docstring, and that creating it loads nothing."""
    cls = type(one)
    title = f"{kind} `{cls.__qualname__}`"
    made = cls.__dict__.get("__dataclass_params__")
    expect(made is not None, f"{title}: is not a dataclass; write `@dataclass(frozen=True)` above the class")
    expect(bool(made and made.frozen), f"{title}: is not frozen; write `@dataclass(frozen=True)`")
    _check_text(one, "name", title)
    opening = (cls.__doc__ or "").strip().split("\n\n")[0].strip()
    generated = opening.startswith(f"{cls.__name__}(")  # dataclass writes the signature where there is no docstring
    expect(bool(opening) and not generated, f"{title}: has no docstring")
    expect(". " in f"{opening} ", f"{title}: its docstring does not open with a sentence: `{opening:.60}`")
    expect(one == dataclasses.replace(one), f"{title}: a copy with the same settings is not equal to it")
    _check_light(one, title)


def check_texts(one: Any, names: tuple[str, ...], kind: str) -> None:
    """Assert that these class attributes are non-empty text."""
    for name in names:
        _check_text(one, name, f"{kind} `{type(one).__qualname__}`")


def _check_text(one: Any, name: str, title: str) -> None:
    value = getattr(type(one), name, None)
    good = isinstance(value, str) and value.strip() != ""
    expect(good, f"{title}: needs a class attribute `{name}: ClassVar[str]`, not {value!r}")


def _check_light(one: Any, title: str) -> None:
    """Assert that creating one loads no heavy library and opens nothing, as a listing must not wait for it."""
    cls = type(one)
    if "<" in cls.__qualname__ or cls.__module__ == "__main__":
        return  # a class made inside a function cannot be imported by another process
    probe = json.dumps([cls.__module__, cls.__qualname__, _plain_settings(one), HEAVY])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", _PROBE, probe], capture_output=True, text=True, env=env, check=False)
    expect(done.returncode == 0, f"{title}: cannot be made in a fresh process:\n{done.stderr.strip()}")
    loaded, opened = json.loads(done.stdout.splitlines()[-1])
    expect(not loaded, f"{title}: importing or making it loads {', '.join(loaded)}; import that where it is used")
    expect(not opened, f"{title}: making it opens {', '.join(opened[:3])}; a scorer or selector is only its settings")


def _plain_settings(one: Any) -> dict[str, Any] | None:
    """Return its settings if they can be sent to another process as JSON, else None."""
    settings = {field.name: getattr(one, field.name) for field in settings_of(one)}
    try:
        return settings if json.loads(json.dumps(settings)) == settings else None
    except TypeError:
        return None
