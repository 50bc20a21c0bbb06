"""The method of a run (scorers, selectors, readouts), and its setup: data, method and model, checked together.

What is wrong with the settings is found here, before a run folder is made or a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tithe import plugins
from tithe.data.render import Renderer
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.engine.store.store import Store
from tithe.errors import DataError, SettingsError, demand, did_you_mean
from tithe.extras import versions
from tithe.neighbours.encoder import FILE
from tithe.neighbours.encoders import make_encoder
from tithe.records import Ask, Example
from tithe.run.answers import borrow, demand_run_folder, model_answers
from tithe.run.engines import DeferredModel
from tithe.run.run_model import ALWAYS_THERE, RunModel, open_model, open_renderer
from tithe.run.source import DataSource, Pools, read_kept
from tithe.scorers.base import Scorer, learns, settings_of
from tithe.selectors.base import Selector
from tithe.settings import INHERITED, ScoreSettings
from tithe.specs import parse_spec
from tithe.testing.fake_bench import PlanBench

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIKELIHOODS = "nll_tokens"


@dataclass(frozen=True)
class Method:
    """The scorers and selectors of a run: what they ask the model, and how its answers become a choice.

    Args:
        settings: settings of the run.
        scorers: by name, in the order of the settings, not prepared yet.
        selectors: selectors that read these scores.
    """

    settings: ScoreSettings
    scorers: Mapping[str, Scorer]
    selectors: Sequence[Selector] = ()

    @classmethod
    def of(cls, settings: ScoreSettings, selectors: Sequence[Selector] = ()) -> Self:
        """Build the scorers that the settings name.

        Raises:
            SettingsError: a scorer is unknown or given twice, or a setting goes with none of them.
        """
        found: dict[str, Scorer] = {}
        for spec in settings.scorer:
            scorer = plugins.build_scorer(spec, inherited_settings(settings))
            if scorer.name in found:
                raise SettingsError(f"scorer `{scorer.name}` is given twice", hint="each scorer has one column")
            found[scorer.name] = scorer
        method = cls(settings, found, selectors)
        if settings.residualise and not method.residualised:
            raise SettingsError(
                "`residualise` subtracts what length predicts, and nothing is left of `length`", hint="leave it out"
            )
        return method

    @property
    def learns(self) -> bool:
        """Whether a scorer learns from the data set before it scores."""
        return any(map(learns, self.scorers.values()))

    @property
    def whole_response(self) -> bool:
        """Whether a scorer needs uncut responses."""
        return any(scorer.whole_response for scorer in self.scorers.values())

    @property
    def residualised(self) -> list[str]:
        """Names of the scorers that also get a residual score, without what the length predicts."""
        return [name for name in self.scorers if self.settings.residualise and name != "length"]

    @property
    def score_columns(self) -> list[str]:
        """Columns of the score table that scorers fill: scores, their additional columns, residuals."""
        more = [f"{name}_{what}" for name, scorer in self.scorers.items() for what in scorer.also]
        return [*self.scorers, *more, *map(residual_name, self.residualised)]

    @property
    def text_columns(self) -> list[str]:
        """Columns of the score table that scorers fill with words."""
        return [f"{name}_{what}" for name, scorer in self.scorers.items() for what in scorer.labels]

    @property
    def encoder_specs(self) -> list[str]:
        """Specs of the encoders that the scorers and selectors use."""
        used = [*self.scorers.values(), *self.selectors]
        with_one = [one for one in used if "encoder" in plugins.setting_names(type(one))]
        return list(dict.fromkeys(spec for spec in (one.encoder for one in with_one) if spec))  # type: ignore[attr-defined]

    def stubs(
        self,
        examples: Sequence[Example],
        pools: Pools,
        asked: Callable[[Sequence[Mapping[str, Ask]]], object] = lambda _: None,
        sample: frozenset[str] = frozenset(),
    ) -> dict[str, Scorer]:
        """Return the scorers, prepared with made-up vectors and answers; their asks have the right kind and number.

        Args:
            examples: used as the whole data set.
            pools: the other data sets of the run.
            asked: called with the asks that a scorer makes while it prepares.
            sample: ids of examples that become each other's neighbours.
        """
        bench = PlanBench(examples, read=pools.load, tables=read_kept, asked=asked, sample=sample)
        return {name: scorer.prepare(bench) for name, scorer in self.scorers.items()}

    def readouts_asked(self, source: DataSource, pools: Pools) -> frozenset[str]:
        """Return the names of the readouts that the scorers ask of the first examples.

        Raises:
            DataError: no example can be read, or there are too few to learn from.
            SettingsError: a readout is unknown.
        """
        first = source.first_records
        if not first.examples:
            bad = first.first_bad
            where = "" if bad is None else f", the first at {bad.where}: {bad.reason}"
            raise DataError(
                f"no record of `{self.settings.dataset}` can be read: {first.bad} bad rows{where}",
                hint="`--format` names the shape, if it was not recognised",
            )
        asked: list[Mapping[str, Ask]] = []
        try:
            scorers = self.stubs(first.examples if self.learns else first.examples[:1], pools, asked.extend)
        except DataError:
            if first.whole:
                raise
            # The first records may have too few of a kind (say, of one label): try all examples.
            scorers = self.stubs(source.examples, pools, asked.extend)
        # Asks must name the same readouts for every example, so one example tells which stores to open.
        known = plugins.names(plugins.READOUTS)
        for scorer in scorers.values():
            asks = scorer.asks(first.examples[0])
            for name in {ask.readout.partition(":")[0] for ask in asks.values()} - {*known}:
                raise SettingsError(f"scorer `{scorer.name}`: unknown readout `{name}`", hint=did_you_mean(name, known))
            asked.append(asks)
        names = {ask.readout for each in asked for ask in each.values()}
        return frozenset(LIKELIHOODS if name == "nll" and self.settings.per_token else name for name in names)


@dataclass(frozen=True)
class Setup:
    """Data, method and model of a run, checked to fit together; no weights are loaded yet.

    Args:
        settings: settings of the run, or of one stage.
        source: the data.
        method: scorers and selectors.
        model: the model's files.
        renderer: turns examples into passes.
        asked: names of the readouts that the scorers ask for.
        readouts: readouts by name; the built-in ones are always there.
        pools: other data sets that scorers read.
        weights: whether to load the model if a readout needs it; False in a plan.
        notes: notes to print before the run reads.
        warmed: record of the warm-up that trained the model; None without one.
    """

    settings: ScoreSettings
    source: DataSource
    method: Method
    model: RunModel
    renderer: Renderer
    asked: frozenset[str]
    readouts: Mapping[str, Readout]
    pools: Pools
    weights: bool = True
    notes: Sequence[str] = ()
    warmed: Mapping[str, Any] | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a readout or an encoder reads the scoring model."""
        return needs_model(self.asked, self.method)

    @property
    def reads_model(self) -> bool:
        """Whether this run may load the weights."""
        return self.weights and self.needs_model

    def describe(self) -> dict[str, Any]:
        """Return everything that the scores depend on, for the run record."""
        out = basic_record(self.settings)
        out["dataset"] = self.source.input_check.describe()
        out["scorers"] = {name: scorer_record(scorer) for name, scorer in self.method.scorers.items()}
        out["template"] = self.renderer.describe()
        out["model"] = self.model.describe()
        described = {name: facts for name, one in self.readouts.items() if (facts := one.describe())}
        if described:
            out["readouts"] = described
        if self.warmed is not None:
            out["warmup"] = self.warmed
        if self.reads_model:  # hashing the weights takes seconds: only if they are read
            out["model"] |= {"fingerprint": self.model.fingerprint, "dtype": self.model.weights_dtype}
        return out

    def stores(self, place: Path, say: Callable[[str], None]) -> dict[str, Store]:
        """Open the stores of the readouts, by name; none if no model is needed.

        Args:
            place: folder of the stored answers.
            say: prints a note if the run folder in `answers` has none of this model.
        """
        if not self.needs_model:
            return {}
        self.model.keep_dtype(place)
        known = (r for r in sorted(self.asked) if r in self.readouts)
        name = model_answers(self.model)
        stores = {r: Store(place, self.readouts[r], name) for r in known if self.readouts[r].needs_model}
        other = self.settings.answers
        if other is not None and not borrow(Path(other).expanduser(), stores.values()):
            say(f"note: `{other}` has no answers of this model in {self.model.weights_dtype}")
        return stores

    def open_store(self, place: Path, readout: Readout) -> Store:
        """Open the store of a readout that was made while a scorer prepared."""
        store = Store(place, readout, model_answers(self.model))
        if self.settings.answers is not None:
            borrow(Path(self.settings.answers).expanduser(), [store])
        return store

    def with_trained_model(self, record: Mapping[str, Any]) -> Setup:
        """Return the setup with the model that a warm-up trained in the run folder.

        Args:
            record: record of the warm-up; `folder` is where the trained model is.
        """
        settings = self.settings.model_copy(update={"model": record["folder"]})
        model = open_model(settings, began_in=self.model.began_in)
        return replace(
            self, model=model, readouts=make_readouts(self.asked, Facts(model, self.renderer)), warmed=record
        )


