"""Measure how likely a model finds the responses of a held-out file: negative log-likelihood per token, per example."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from tithe.data.counts import RemarkCounts, note_sentences, remark_sentences
from tithe.data.dataset import Dataset
from tithe.data.ids import prompt_id
from tithe.errors import DataError, did_you_mean
from tithe.lab.evaluate.measured import Measured
from tithe.records import Example
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache
from tithe.run.folder import run_folder
from tithe.run.method import Setup, set_up
from tithe.run.results import ScoreResult
from tithe.run.score import Scoring
from tithe.run.source import DataSource
from tithe.settings import ScoreSettings

COUNTED = (
    *("records", "examples", "bad_rows", "notes", "duplicates", "truncated_prompts", "truncated_responses"),
    *RemarkCounts().as_dict(),
)
METRIC, UNIT = "holdout_nll", "nats/token"


class ReadingSettings(Protocol):
    """Settings that say how to read a held-out file; those of a scoring, a training and an evaluation all fit."""

    @property
    def model(self) -> str | None: ...
    @property
    def template(self) -> str: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def truncation(self) -> Literal["response", "prompt", "problem"] | None: ...
    @property
    def bos(self) -> Literal["auto", "always", "never"]: ...
    @property
    def eos(self) -> bool: ...
    @property
    def dtype(self) -> Literal["auto", "fp32", "bf16", "fp16"]: ...
    @property
    def device(self) -> str: ...
    @property
    def trust_remote_code(self) -> bool: ...


READ = ("model", "template", "max_length", "truncation", "bos", "eos", "dtype", "device", "trust_remote_code")


def measure_holdout(
    settings: ReadingSettings,
    path: str | Path,
    *,
    group: str | None = None,
    columns: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Measured:
    """Return the mean negative log-likelihood of each response given its prompt, in nats per token; lower is better.

    Args:
        settings: which model, and how an example becomes tokens.
        path: held-out data set: file, folder or hub id.
        group: column that holds each example's group, such as `category`.
        columns: the user's names of columns, as `role=column`.
        reporter: receives progress and messages.

    Raises:
        TitheError: the file or the model cannot be read, or a record has no group.
    """
    reporter, setup = reporter or Reporter(), holdout_setup(settings, path, group, columns)
    extra = [] if group is None else [group]
    # In a temporary folder: scores are not kept, only what is made of them.
    with run_folder(None) as place, closing(EngineCache(reporter)) as engines:
        return from_scores(Scoring(setup, engines, reporter, place, extra=extra).run(), group, reporter)


def holdout_setup(settings: ReadingSettings, path: str | Path, group: str | None, columns: Sequence[str] = ()) -> Setup:
    """Set up the scoring that reads the file, and check it before any weights are loaded.

    Raises:
        TitheError: the file or the model cannot be read, or no record has the column.
    """
    given = ScoreSettings.of(
        {"dataset": str(path), "scorer": ("perplexity",), "columns": columns}
        | {name: getattr(settings, name) for name in READ}
    )
    source = DataSource.open(given)
    if group is not None and group not in source.columns:
        raise DataError(f"no record of `{path}` has a column `{group}`", hint=did_you_mean(group, source.columns))
    return set_up(given, source=source)


def from_scores(result: ScoreResult, group: str | None, reporter: Reporter) -> Measured:
    """Turn a score table into a `Measured`; bad rows and examples without an NLL become its problems."""
    columns = {name: result.score_table.values(name) for name in ("id", "row", "nll_given", "problem", "truncated")}
    ids = [f"row {row}" if id_ is None else id_ for id_, row in zip(columns["id"], columns["row"], strict=True)]
    values, problems = dict[str, float](), dict[str, str]()
    for id_, nll, problem in zip(ids, columns["nll_given"], columns["problem"], strict=True):
        if nll is not None and np.isfinite(nll):
            values[id_] = nll
        else:
            problems[id_] = problem or f"its likelihood is {nll}"
    groups = {} if group is None else groups_of(ids, result, group)
    cut = sum(n or 0 for n in columns["truncated"])
    if cut:
        limit = result.record["template"]["max_length"]
        n = sum(bool(n) for n in columns["truncated"])
        reporter.say(
            f"note: {n:,} examples of `{result.dataset.source}` do not fit max length {limit}: {cut:,} tokens are cut"
        )
    counts = {name: result.record["counts"][name] for name in COUNTED}
    for sentence in (*note_sentences(counts), *remark_sentences(counts)):
        reporter.say(sentence)
    return Measured(
        metric=METRIC,
        kind="number",
        unit=UNIT,
        higher_is_better=False,
        items=tuple(values),
        values=np.array(list(values.values()), dtype=np.float64),
        groups=tuple(groups[id_] for id_ in values) if group is not None else (),
        clusters=clusters_of(values, result.dataset),
        problems=problems,
        about=about(result.record, group, cut) | {"counts": counts},
    )


def clusters_of(ids: Collection[str], dataset: Dataset) -> tuple[str, ...]:
    """Return the prompt of each example as its cluster; nothing if no two examples share a prompt."""
    prompts = {one.id: prompt_id(one.prompt, one.tools) for one in dataset if isinstance(one, Example)}
    found = tuple(prompts[id_] for id_ in ids)
    return found if len(set(found)) < len(found) else ()


def groups_of(ids: list[str], result: ScoreResult, group: str) -> dict[str, str]:
    """Return the group of each example by id.

    Raises:
        DataError: a record has no group.
    """
    grown = result.score_table
    found = {}
    for id_, known, row, value in zip(ids, grown.values("id"), grown.values("row"), grown.extra[group], strict=True):
        if known is None:  # a bad row
            continue
        if value is None or value == "":
            raise DataError(
                f"record {row + 1} of `{result.dataset.source}` has nothing in its column `{group}`",
                hint="give every record a group, or leave out `holdout_group`",
            )
        found[id_] = str(value)
    return found


def about(record: Mapping[str, Any], group: str | None, cut: int) -> dict[str, Any]:
    """Return what the values depend on."""
    return {
        "dataset": record["dataset"],
        "group": group,
        "template": record["template"],
        "truncated_tokens": cut,
        "model": record["model"],
        "engine": record.get("engine"),
        "versions": record["versions"],
    }
