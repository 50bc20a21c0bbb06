"""Run lm-eval's tasks on a model that tithe loads, and turn the samples into one value per item."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from tithe.engine.devices import DTYPES, choose_device, choose_dtype, dtype_name
from tithe.engine.loading import read_weights
from tithe.engine.model_files import first_line
from tithe.engine.model_source import ModelSource, context_window, demand_known_ids, load_tokenizer
from tithe.errors import DataError, ModelError, SettingsError, TemplateError, TitheError
from tithe.lab.evaluate.measured import Kind, Measured
from tithe.lab.evaluate.tasks import Asked, Built, quiet


@dataclass(frozen=True)
class TaskSettings:
    """How to run tasks.

    Args:
        limit: run only the first so many items of each task.
        seed: random seed of all of lm-eval's generators.
        batch_size: lm-eval's batch size: a number, or `auto`.
        apply_chat_template: wrap prompts in the model's chat template.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int | str = 8
    apply_chat_template: bool = False


@dataclass
class Harness:
    """Run lm-eval's tasks on one model, which is loaded when first used.

    Args:
        source: the model's files.
        device: `auto`, `cuda`, `mps`, `cpu`.
        dtype: `auto`, `fp32`, `bf16`, `fp16`.
        how: how to run tasks.
        trust_remote_code: run code that comes with the model.
    """

    source: ModelSource
    device: str = "auto"
    dtype: str = "auto"
    how: TaskSettings = field(default_factory=TaskSettings)
    trust_remote_code: bool = False

    @cached_property
    def where(self) -> tuple[str, str]:
        """Return the device and dtype that are used."""
        device = choose_device(self.device)
        return str(device), dtype_name(choose_dtype(self.dtype, device))

    def check(self, built: Iterable[Built]) -> None:
        """Raise every error that can be found before the weights are loaded.

        Raises:
            TemplateError: a chat template is wanted, and the tokenizer has none.
            SettingsError: an answer may be longer than the model's window.
        """
        tokenizer = load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)
        if self.how.apply_chat_template and not tokenizer.chat_template:
            raise TemplateError(
                f"the tokenizer of `{self.source.name}` has no chat template", hint="leave out `--apply-chat-template`"
            )
        window = context_window(self.source, tokenizer)
        for one in built:
            longest = most_new_tokens(one.task)
            if window is not None and longest is not None and longest >= window:
                raise SettingsError(
                    f"task `{one.leaf.name}` takes answers of up to {longest:,} tokens, and the model reads {window:,}",
                    hint=f"`--max-new-tokens` below {window}, so that there is room for the prompt",
                )

    @cached_property
    def model(self) -> Any:
        """Return lm-eval's `HFLM` with our weights.

        Raises:
            ModelError: the model cannot be loaded.
        """
        device, dtype = self.where
        remote = self.trust_remote_code
        try:
            # Not by lm-eval's own loading: the weights must be read as everywhere else in tithe.
            model = read_weights(self.source, DTYPES[dtype], remote).to(
                device
            )  # merges an adapter, refuses missing tensors
            refuse_unknown_ids(model, self.source.name)
            with quiet():
                from lm_eval.models.huggingface import HFLM

                return HFLM(
                    pretrained=model,
                    tokenizer=load_tokenizer(self.source, trust_remote_code=remote),
                    batch_size=self.how.batch_size,
                    trust_remote_code=remote,
                )
        except TitheError:
            raise
        except Exception as error:  # lm-eval lets through whatever is raised below it
            raise ModelError(
                f"lm-eval cannot load `{self.source.name}`: {first_line(error)}",
                hint=f"looked in `{self.source.place}`",
            ) from error

    def run(self, asked: Asked, built: Sequence[Built]) -> tuple[list[Measured], list[str]]:
        """Run the tasks behind one name, and return the metrics and notes on them."""
        seed_all(self.how.seed)
        model = self.model
        with quiet():
            from lm_eval.evaluator import evaluate

            results = evaluate(
                lm=model,
                task_dict={"tasks": {one.leaf.name: one.task for one in built}, "groups": {}},
                limit=self.how.limit,
                bootstrap_iters=0,  # `interval` computes intervals from the items
                log_samples=True,
                apply_chat_template=self.how.apply_chat_template,
                fewshot_as_multiturn=True,  # has an effect only with a chat template
            )
            cut = count_cut_prompts(model, results["samples"], {one.leaf.name: one.task for one in built})
        return metrics_of(asked, built, results, self.about(built, cut), cut)

    def about(self, built: Sequence[Built], cut: int) -> dict[str, Any]:
        """Return what the values depend on besides the task."""
        device, dtype = self.where
        first = built[0]
        out: dict[str, Any] = {
            "lm_eval": version("lm-eval"),
            "task_version": (first.leaf.config.get("metadata") or {}).get("version"),
            "num_fewshot": first.task.get_config("num_fewshot"),
            **asdict(self.how),
            "device": device,
            "dtype": dtype,
            "generation": first.task.get_config("generation_kwargs"),
            "cut_prompts": cut,
            "data": data_source(first),
        }
        graders = [one.grader for one in built if one.grader is not None]
        return out | ({"execution": graders[0].about()} if graders else {})


