"""Find lm-eval's tasks by name, give them local files where there are any, and refuse those whose code may not run."""

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
from tithe.lab.evaluate.task_files import KNOWN, LocalData, find_files

FAMILIES = (
    "gsm8k",
    "humaneval",
    "mmlu/default",
    "arc",
    "truthfulqa",
    "piqa",
)  # read without the index of all of lm-eval, which takes seconds


def leaves(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the tasks behind a name, each with its configuration; those of a group in its order.

    Raises:
        SettingsError: lm-eval has no such name.
    """
    for manager in managers():
        index = manager.task_index
        if name in index and (kind_of(index[name]) != "TAG" or manager.include_path is None):
            # A tag may have members outside the few families, so only the full index counts for it.
            return list(dict(walk(name, index)).items())
    hint = did_you_mean(name, manager.all_tasks)  # of the last manager, which knows all of them
    listed = "`lm-eval ls tasks` lists them"  # thousands: more than a hint can name
    raise SettingsError(f"lm-eval has no task `{name}`", hint=hint if hint.startswith("did you mean") else listed)


def walk(name: str, index: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the tasks below a name, through groups and tags.

    Raises:
        SettingsError: a group overrides settings of its members, which is not supported.
    """
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
                f"group `{name}` of lm-eval changes the settings of its tasks, which tithe does not support",
                hint="name the tasks instead",
            )
        yield from walk(one, index)


def kind_of(entry: Any) -> str:
    return str(entry.kind.name)


def managers() -> Iterator[Any]:
    """Yield task managers: first one that is quick to make, then the one of all of lm-eval."""
    yield manager_of(FAMILIES)
    yield manager_of(())


