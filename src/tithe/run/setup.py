"""From settings to the parts of a run: dataset, scorers, tokenizer, renderer, stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe import plugins
from tithe.config import ScoreSettings
from tithe.data.authors import CherryRenderer, SuperfilteringRenderer
from tithe.data.dialogue import CpqsRenderer
from tithe.data.files import LOOK, Dataset, open_dataset
from tithe.data.render import Renderer, RenderSettings, Truncation, make_renderer
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.engine.sources import ModelSource, context_window, find_model, fingerprint, load_tokenizer
from tithe.engine.store.store import Store, answers_name
from tithe.errors import DataError, SettingsError, demand
from tithe.neighbours.encoder import FILE, Encoder
from tithe.neighbours.encoders import make_encoder
from tithe.records import Ask, BadRow, Example
from tithe.run.describe import scorer_record, versions
from tithe.run.kept_choice import DTYPE, began_with, keep
from tithe.run.passed_on import PASSED_ON
from tithe.run.pool import named_dataset, read_pool
from tithe.run.readouts import make_readout
from tithe.run.siblings import borrow, demand_run_folder, find_answers
from tithe.run.standin import StandIn
from tithe.run.talk import Talk
from tithe.run.watch import Watch
from tithe.scorers.base import Scorer, learns
from tithe.selectors.base import Selector
from tithe.specs import parse_spec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine

ALWAYS_THERE = ("auto", "cpu")
AUTHORS: Mapping[str, Callable[..., Renderer]] = {
    "cherry": CherryRenderer,
    "superfiltering": SuperfilteringRenderer,
    "cpqs-paper": CpqsRenderer,
}


@dataclass
class Parts:
    """What a run is made of; heavy ones are made when first used.

    Args:
        settings: of the run.
        weights: whether the model's weights will be needed, if the model is; a plan reads none.
        talk: who listens.
        selectors: those of the run, made by `selector`.
        notes: what was found before anybody listened.
        several: whether passes may be read by several processes; what else looks at the model has it in this one.
    """

    settings: ScoreSettings
    weights: bool = True
    talk: Talk = field(default_factory=Talk)
    selectors: list[Selector] = field(default_factory=list)
    encoders: dict[str, Encoder] = field(default_factory=dict, init=False)
    pools: dict[str, Sequence[Example]] = field(default_factory=dict, init=False)
    records: int = field(default=0, init=False)
    experienced: dict[str, Any] | None = field(default=None, init=False)
    answers_place: Path | None = field(default=None, init=False)
    begun_in: Path | None = field(default=None, init=False)
    elsewhere: Path | None = field(default=None, init=False)  # a run folder that may hold the same answers
    notes: list[str] = field(default_factory=list, init=False)
    several: bool = field(default=True, kw_only=True)

    @cached_property
    def dataset(self) -> Dataset:
        s = self.settings
        name = named_dataset(s.dataset)
        found = open_dataset(name, format=s.format, turns=s.turns, split=s.split, strict=s.strict, limit=s.limit)
        self.notes.extend(found.notes)
        return found

    @cached_property
    def watch(self) -> Watch:
        """What the data set is; to be asked for before it is read."""
        return Watch(self.dataset)

    def check(self, folder: Path | None) -> None:
        """Raise what can be known to be wrong before a folder is made or a model loaded."""
        self.begun_in = folder
        if self.settings.answers is not None:
            demand_run_folder(Path(self.settings.answers).expanduser())
        if self.settings.per_token and folder is None:
            raise SettingsError("`per_token` writes a file to the run folder, and there is none", hint="give `run_dir`")
        if self.settings.residualise and not self.residualised:
            raise SettingsError(
                "`residualise` takes away what length predicts, and of `length` nothing is left", hint="leave it out"
            )
        if self.settings.per_token and "nll_tokens" not in self.asked:
            raise SettingsError(
                f"`per_token` keeps likelihoods, and {', '.join(self.scorers)} reads none",
                hint="leave it out, or score with `ifd` as well",
            )
        if self.weights and self.settings.device not in ALWAYS_THERE:  # also where no model is loaded
            demand(self.devices)
        if self.needs_model:
            demand(self.dtype)
        demand(self.renderer, self.readouts)
        for spec in self.encoder_specs:
            if spec.startswith(FILE):  # its rows belong to these examples
                self.encoder(spec)
            else:
                make_encoder(spec, own=self, device=self.first_device)

    @property
    def passed_on(self) -> dict[str, Any]:
        """What scorers and selectors take from the run's settings, where they have such a setting."""
        given = {name: getattr(self.settings, name) for name in PASSED_ON}
        return {"seed": self.settings.seed} | {name: value for name, value in given.items() if value is not None}

    def selector(self, spec: str) -> Selector:
        """The selector of a spec, with the run's settings where it leaves them out."""
        made = plugins.build_selector(spec, self.passed_on)
        self.selectors.append(made)
        return made

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """By name, in the order asked for."""
        found: dict[str, Scorer] = {}
        for spec in self.settings.scorer:
            scorer = plugins.build_scorer(spec, self.passed_on)
            if scorer.name in found:
                raise SettingsError(f"scorer `{scorer.name}` is asked for twice", hint="one column each")
            found[scorer.name] = scorer
        return found

    @property
    def learns(self) -> bool:
        """Whether a scorer has to be prepared."""
        return any(map(learns, self.scorers.values()))

    @cached_property
    def examples(self) -> Sequence[Example]:
        """All of them in memory, without their other columns: for scorers and selectors that look at the whole."""
        found, self.records = list[Example](), 0
        for item in self.dataset:
            self.records = item.row + 1
            if isinstance(item, Example):
                found.append(replace(item, columns={}))
        return found

    def standins(
        self,
        examples: Sequence[Example],
        asked: Callable[[Sequence[Mapping[str, Ask]]], object] = lambda _: None,
        sample: frozenset[str] = frozenset(),
    ) -> dict[str, Scorer]:
        """The scorers, prepared with made-up vectors and answers: what they will ask for is right in kind and number.

        Args:
            examples: as if they were all there are.
            asked: is told of all asks that a scorer has while it prepares.
            sample: ids of examples that are to have each other for neighbours.
        """
        bench = StandIn(examples, self.pool, asked, sample)
        return {name: scorer.prepare(bench) for name, scorer in self.scorers.items()}

    def pool(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        """The examples of another data set, read once."""
        if path not in self.pools:
            self.pools[path] = read_pool(path, self.settings, what, self.talk.say)
        return self.pools[path]

    @cached_property
    def asked(self) -> set[str]:
        """Names of the readouts that the scorers ask for, seen on the first example that can be read."""
        bad: list[BadRow] = []
        first = list(islice(good(self.dataset, bad), LOOK if self.learns else 1))
        if not first:
            raise DataError(
                f"no record of `{self.settings.dataset}` can be read: {len(bad)} bad rows, "
                f"the first at {bad[0].where}: {bad[0].reason}",
                hint="`--format` names the shape, if it was not recognised",
            )
        asked: list[Mapping[str, Ask]] = []
        try:
            scorers = self.standins(first, asked.extend)
        except DataError:
            if len(first) < LOOK:
                raise
            scorers = self.standins(self.examples, asked.extend)  # too few they were, perhaps
        asked += [scorer.asks(first[0]) for scorer in scorers.values()]
        names = {ask.readout for each in asked for ask in each.values()}
        return {"nll_tokens" if n == "nll" and self.settings.per_token else n for n in names}

    @cached_property
    def readouts(self) -> Mapping[str, Readout]:
        """By the names under which they are asked for; the common ones are always there."""
        own = {name: make_readout(name, self) for name in self.asked if name not in READOUTS}
        return {**READOUTS, **{name: readout for name, readout in own.items() if readout is not None}}

    @cached_property
    def columns(self) -> list[str]:
        """The input's columns beside the dialogue, as the first examples have them."""
        examples = [item for item in islice(self.dataset, LOOK) if isinstance(item, Example)]
        return list(dict.fromkeys(name for example in examples for name in example.columns))

    @property
    def score_columns(self) -> list[str]:
        """Columns of the score table that hold scores, and what scorers say besides."""
        more = [f"{name}_{what}" for name, scorer in self.scorers.items() for what in scorer.also]
        left = [residual(name) for name in self.residualised]
        return [*self.scorers, *more, *left]

    @property
    def residualised(self) -> list[str]:
        """Scorers whose score is also given without what the length predicts."""
        return [name for name in self.scorers if self.settings.residualise and name != "length"]

    @property
    def needs_model(self) -> bool:
        reads = any(name not in READOUTS or READOUTS[name].needs_model for name in self.asked)
        return reads or any(parse_spec(spec)[0] == "self" for spec in self.encoder_specs)

    @property
    def encoder_specs(self) -> list[str]:
        """Encoders that the scorers and selectors of the run name."""
        used = [*self.scorers.values(), *self.selectors]
        with_one = [one for one in used if "encoder" in plugins.setting_names(type(one))]
        return list(dict.fromkeys(spec for spec in (one.encoder for one in with_one) if spec))  # type: ignore[attr-defined]

    def encoder(self, spec: str) -> Encoder:
        """The encoder of a spec, made once."""
        if spec not in self.encoders:
            examples, seed = self.examples, self.settings.seed
            self.encoders[spec] = make_encoder(
                spec, own=self, corpus=examples, rows=self.records, device=self.first_device, seed=seed
            )
        return self.encoders[spec]

    @cached_property
    def source(self) -> ModelSource:
        if self.settings.model is None:
            what = "a model" if self.needs_model else "a model's tokenizer, to count tokens"
            raise SettingsError(
                f"{', '.join(self.scorers)} needs {what}",
                hint="`--model` takes a folder or a hub id; `--model pocket` is bundled, for trying out",
            )
        name = self.settings.model if self.experienced is None else self.experienced["folder"]
        return find_model(name, weights=self.weights and self.needs_model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def window(self) -> int | None:
        return context_window(self.source, self.tokenizer)

    @cached_property
    def renderer(self) -> Renderer:
        s = self.settings
        rendering = RenderSettings(
            template=s.template,
            max_length=self.max_length,
            bos=s.bos,
            eos=s.eos,
            alone_header=s.alone_header,
            truncation=self.truncation,
        )
        if s.preset is not None and s.preset in AUTHORS:
            return AUTHORS[s.preset](self.tokenizer, rendering, context_window=self.window)
        return make_renderer(self.tokenizer, rendering, context_window=self.window)

    @property
    def truncation(self) -> Truncation:
        """As asked for, or what the scorers need."""
        whole = self.settings.preset not in AUTHORS and any(s.whole_response for s in self.scorers.values())
        return self.settings.truncation or ("prompt" if whole else "response")

    @property
    def max_length(self) -> int:
        """As asked for, or the model's context window."""
        if self.settings.max_length is not None:
            return self.settings.max_length
        if self.window is None:
            raise SettingsError(
                f"`{self.source.name}` does not say how long its context window is", hint="give `--max-length`"
            )
        return self.window

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)

    @cached_property
    def dtype(self) -> str:
        """Of the weights; on a CPU that of the run folder, as `auto` is a matter of speed there."""
        from tithe.engine.devices import choose_dtype, dtype_name

        chosen = dtype_name(choose_dtype(self.settings.dtype, self.devices[0]))
        if not self.dtype_is_timed:
            return chosen
        chosen, note = began_with(self.answers_folder(self.begun_in), chosen)
        if note is not None:
            self.notes.append(note)
        return chosen

    @property
    def dtype_is_timed(self) -> bool:
        return self.settings.dtype == "auto" and self.devices[0].type == "cpu"

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the model may be."""
        from tithe.engine.devices import choose_devices

        return choose_devices(self.settings.device)

    @property
    def first_device(self) -> str:
        """Where all else is done that has a device."""
        one_name = "," not in self.settings.device and self.settings.device != "cuda:all"
        return self.settings.device if one_name else str(self.devices[0])

    def answers_folder(self, place: Path | None) -> Path | None:
        """Where answers and embeddings are kept, of the run folder that is open."""
        return place

    def stores(self, folder: Path) -> dict[str, Store]:
        """By readout; none where no model is needed."""
        if not self.needs_model:
            return {}
        from tithe.engine.engine import NUMERICS

        name = answers_name(self.fingerprint, self.dtype, NUMERICS)
        place = self.answers_place = self.answers_folder(folder) or folder
        if self.dtype_is_timed:
            keep(place, DTYPE, self.dtype)
        readouts = self.readouts
        known = (r for r in sorted(self.asked) if r in readouts)
        stores = {r: Store(place, readouts[r], name) for r in known if readouts[r].needs_model}
        if self.settings.answers is None:
            data = Path(self.dataset.source)
            self.elsewhere = find_answers(place, name, data.resolve()) if data.exists() else None
        elif not borrow(Path(self.settings.answers).expanduser(), stores.values()):
            self.talk.say(f"note: `{self.settings.answers}` has no answers of this model in {self.dtype}")
        return stores

    @cached_property
    def engine(self) -> Engine:
        from tithe.run.reader import make_engine

        return make_engine(self)

    def close(self) -> None:
        """End processes that read for this run; whoever reads later starts them again."""
        engine: Engine | None = vars(self).get("engine")
        if engine is not None:
            engine.close()

    def basics(self) -> dict[str, Any]:
        """Return what is known before anything is read, for the run record."""
        return {"settings": self.settings.model_dump(mode="json"), "versions": versions()}

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on, for the run record."""
        out = self.basics()
        out["dataset"] = self.watch.describe()
        out["scorers"] = {name: scorer_record(scorer) for name, scorer in self.scorers.items()}
        out["template"] = self.renderer.describe()
        out["model"] = {"name": self.source.name, "revision": self.source.revision, "folder": str(self.source.folder)}
        if self.source.adapter is not None:
            out["model"]["adapter"] = str(self.source.adapter)
        own = {name: told for name, one in self.readouts.items() if (told := one.describe())}
        if own:
            out["readouts"] = own
        if self.experienced is not None:
            out["warmup"] = self.experienced
        if self.needs_model and self.weights:
            out["model"] |= {"fingerprint": self.fingerprint, "dtype": self.dtype}
        return out


def residual(name: str) -> str:
    """What a score is called when the length is taken away from it."""
    return f"{name}_residual"


def good(items: Iterable[Example | BadRow], bad: list[BadRow]) -> Iterator[Example]:
    """The examples; what is none is put aside."""
    for item in items:
        if isinstance(item, Example):
            yield item
        else:
            bad.append(item)
