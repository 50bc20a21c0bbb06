"""What a pipeline's stages need to run: settings, selectors, filters and the parts of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tithe import plugins
from tithe.config import SelectSettings
from tithe.data.files import LOOK, Dataset
from tithe.data.subset import Subset
from tithe.errors import SettingsError
from tithe.neighbours.encoder import FILE, Encoder
from tithe.records import Example
from tithe.run.passed_on import check_passed_on
from tithe.run.select import own_columns
from tithe.run.setup import Parts
from tithe.run.stages import Stage, base_name, naming
from tithe.run.table import COUNTS, NLLS
from tithe.run.watch import Watch
from tithe.scorers.base import Scorer
from tithe.selectors.base import Selector
from tithe.selectors.filters import Filter

if TYPE_CHECKING:
    from tithe.engine.engine import Engine

ELSEWHERE = ("scorer", "preset", "by", "selector", "keep", "residualise")  # said by the stages


@dataclass(frozen=True)
class Job:
    """A stage, ready to be run.

    Args:
        stage: what was asked for.
        settings: as `select` would have them if the stage were all.
        selector: the stage's own.
        readers: all selectors that read this stage's scores: its own, and those of the stages that have no scorer.
        column: what the stage's scores are called in the table of the whole; None where it has none of its own.
    """

    stage: Stage
    settings: SelectSettings
    selector: Selector
    readers: tuple[Selector, ...]
    column: str | None


@dataclass
class Garage:
    """Room for one model at a time, so that stages of the same model load it once."""

    name: str = ""
    engine: Engine | None = None

    def fetch(self, parts: StageParts) -> Engine:
        if self.engine is None or self.name != parts.fingerprint:
            from tithe.engine.engine import release

            if self.engine is not None:
                self.engine.close()
            self.engine = None
            release(parts.devices[0])  # the last model goes before the next one comes
            self.engine, self.name = parts.load(), parts.fingerprint
        return self.engine


@dataclass
class StageParts(Parts):
    """What a stage is made of: its own scorer and model, and of the data set what is left.

    Args:
        whole: the parts of the run.
        garage: where the model stands between stages.
        answers: the folder of all stages' answers and embeddings.
        places: row -> turns that are left; None for all.
        probe: only to see what can be known to be wrong; looks at the first examples alone.
    """

    whole: Parts = field(kw_only=True)
    garage: Garage = field(kw_only=True)
    answers: Path | None = field(default=None, kw_only=True)
    places: Mapping[int, Collection[int]] | None = field(default=None, kw_only=True)
    probe: bool = field(default=False, kw_only=True)

    @cached_property
    def dataset(self) -> Dataset:
        return self.whole.dataset if self.places is None else Subset.of(self.whole.dataset, self.places)

    @cached_property
    def watch(self) -> Watch:
        """The run's: what changes between two stages is noticed, too."""
        return self.whole.watch

    @cached_property
    def columns(self) -> list[str]:
        """Those of the whole: a stage may have few examples left."""
        return self.whole.columns

    @cached_property
    def examples(self) -> Sequence[Example]:
        if not self.probe:
            return super().examples
        return [item for item in islice(self.dataset, LOOK) if isinstance(item, Example)]

    def encoder(self, spec: str) -> Encoder:
        """A file's vectors belong to the whole, whatever is left of it."""
        return self.whole.encoder(spec) if spec.strip().startswith(FILE) else super().encoder(spec)

    @cached_property
    def engine(self) -> Engine:
        return self.garage.fetch(self)

    def load(self) -> Engine:
        return super().engine

    def answers_folder(self, place: Path | None) -> Path | None:
        """One for all stages: what an earlier one has read is not read again."""
        return self.answers or place


def check_settings(settings: SelectSettings) -> None:
    """Refuse settings that a pipeline's stages have for themselves.

    Raises:
        SettingsError: one of them is set.
    """
    if settings.warmup:
        raise SettingsError(
            "`warmup` does not go with a pipeline, whose stages may have models of their own",
            hint="`tithe warmup DATA --model M -o M-pre`, and then for example `superfiltering:20% -> ifd@M-pre:5%`",
        )
    for name in ELSEWHERE:
        if getattr(settings, name) != SelectSettings.model_fields[name].default:
            raise SettingsError(
                f"`--{name}` does not go with `--pipeline`, whose stages name what they score, choose and keep",
                hint="for example `superfiltering:20% -> ifd|bottom:5%`",
            )


