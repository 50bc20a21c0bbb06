"""Tasks by lm-eval's names: found, given local files where there are some, refused where their code may not run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.errors import MissingExtraError, SettingsError
from tithe.extras import install_hint
from tithe.lab.evaluate.index import leaves
from tithe.lab.evaluate.local import LocalData, find
from tithe.lab.evaluate.sandbox import Limits, confinement

GRADED = {  # data sets whose programs we run ourselves -> within which limits
    "openai/openai_humaneval": Limits(),
    "evalplus/humanevalplus": Limits(cpu_seconds=60, wall_seconds=180.0),  # the reference runs, too
}
FILTERS = {"build_predictions": False, "build_predictions_instruct": True}  # whether an answer ends at a fence


@dataclass(frozen=True)
class Leaf:
    """One of lm-eval's tasks.

    Args:
        name: in lm-eval.
        config: as its file has it.
        data: local files to read instead of the hub's data set.
    """

    name: str
    config: Mapping[str, Any]
    data: LocalData | None = None

    @property
    def runs_code(self) -> bool:
        return bool(self.config.get("unsafe_code"))

    def shots(self, asked: int | None) -> int:
        """Worked examples before each item; lm-eval never gives any to a task whose own number is 0."""
        own = self.config.get("num_fewshot")
        return own or 0 if asked is None or own == 0 else asked


@dataclass(frozen=True)
class Asked:
    """What one name of `--tasks` stands for.

    Args:
        name: as given, without its path.
        leaves: the tasks behind it; several for a group or a tag.
    """

    name: str
    leaves: tuple[Leaf, ...]

    def digests(self) -> dict[str, str]:
        """Of the local files."""
        return {file: value for leaf in self.leaves[:1] if leaf.data for file, value in leaf.data.digest().items()}


def demand_lm_eval() -> None:
    """Raise where lm-eval is not installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("tasks are lm-eval's, and it is not installed", hint=install_hint("eval"))


def resolve(specs: Sequence[str], *, allow_code: bool) -> list[Asked]:
    """Names, or `name=file`, to tasks; loads no data.

    Raises:
        SettingsError: no such task, one twice, a file that cannot be, or generated code that may not run.
        SandboxError: generated code may run, and nothing on this machine can confine it.
        MissingExtraError: lm-eval is not installed.
    """
    demand_lm_eval()
    found: list[Asked] = []
    for spec in specs:
        name, given, path = spec.partition("=")
        if given and not path:
            raise SettingsError(f"`{spec}` names no file", hint=f"`{name}=FILE`, or `{name}` alone")
        if name in {one.name for one in found}:
            raise SettingsError(f"task `{name}` is asked for twice", hint="once is enough")
        place = Path(path).expanduser() if path else None
        asked = Asked(name, tuple(leaf_of(one, config, place) for one, config in leaves(name)))
        check_code(asked, allow_code)
        found.append(asked)
    return found


def leaf_of(name: str, config: Mapping[str, Any], path: Path | None) -> Leaf:
    hub, subset = config.get("dataset_path"), config.get("dataset_name")
    return Leaf(name, config, None if path is None else find(str(hub), subset, path, name))


def check_code(asked: Asked, allow_code: bool) -> None:
    """Check that generated code is allowed, and that there is a sandbox for it: it runs in no other place.

    Raises:
        SettingsError: it is not allowed, or lm-eval would run it in this process.
        SandboxError: nothing on this machine can confine it.
    """
    for leaf in asked.leaves:
        if not leaf.runs_code:
            continue
        if not allow_code:
            raise SettingsError(
                f"task `{leaf.name}` runs the code that the model writes, and that is not allowed",
                hint="`--allow-code-execution` runs it, in a sandbox",
            )
        if leaf.config.get("dataset_path") not in GRADED or filter_of(leaf.config) not in FILTERS:
            raise SettingsError(
                f"task `{leaf.name}` would run generated code inside this very process",
                hint=f"in the sandbox: the tasks of {', '.join(GRADED)}",
            )
        confinement()


def filter_of(config: Mapping[str, Any]) -> str | None:
    """Name of the function that makes programs of a task's responses."""
    names = [step.get("filter_fn") for one in config.get("filter_list") or () for step in one["filter"]]
    return str(names[0]).rpartition(".")[2] if len(names) == 1 and names[0] is not None else None
