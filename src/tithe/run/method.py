"""The method of a run: its scorers, selectors and readouts; and all that a run is made of, checked to fit together."""

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
from tithe.run.engines import OwnModel
from tithe.run.model import ALWAYS_THERE, Model, open_model, open_renderer
from tithe.run.source import Pools, Source, read_kept
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
    """What is asked of the model, and how the answers become a choice.

    Args:
        settings: of the run.
        scorers: by name, in the order asked for; prepared ones take their place in the runner.
        selectors: all that read these scores.
    """

    settings: ScoreSettings
    scorers: Mapping[str, Scorer]
    selectors: Sequence[Selector] = ()

    @classmethod
    def of(cls, settings: ScoreSettings, selectors: Sequence[Selector] = ()) -> Self:
        """Make the scorers that the settings name.

        Raises:
            SettingsError: one is unknown or there twice, or settings of theirs go with none of them.
        """
        found: dict[str, Scorer] = {}
        for spec in settings.scorer:
            scorer = plugins.build_scorer(spec, inherited(settings))
            if scorer.name in found:
                raise SettingsError(f"scorer `{scorer.name}` is asked for twice", hint="one column each")
            found[scorer.name] = scorer
        method = cls(settings, found, selectors)
        if settings.residualise and not method.residualised:
            raise SettingsError(
                "`residualise` takes away what length predicts, and of `length` nothing is left", hint="leave it out"
            )
        return method

    @property
    def learns(self) -> bool:
        """Whether a scorer has to be prepared."""
        return any(map(learns, self.scorers.values()))

    @property
    def whole_response(self) -> bool:
        """Whether a scorer must have responses whole."""
        return any(scorer.whole_response for scorer in self.scorers.values())

    @property
    def residualised(self) -> list[str]:
        """Scorers whose score is also given without what the length predicts."""
        return [name for name in self.scorers if self.settings.residualise and name != "length"]

    @property
    def score_columns(self) -> list[str]:
        """Columns of the score table that hold scores, and what scorers say besides."""
        more = [f"{name}_{what}" for name, scorer in self.scorers.items() for what in scorer.also]
        return [*self.scorers, *more, *map(residual, self.residualised)]

    @property
    def encoder_specs(self) -> list[str]:
        """Encoders that the scorers and selectors name."""
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
        """Return the scorers, prepared with made-up vectors and answers: what they ask for is right in kind and number.

        Args:
            examples: as if they were all there are.
            pools: the other data sets of the run.
            asked: is told of all asks that a scorer has while it prepares.
            sample: ids of examples that are to have each other for neighbours.
        """
        bench = PlanBench(examples, read=pools.load, tables=read_kept, asked=asked, sample=sample)
        return {name: scorer.prepare(bench) for name, scorer in self.scorers.items()}

    def readouts_asked(self, source: Source, pools: Pools) -> frozenset[str]:
        """Return the names of the readouts that the scorers ask for, by what they ask of the first examples.

        Raises:
            DataError: no example can be read, or there are too few to learn from.
        """
        head = source.head
        if not head.examples:
            first = head.first_bad
            where = "" if first is None else f", the first at {first.where}: {first.reason}"
            raise DataError(
                f"no record of `{self.settings.dataset}` can be read: {head.bad} bad rows{where}",
                hint="`--format` names the shape, if it was not recognised",
            )
        asked: list[Mapping[str, Ask]] = []
        try:
            scorers = self.stubs(head.examples if self.learns else head.examples[:1], pools, asked.extend)
        except DataError:
            if head.whole:
                raise
            scorers = self.stubs(source.examples, pools, asked.extend)  # the head held too few of a kind, perhaps
        known = plugins.names(plugins.READOUTS)
        for scorer in scorers.values():
            asks = scorer.asks(head.examples[0])
            for name in {ask.readout.partition(":")[0] for ask in asks.values()} - {*known}:
                raise SettingsError(f"scorer `{scorer.name}`: unknown readout `{name}`", hint=did_you_mean(name, known))
            asked.append(asks)
        names = {ask.readout for each in asked for ask in each.values()}
        return frozenset(LIKELIHOODS if name == "nll" and self.settings.per_token else name for name in names)