def set_up(
    settings: ScoreSettings,
    *,
    method: Method | None = None,
    source: DataSource | None = None,
    pools: Pools | None = None,
    weights: bool = True,
    folder: Path | None = None,
) -> Setup:
    """Find data, method and model of a run, and check them before a folder is made.

    Args:
        settings: settings of the run.
        method: scorers and selectors; built from the settings by default.
        source: the data; opened from the settings by default.
        pools: other data sets, if some are read already.
        weights: whether the run will load the model, if it needs one.
        folder: the run folder; its contents may decide the dtype.

    Raises:
        TitheError: the run cannot work with these settings; names the first mistake.
    """
    if settings.answers is not None and weights:
        demand_run_folder(Path(settings.answers).expanduser())
    if settings.per_token and weights and folder is None:
        raise SettingsError("`per_token` needs a run folder for its file", hint="give `run_dir`")
    # Order matters for the first error: settings, then data, then the model, which may have to be downloaded.
    method = method or Method.of(settings)
    source = source or DataSource.open(settings)
    pools = pools or Pools(settings)
    said_before = len(pools.notes)
    asked = method.readouts_asked(source, pools)
    if settings.per_token and weights and LIKELIHOODS not in asked:
        raise SettingsError(
            f"`per_token` keeps likelihoods, and {', '.join(method.scorers)} reads none",
            hint="leave it out, or score with `ifd` as well",
        )
    needed = needs_model(asked, method)  # without one, the tokenizer is still needed: a run counts tokens
    what = "a model" if needed else "a model's tokenizer, to count tokens"
    model = open_model(
        settings, weights=weights and needed, began_in=folder, missing=f"{', '.join(method.scorers)} needs {what}"
    )
    notes = [] if source.part_of is not None else [*source.dataset.notes]
    if weights and settings.device not in ALWAYS_THERE:  # a mistyped device is an error, needed or not
        demand(model.devices)
    if weights and needed and (note := model.chosen_dtype[1]) is not None:
        notes.append(note)
    renderer = open_renderer(settings, model, whole_response=method.whole_response)
    facts = Facts(model, renderer, weights)
    readouts = make_readouts(asked, facts)
    if weights:
        check_encoders(method, source, model if needed else None)
    notes += [*facts.notes, *pools.notes[said_before:]]
    return Setup(settings, source, method, model, renderer, asked, readouts, pools, weights, notes)