def seed_all(seed: int) -> None:
    """Seed all generators, as lm-eval's own command does."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (lm-eval draws from it)
    torch.manual_seed(seed)


def data_source(one: Built) -> dict[str, Any]:
    """Return the local files with their digests, or the data set's name on the hub."""
    if one.leaf.data is not None:
        return {"files": one.leaf.data.digest()}
    return {"hub": one.leaf.config.get("dataset_path"), "subset": one.leaf.config.get("dataset_name")}


def most_new_tokens(task: Any) -> int | None:
    """Return the maximum length of an answer; None if the task generates nothing."""
    if task.get_config("output_type") != "generate_until":
        return None
    given = task.get_config("generation_kwargs") or {}
    return int(given.get("max_gen_toks", 256))  # lm-eval's own default


def count_cut_prompts(model: Any, samples: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Mapping[str, Any]) -> int:
    """Count the items that do not fit the model's window; lm-eval cuts their beginning without saying so."""
    cut = 0
    for name, items in samples.items():
        # An answer takes its share of the window. Without one, the last token is scored but never read: one more fits.
        limit = model.max_length - (most_new_tokens(tasks[name]) or -1)
        seen: dict[Any, bool] = {}
        for item in items:
            if item["doc_id"] not in seen:  # each filter has its own sample of an item
                seen[item["doc_id"]] = any(is_longer(model, text_of(call), limit) for call in item["arguments"])
        cut += sum(seen.values())
    return cut


def text_of(call: Sequence[Any]) -> str:
    """Return everything the model reads: the prompt, and the continuation that is scored."""
    return "".join(part for part in call if isinstance(part, str))


def is_longer(model: Any, text: str, limit: int) -> bool:
    """Return whether a text has more tokens than `limit`."""
    # A text has at most as many tokens as bytes, and a few special ones: short texts need no tokenizer.
    return len(text.encode("utf-8", "surrogatepass")) + 8 > limit and len(model.tok_encode(text)) > limit


def refuse_unknown_ids(model: Any, name: str) -> None:
    """Make a transformers model raise on token ids that it has no embedding for.

    Args:
        model: the model.
        name: its name, for the message.
    """
    table = model.get_input_embeddings()

    def check(_: Any, given: tuple[Any, ...]) -> None:
        if given and given[0].numel():
            demand_known_ids(name, int(given[0].max()), int(table.weight.shape[0]))

    table.register_forward_pre_hook(check)


RIGHT = {"acc", "acc_norm", "acc_bytes", "exact_match", "pass@1"}  # metrics whose 0 and 1 mean wrong and right


