"""Tasks by lm-eval's names: found, given local files where there are some, refused where their code may not run."""

from __future__ import annotations

import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tithe.errors import DataError, MissingExtraError, SettingsError, TitheError, did_you_mean
from tithe.extras import install_hint
from tithe.lab.evaluate.programs import Grader, passed_at
from tithe.lab.evaluate.sandbox import Limits, confinement
from tithe.lab.evaluate.task_files import KNOWN, LocalData, find

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


@dataclass(frozen=True)
class Built:
    """A task that can be run, with its data read.

    Args:
        leaf: what it is.
        task: lm-eval's own object.
        grader: of generated code, where the task has some.
    """

    leaf: Leaf
    task: Any = field(repr=False)
    grader: Grader | None = None


def build(leaf: Leaf, *, shots: int | None, seed: int, max_new_tokens: int | None) -> Built:
    """Read a task's data and make it ready to run.

    Args:
        leaf: which task.
        shots: worked examples before each item; None takes the task's own number.
        seed: by which they are drawn.
        max_new_tokens: where an answer is cut off; None takes the task's own number.

    Raises:
        DataError: a file without the needed fields, or a data set that the hub does not give.
    """
    number = leaf.shots(shots)
    changes = with_data(leaf, number)
    grader = None
    if leaf.runs_code:
        grader = Grader(FILTERS[str(filter_of(leaf.config))], GRADED[leaf.config["dataset_path"]])
        changes |= graded(leaf.config, grader)
    try:
        with quiet():
            task = made(leaf, changes)
    except TitheError:
        raise
    except Exception as error:  # `datasets` and the hub raise whatever those below them raise
        raise unread(leaf, error) from error
    if max_new_tokens is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": max_new_tokens}, update=True)
    task.set_config(key="num_fewshot", value=number)
    task.set_fewshot_seed(seed=seed)
    return Built(leaf, task, grader)


def made(leaf: Leaf, changes: Mapping[str, Any]) -> Any:
    """lm-eval's task, with some of its configuration replaced."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask

    if leaf.runs_code:  # lm-eval's own file would load a metric from the hub that runs code in this process
        plain = {key: value for key, value in leaf.config.items() if key not in ("tag", "group", "task_list")}
        return ConfigurableTask(config={**plain, **changes})
    manager: lm_eval.tasks.TaskManager = next(one for one in managers() if leaf.name in one.task_index)
    group = {"group": "tithe", "task": [{"task": leaf.name, **changes}]}
    return manager.load([group])["tasks"][leaf.name]


def with_data(leaf: Leaf, shots: int) -> dict[str, Any]:
    """The part of a configuration that says where the data come from.

    Raises:
        DataError: a file without the needed fields.
        SettingsError: worked examples are wanted, and there is no file to take them from.
    """
    if leaf.data is None:
        return {}
    import datasets

    rows = leaf.data.rows()
    splits = {split: datasets.Dataset.from_list(some) for split, some in rows.items()}
    changes: dict[str, Any] = {"custom_dataset": lambda **_: splits}
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    gone = {name: None for name in names if leaf.config.get(name) not in (None, *rows)}
    own = (leaf.config.get("fewshot_config") or {}).get("samples")
    if (
        shots
        and not own
        and not any(
            leaf.config.get(name) in rows and leaf.config.get(name) != KNOWN[leaf.data.hub].split for name in names
        )
    ):
        file = next(iter(leaf.data.files.values()))
        raise SettingsError(
            f"task `{leaf.name}` shows {shots} worked examples, and there is no file of them beside `{file}`",
            hint="`--num-fewshot 0`, or put the training split there",
        )
    return changes | gone


def graded(config: Mapping[str, Any], grader: Grader) -> dict[str, Any]:
    """The part of a configuration that runs programs: ours in place of lm-eval's."""
    (metric,) = config["metric_list"]
    (steps,) = config["filter_list"]
    return {
        "unsafe_code": False,
        "metric_list": [{**metric, "metric": passed_at}],
        "filter_list": [{**steps, "filter": [{"function": "custom", "filter_fn": grader.grade}]}],
    }


def unread(leaf: Leaf, error: Exception) -> DataError:
    """What a failed loading says, in one sentence."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    hub = leaf.config.get("dataset_path")
    local = f"`--tasks {leaf.name}=FILE` reads a file instead" if hub in KNOWN else "is there a connection?"
    if leaf.data is not None:
        return DataError(
            f"task `{leaf.name}` cannot use {', '.join(map(str, leaf.data.files.values()))}: {words[:300]}"
        )
    return DataError(
        f"the data of task `{leaf.name}`, `{hub}` on the hub, could not be read: {words[:300]}",
        hint=local,
    )
