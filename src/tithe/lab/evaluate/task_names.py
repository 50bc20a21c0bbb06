"""lm-eval's names: tasks, and what groups and tags hold. A few families are read alone, which is quick."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

from tithe.errors import SettingsError, did_you_mean

FAMILIES = ("gsm8k", "humaneval", "mmlu/default", "arc", "truthfulqa", "piqa")  # found without reading all of lm-eval


def leaves(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The tasks behind a name, each with its configuration; a group's in its order.

    Raises:
        SettingsError: there is no such name.
    """
    for manager in managers():
        index = manager.task_index
        if name in index and (kind_of(index[name]) != "TAG" or manager.include_path is None):
            return list(dict(walk(name, index)).items())
    raise SettingsError(f"lm-eval has no task `{name}`", hint=near(name, managers_all().all_tasks))


def near(name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did you mean") else "`lm-eval ls tasks` lists them"


def walk(name: str, index: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Down through groups and tags."""
    entry = index[name]
    if kind_of(entry) == "TAG":
        members: Sequence[Any] = sorted(entry.tags)
    elif kind_of(entry) == "GROUP":
        members = entry.cfg["task"]
    else:
        yield name, entry.cfg
        return
    for one in members:
        if not isinstance(one, str):
            raise SettingsError(
                f"group `{name}` of lm-eval changes its members, which is not carried out here",
                hint="name the tasks instead",
            )
        yield from walk(one, index)


def kind_of(entry: Any) -> str:
    return str(entry.kind.name)


def managers() -> Iterator[Any]:
    """A quick one first; the one that knows all of lm-eval takes seconds."""
    yield manager_of(FAMILIES)
    yield managers_all()


def managers_all() -> Any:
    return manager_of(())


@lru_cache(maxsize=2)
def manager_of(families: tuple[str, ...]) -> Any:
    with quiet():
        import lm_eval.tasks

        if not families:
            return lm_eval.tasks.TaskManager()
        root = Path(lm_eval.tasks.__file__).parent
        places = [str(root / name) for name in families if (root / name).is_dir()]
        return lm_eval.tasks.TaskManager(include_path=places, include_defaults=False)


@contextmanager
def quiet() -> Iterator[None]:
    """While lm-eval works; what matters of its remarks we count and say ourselves."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