def metrics_of(
    asked: Asked, built: Sequence[Built], results: Mapping[str, Any], about: Mapping[str, Any], cut: int
) -> tuple[list[Measured], list[str]]:
    """Return one `Measured` per metric and filter, and notes; a group's tasks are one metric, with a group each.

    Raises:
        DataError: no metric of the task has a number for each item.
    """
    samples = results["samples"]
    # (metric, filter) -> the tasks that have it, each with its samples
    parts: dict[tuple[str, str], list[tuple[Built, list[Mapping[str, Any]]]]] = defaultdict(list)
    for one in built:
        by: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for item in samples[one.leaf.name]:
            for metric in item["metrics"]:
                by[metric, item["filter"]].append(item)
        for key, items in by.items():
            parts[key].append((one, items))
    whole, notes = [], []
    for (metric, filter_), some in parts.items():
        name = metric_name(asked.name, metric, filter_, list(parts))
        try:
            whole.append(metric_of_items(name, metric, some, results, about, len(built) > 1))
        except NotANumberError as error:
            notes.append(f"`{name}` is left out: {error}")
    if not whole:
        raise DataError(
            f"task `{asked.name}` has no metric with a number per item: {'; '.join(notes)}", hint="leave it out"
        )
    if cut:
        all_ = len({(name, item["doc_id"]) for name, some in samples.items() for item in some})
        notes.append(
            f"`{asked.name}`: {cut:,} of {all_:,} prompts do not fit the model's window and lose their beginning"
        )
    stopped = sum(one.grader.stopped for one in built if one.grader is not None)
    if stopped:
        notes.append(f"`{asked.name}`: {stopped:,} programs ran out of time and count as wrong")
    return whole, notes


class NotANumberError(Exception):
    """A metric has no number for each item; it is computed from all items together, such as a corpus BLEU."""


def metric_name(task: str, metric: str, filter_: str, all_: Sequence[tuple[str, str]]) -> str:
    """Return the task's name and what tells its metrics apart: `gsm8k strict-match`, `arc_easy acc_norm`, `mmlu`."""
    more = [metric] if len({one for one, _ in all_}) > 1 else []
    more += [filter_] if len({one for _, one in all_}) > 1 else []
    return " ".join([task, *more])


def metric_of_items(
    name: str,
    metric: str,
    parts: Sequence[tuple[Built, Sequence[Mapping[str, Any]]]],
    results: Mapping[str, Any],
    about: Mapping[str, Any],
    grouped: bool,
) -> Measured:
    """Return one metric over the items of one or more tasks."""
    values: dict[str, float] = {}
    groups: list[str] = []
    problems: dict[str, str] = {}
    for one, items in parts:
        prefix = f"{one.leaf.name}/" if grouped else ""
        for id_, item in zip(item_ids(items), items, strict=True):
            value = sample_value(item[metric])
            if math.isfinite(value):
                values[prefix + id_] = value
                groups.append(one.leaf.name)
            else:
                problems[prefix + id_] = f"its value is {value}"
    array = np.array(list(values.values()), dtype=np.float64)
    kind: Kind = "right" if metric in RIGHT and bool(np.isin(array, (0.0, 1.0)).all()) else "number"
    better = results["higher_is_better"][parts[0][0].leaf.name].get(metric, True)
    return Measured(
        metric=name,
        kind=kind,
        unit="right" if kind == "right" else metric,
        higher_is_better=bool(better),
        items=tuple(values),
        values=array,
        groups=tuple(groups) if grouped else (),
        problems=problems,
        about={**about, "metric": metric, "filter": parts[0][1][0]["filter"]},
    )


def sample_value(value: Any) -> float:
    """Return a sample's value of a metric as a float.

    Raises:
        NotANumberError: it is not a number.
    """
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    raise NotANumberError(f"the metric has a value of type {type(value).__name__} instead of a number for each item")


def item_ids(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each item's id: the hash of its content, so that it is the same for every model.

    Items with equal content are numbered in the order of the data set; samples may come in another order.
    """
    seen, found = Counter[str](), dict[int, str]()
    for item in sorted(items, key=lambda one: one["doc_id"]):
        hash_ = item["doc_hash"][:16]
        found[item["doc_id"]] = f"{hash_}-{seen[hash_]}" if seen[hash_] else hash_
        seen[hash_] += 1
    return [found[item["doc_id"]] for item in items]
