"""Tasks made ready to run: their data read, generated code led to our sandbox. No model is needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tithe.errors import DataError, SettingsError, TitheError
from tithe.lab.evaluate import index
from tithe.lab.evaluate.local import KNOWN
from tithe.lab.evaluate.programs import Grader, passed_at
from tithe.lab.evaluate.quiet import quiet
from tithe.lab.evaluate.tasks import FILTERS, GRADED, Leaf, filter_of


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
    manager: lm_eval.tasks.TaskManager = next(one for one in index.managers() if leaf.name in one.task_index)
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