def make_jobs(stages: Sequence[Stage], settings: SelectSettings, whole: Parts) -> tuple[list[Job], list[str]]:
    """The stages with what they need, and the filters that wait for the first stage that has their column.

    Raises:
        SettingsError: a filter's column is nowhere to be had.
    """
    columns = column_names(stages)
    drops, waiting = filters_of(stages, columns, settings.drop, whole)
    selectors: list[Selector] = []
    scorers: list[Scorer] = []
    for stage in stages:
        with naming(stage):
            selectors.append(plugins.build_selector(stage.selector, whole.passed_on))
            if stage.scorer:
                scorers.append(plugins.build_scorer(stage.scorer, whole.passed_on))
    check_passed_on(settings, [*scorers, *selectors])
    jobs: list[Job] = []
    for i, stage in enumerate(stages):
        later = next((k for k in range(i + 1, len(stages)) if stages[k].scorer), len(stages))
        own = {
            "scorer": (stage.scorer,) if stage.scorer else jobs[-1].settings.scorer,
            "model": stage.model or (settings.model if stage.scorer else jobs[-1].settings.model),
            "selector": stage.selector,
            "keep": stage.budget,
            "drop": drops[i] if stage.scorer else (),
            "drop_duplicates": settings.drop_duplicates and i == 0,
            "drop_contaminated": settings.drop_contaminated if i == 0 else (),
            "pipeline": None,
        }
        jobs.append(
            Job(stage, settings.model_copy(update=own), selectors[i], tuple(selectors[i:later]), columns.get(i))
        )
    return jobs, waiting


def column_names(stages: Sequence[Stage]) -> dict[int, str]:
    """Place of a stage -> name of its scores: the scorer's, with `_2`, `_3`, ... where it scored before."""
    names: dict[int, str] = {}
    for i, stage in enumerate(stages):
        if stage.scorer is None:
            continue
        name, n = base_name(stage.scorer), 1
        while name in names.values():
            n += 1
            name = f"{base_name(stage.scorer)}_{n}"
        names[i] = name
    return names


def filters_of(
    stages: Sequence[Stage], columns: Mapping[int, str], given: tuple[str, ...] | None, whole: Parts
) -> tuple[list[tuple[str, ...] | None], list[str]]:
    """Per stage the filters given that are its own (None: the scorer's own), and those that wait for their column.

    A filter belongs to the first stage that has its column: of a score the one that computes it, of the input and of
    token counts the first of all.
    """
    if not given:
        return [given] * len(stages), []
    found: list[list[str]] = [[] for _ in stages]
    waiting = []
    at = {name: i for i, name in columns.items()}
    for text in given:
        one = Filter.parse(text)
        if one.column in NLLS:
            waiting.append(text)
        elif one.column in at:
            i = at[one.column]
            found[i].append(base_name(stages[i].scorer or "") + one.text.removeprefix(one.column))
        else:
            one.check([*at, *COUNTS[:-1], *whole.columns])
            found[0].append(text)
    return [tuple(texts) or None for texts in found], waiting


def columns_read(job: Job, parts: Parts, readers: Sequence[Selector]) -> list[str]:
    """Columns of the input that the job's filters and these selectors read."""
    found = own_columns(parts, job.selector, [Filter.parse(text) for text in job.settings.drop or ()])
    for selector in readers:
        found += own_columns(parts, selector, [])
    return list(dict.fromkeys(found))


def check_job(job: Job, whole: Parts, folder: Path | None) -> None:
    """Raise what can be known to be wrong before anything is scored."""
    parts = StageParts(job.settings, selectors=[job.selector], whole=whole, garage=Garage(), probe=True)
    columns_read(job, parts, [])
    parts.check(folder)