@dataclass(frozen=True)
class Setup:
    """A source, a method and a model that fit together. Nothing is loaded, and nothing is found out later.

    Args:
        settings: of the run, or of one stage.
        source: the data.
        method: scorers and selectors.
        model: its files.
        renderer: makes passes of examples.
        asked: names of the readouts that the scorers ask for.
        readouts: by name; the common ones are always there.
        pools: other data sets that scorers read.
        weights: whether the model will be loaded, if a readout needs it; a plan loads none.
        notes: what is to be said before the run reads.
        warmed: the record of the warm-up that made the model; None where there was none.
    """

    settings: ScoreSettings
    source: Source
    method: Method
    model: Model
    renderer: Renderer
    asked: frozenset[str]
    readouts: Mapping[str, Readout]
    pools: Pools
    weights: bool = True
    notes: Sequence[str] = ()
    warmed: Mapping[str, Any] | None = None

    @property
    def needs_model(self) -> bool:
        return needs_model(self.asked, self.method)

    @property
    def reads_model(self) -> bool:
        """Whether weights are read in this run."""
        return self.weights and self.needs_model

    def basics(self) -> dict[str, Any]:
        """Return what is known before anything is read, for the run record."""
        return basics(self.settings)

    def describe(self) -> dict[str, Any]:
        """Return what the numbers depend on, for the run record."""
        out = self.basics()
        out["dataset"] = self.source.input_check.describe()
        out["scorers"] = {name: scorer_record(scorer) for name, scorer in self.method.scorers.items()}
        out["template"] = self.renderer.describe()
        out["model"] = self.model.describe()
        own = {name: told for name, one in self.readouts.items() if (told := one.describe())}
        if own:
            out["readouts"] = own
        if self.warmed is not None:
            out["warmup"] = self.warmed
        if self.reads_model:
            out["model"] |= {"fingerprint": self.model.fingerprint, "dtype": self.model.weights_dtype}
        return out

    def stores(self, place: Path, say: Callable[[str], None]) -> dict[str, Store]:
        """Open the stores of the readouts, by name; none where no model is needed.

        Args:
            place: the folder that keeps answers.
            say: is told where answers that were to be used are none of this model's.
        """
        if not self.needs_model:
            return {}
        self.model.keep_dtype(place)
        name = model_answers(self.model)
        known = (r for r in sorted(self.asked) if r in self.readouts)
        stores = {r: Store(place, self.readouts[r], name) for r in known if self.readouts[r].needs_model}
        other = self.settings.answers
        if other is not None and not borrow(Path(other).expanduser(), stores.values()):
            say(f"note: `{other}` has no answers of this model in {self.model.weights_dtype}")
        return stores

    def warm(self, record: Mapping[str, Any]) -> Setup:
        """Return the same with a model that was trained in the run folder in the place of its own.

        Args:
            record: of the warm-up; `folder` is where the model lies.
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
    source: Source | None = None,
    pools: Pools | None = None,
    weights: bool = True,
    folder: Path | None = None,
) -> Setup:
    """Find everything that a run is made of, and raise what can be known to be wrong before a folder is made.

    Args:
        settings: of the run.
        method: scorers and selectors; made of the settings by default.
        source: the data; opened as the settings say by default.
        pools: other data sets that were read already.
        weights: whether the model's weights will be needed, if the model is.
        folder: the run folder; what it holds may decide a dtype.

    Raises:
        TitheError: with one sentence about the first thing that is wrong.
    """
    if settings.answers is not None and weights:
        demand_run_folder(Path(settings.answers).expanduser())
    if settings.per_token and weights and folder is None:
        raise SettingsError("`per_token` writes a file to the run folder, and there is none", hint="give `run_dir`")
    method = method or Method.of(settings)
    source = source or Source.open(settings)
    pools = pools or Pools(settings)
    said_before = len(pools.notes)
    asked = method.readouts_asked(source, pools)
    if settings.per_token and weights and LIKELIHOODS not in asked:
        raise SettingsError(
            f"`per_token` keeps likelihoods, and {', '.join(method.scorers)} reads none",
            hint="leave it out, or score with `ifd` as well",
        )
    needed = needs_model(asked, method)
    what = "a model" if needed else "a model's tokenizer, to count tokens"
    model = open_model(
        settings, weights=weights and needed, began_in=folder, missing=f"{', '.join(method.scorers)} needs {what}"
    )
    notes = [] if source.of is not None else [*source.dataset.notes]
    if weights and settings.device not in ALWAYS_THERE:  # also where no model is loaded
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
    """What readouts may know of a run; see `RunFacts`.

    Args:
        model: that is read.
        renderer: of its passes.
        weights: whether it will be loaded.
        notes: what is odd.
    """

    model: Model
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
    """Return the readouts by the names under which they are asked for; the common ones are always there."""
    own = {name: plugins.build_readout(name, run) for name in sorted(asked) if name not in READOUTS}
    return {**READOUTS, **own}


def needs_model(asked: Iterable[str], method: Method) -> bool:
    """Return whether a readout, or an encoder, reads the scoring model."""
    reads = any(name not in READOUTS or READOUTS[name].needs_model for name in asked)
    return reads or any(parse_spec(spec)[0] == "self" for spec in method.encoder_specs)


def check_encoders(method: Method, source: Source, model: Model | None) -> None:
    """Raise what is wrong with the encoders that a run names.

    Raises:
        TitheError: see `make_encoder`.
    """
    for spec in method.encoder_specs:
        own = None if model is None else OwnModel(model)
        device = "auto" if model is None else model.first_device
        if spec.strip().startswith(FILE):  # its rows belong to these examples
            examples, rows = source.whole.in_memory
            make_encoder(spec, own=own, corpus=examples, rows=rows, device=device)
        else:
            make_encoder(spec, own=own, device=device)


def basics(settings: ScoreSettings) -> dict[str, Any]:
    """Return what is known of a run before anything is read, for its record."""
    return {"settings": settings.model_dump(mode="json"), "versions": versions()}


def inherited(settings: ScoreSettings) -> dict[str, Any]:
    """Return what scorers and selectors take from the run's settings, where they have such a setting."""
    given = {name: getattr(settings, name) for name in INHERITED}
    return {"seed": settings.seed} | {name: value for name, value in given.items() if value is not None}


def residual(name: str) -> str:
    """Return what a score is called when the length is taken away from it."""
    return f"{name}_residual"


def scorer_record(scorer: Scorer) -> dict[str, Any]:
    """Return a scorer's unit, what it reads, and its settings."""
    settings = {one.name: getattr(scorer, one.name) for one in settings_of(scorer)}
    return {"unit": scorer.unit, "reads": scorer.reads, **settings}