@lru_cache(maxsize=2)
def manager_of(families: tuple[str, ...]) -> Any:
    """Return a task manager of these families; of all if none are given."""
    with quiet():
        import lm_eval.tasks

        if not families:
            return lm_eval.tasks.TaskManager()
        root = Path(lm_eval.tasks.__file__).parent
        places = [str(root / name) for name in families if (root / name).is_dir()]
        return lm_eval.tasks.TaskManager(include_path=places, include_defaults=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's warnings and output; what matters of them tithe counts and says itself."""
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


GRADED = {  # data sets whose programs run in our sandbox -> their limits
    "openai/openai_humaneval": Limits(),
    "evalplus/humanevalplus": Limits(cpu_seconds=60, wall_seconds=180.0),  # their tests run the reference solution, too
}
FILTERS = {
    "build_predictions": False,
    "build_predictions_instruct": True,
}  # function that makes a program of an answer -> whether it ends at a code fence


@dataclass(frozen=True)
class Leaf:
    """One task of lm-eval.

    Args:
        name: lm-eval's name.
        config: content of its configuration file.
        data: local files to read instead of the hub's data set.
    """

    name: str
    config: Mapping[str, Any]
    data: LocalData | None = None

    @property
    def runs_code(self) -> bool:
        return bool(self.config.get("unsafe_code"))

    def shots(self, asked: int | None) -> int:
        """Return how many worked examples precede each item; lm-eval keeps a task's own number if that is 0."""
        own = self.config.get("num_fewshot")
        return own or 0 if asked is None or own == 0 else asked


@dataclass(frozen=True)
class Asked:
    """The tasks that one name of `--tasks` stands for.

    Args:
        name: the name, without a file.
        leaves: the tasks behind it; several for a group or a tag.
    """

    name: str
    leaves: tuple[Leaf, ...]

    def digests(self) -> dict[str, str]:
        """Return the hashes of the local files."""
        return {file: value for leaf in self.leaves[:1] if leaf.data for file, value in leaf.data.digest().items()}


def demand_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("tasks need lm-eval, which is not installed", hint=install_hint("eval"))


def resolve(specs: Sequence[str], *, allow_code: bool) -> list[Asked]:
    """Find the tasks of names and of `name=file`; loads no data.

    Raises:
        SettingsError: a task is unknown or given twice, a file does not fit it, or its code may not run.
        SandboxError: its code may run, but no sandbox works here.
        MissingExtraError: lm-eval is not installed.
    """
    demand_lm_eval()
    found: list[Asked] = []
    for spec in specs:
        name, given, path = spec.partition("=")
        if given and not path:
            raise SettingsError(f"`{spec}` names no file", hint=f"`{name}=FILE`, or `{name}` alone")
        if name in {one.name for one in found}:
            raise SettingsError(f"task `{name}` is given twice", hint="give it once")
        place = Path(path).expanduser() if path else None
        asked = Asked(name, tuple(leaf_of(one, config, place) for one, config in leaves(name)))
        check_code(asked, allow_code)
        found.append(asked)
    return found


def leaf_of(name: str, config: Mapping[str, Any], path: Path | None) -> Leaf:
    """Return a task with its local files, if a path is given."""
    hub, subset = config.get("dataset_path"), config.get("dataset_name")
    return Leaf(name, config, None if path is None else find_files(str(hub), subset, path, name))


def check_code(asked: Asked, allow_code: bool) -> None:
    """Check that generated code is allowed, and that there is a sandbox for it.

    Raises:
        SettingsError: it is not allowed, or lm-eval would run it in this process.
        SandboxError: no sandbox works here.
    """
    for leaf in asked.leaves:
        if not leaf.runs_code:
            continue
        if not allow_code:
            raise SettingsError(
                f"task `{leaf.name}` runs code that the model writes, which is not allowed",
                hint="`--allow-code-execution` runs it, in a sandbox",
            )
        if leaf.config.get("dataset_path") not in GRADED or filter_name(leaf.config) not in FILTERS:
            raise SettingsError(
                f"task `{leaf.name}` would run generated code in this process",
                hint=f"the tasks that run in a sandbox are those of {', '.join(GRADED)}",
            )
        confinement()


def filter_name(config: Mapping[str, Any]) -> str | None:
    """Return the name of the function that makes programs of a task's responses; None if there is not exactly one."""
    names = [step.get("filter_fn") for one in config.get("filter_list") or () for step in one["filter"]]
    return str(names[0]).rpartition(".")[2] if len(names) == 1 and names[0] is not None else None


@dataclass(frozen=True)
class Built:
    """A task with its data, ready to run.

    Args:
        leaf: the task.
        task: lm-eval's own object.
        grader: runs the generated code, if the task has any.
    """

    leaf: Leaf
    task: Any = field(repr=False)
    grader: Grader | None = None


def build(leaf: Leaf, *, shots: int | None, seed: int, max_new_tokens: int | None) -> Built:
    """Read a task's data and make it ready to run.

    Args:
        leaf: the task.
        shots: worked examples before each item; None for the task's own number.
        seed: random seed by which they are drawn.
        max_new_tokens: tokens at which an answer is cut off; None for the task's own number.

    Raises:
        DataError: a file lacks a field, or the hub's data set cannot be read.
    """
    number = leaf.shots(shots)
    changes = data_changes(leaf, number)
    grader = None
    if leaf.runs_code:
        grader = Grader(FILTERS[str(filter_name(leaf.config))], GRADED[leaf.config["dataset_path"]])
        changes |= grading_changes(leaf.config, grader)
    try:
        with quiet():
            task = make_task(leaf, changes)
    except TitheError:
        raise
    except Exception as error:  # `datasets` and the hub let through whatever is raised below them
        raise loading_error(leaf, error) from error
    if max_new_tokens is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": max_new_tokens}, update=True)
    task.set_config(key="num_fewshot", value=number)
    task.set_fewshot_seed(seed=seed)
    return Built(leaf, task, grader)


def make_task(leaf: Leaf, changes: Mapping[str, Any]) -> Any:
    """Return lm-eval's task with parts of its configuration replaced."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask

    if leaf.runs_code:  # the manager would load lm-eval's metric, which runs code in this process
        plain = {key: value for key, value in leaf.config.items() if key not in ("tag", "group", "task_list")}
        return ConfigurableTask(config={**plain, **changes})
    manager: lm_eval.tasks.TaskManager = next(one for one in managers() if leaf.name in one.task_index)
    group = {"group": "tithe", "task": [{"task": leaf.name, **changes}]}
    return manager.load([group])["tasks"][leaf.name]


def data_changes(leaf: Leaf, shots: int) -> dict[str, Any]:
    """Return the changes to a configuration that make it read local files.

    Raises:
        DataError: a file lacks a field.
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
    own = (leaf.config.get("fewshot_config") or {}).get("samples")  # worked examples in the configuration itself
    others = rows.keys() - {KNOWN[leaf.data.hub].split}
    if shots and not own and not any(leaf.config.get(name) in others for name in names):
        file = next(iter(leaf.data.files.values()))
        raise SettingsError(
            f"task `{leaf.name}` shows {shots} worked examples, and there is no file of them beside `{file}`",
            hint="`--num-fewshot 0`, or put the training split there",
        )
    return changes | gone


def grading_changes(config: Mapping[str, Any], grader: Grader) -> dict[str, Any]:
    """Return the changes to a configuration that make our grader run the programs."""
    (metric,) = config["metric_list"]
    (steps,) = config["filter_list"]
    return {
        "unsafe_code": False,
        "metric_list": [{**metric, "metric": passed_at}],
        "filter_list": [{**steps, "filter": [{"function": "custom", "filter_fn": grader.grade}]}],
    }


def loading_error(leaf: Leaf, error: Exception) -> DataError:
    """Return the error of data that could not be loaded."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    hub = leaf.config.get("dataset_path")
    local = f"`--tasks {leaf.name}=FILE` reads a file instead" if hub in KNOWN else "is there a network connection?"
    if leaf.data is not None:
        return DataError(
            f"task `{leaf.name}` cannot use {', '.join(map(str, leaf.data.files.values()))}: {words[:300]}"
        )
    return DataError(
        f"the data of task `{leaf.name}`, `{hub}` on the hub, could not be read: {words[:300]}",
        hint=local,
    )