@dataclass
class Facts:
    """The facts about a run that readouts may use; implements `RunFacts`.

    Args:
        model: the scoring model.
        renderer: renderer of its passes.
        weights: whether the model will be loaded.
        notes: notes that readouts add.
    """

    model: RunModel
    renderer: Renderer
    weights: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def model_name(self) -> str:
        return self.model.name

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    @property
    def dtype(self) -> str:
        return self.model.weights_dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def make_readouts(asked: Iterable[str], run: Facts) -> Mapping[str, Readout]:
    """Return the readouts by the names that scorers use; the built-in ones are always there."""
    own = {name: plugins.build_readout(name, run) for name in sorted(asked) if name not in READOUTS}
    return {**READOUTS, **own}


def needs_model(asked: Iterable[str], method: Method) -> bool:
    """Tell whether a readout or an encoder reads the scoring model."""
    reads = any(name not in READOUTS or READOUTS[name].needs_model for name in asked)
    return reads or any(parse_spec(spec)[0] == "self" for spec in method.encoder_specs)


def check_encoders(method: Method, source: DataSource, model: RunModel | None) -> None:
    """Build the encoders of a run once, so that a mistake shows before anything is read.

    Raises:
        TitheError: see `make_encoder`.
    """
    for spec in method.encoder_specs:
        # Without `load`, the encoder `self` checks its settings and embeds nothing.
        own = None if model is None else DeferredModel(model)
        device = "auto" if model is None else model.first_device
        if spec.strip().startswith(FILE):  # a file of vectors must match the data set row by row
            examples, rows = source.whole.in_memory
            make_encoder(spec, own=own, corpus=examples, rows=rows, device=device)
        else:
            make_encoder(spec, own=own, device=device)


def basic_record(settings: ScoreSettings) -> dict[str, Any]:
    """Return settings and versions, which every run record begins with."""
    return {"settings": settings.model_dump(mode="json"), "versions": versions()}


def inherited_settings(settings: ScoreSettings) -> dict[str, Any]:
    """Return the run settings that scorers and selectors inherit, if they have a setting of that name."""
    given = {name: getattr(settings, name) for name in INHERITED}
    return {"seed": settings.seed} | {name: value for name, value in given.items() if value is not None}


def residual_name(name: str) -> str:
    """Return the column name of a score without what the length predicts."""
    return f"{name}_residual"


def scorer_record(scorer: Scorer) -> dict[str, Any]:
    """Return a scorer's unit, what it reads, and its settings."""
    settings = {one.name: getattr(scorer, one.name) for one in settings_of(scorer)}
    return {"unit": scorer.unit, "reads": scorer.reads, **settings}
