"""From settings to the parts of a run: dataset, scorers, tokenizer, renderer, stores."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe import __version__, plugins
from tithe.config import ScoreSettings
from tithe.data.authors import CherryRenderer, SuperfilteringRenderer
from tithe.data.files import LOOK, Dataset, open_dataset
from tithe.data.render import Renderer, RenderSettings, make_renderer
from tithe.engine.readouts import READOUTS
from tithe.engine.sources import ModelSource, context_window, find_model, fingerprint, load_tokenizer
from tithe.engine.store import Store, answers_name
from tithe.errors import DataError, SettingsError
from tithe.records import BadRow, Example
from tithe.run.watch import Watch
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine

STARTER = Path(__file__).parent.parent / "pocket" / "starter.jsonl"
AUTHORS = {"cherry": CherryRenderer, "superfiltering": SuperfilteringRenderer}


@dataclass
class Parts:
    """What a run is made of; heavy ones are made when first used."""

    settings: ScoreSettings
    weights: bool = True

    @cached_property
    def dataset(self) -> Dataset:
        s = self.settings
        name = named_dataset(s.dataset)
        return open_dataset(name, format=s.format, turns=s.turns, split=s.split, strict=s.strict, limit=s.limit)

    @cached_property
    def watch(self) -> Watch:
        """What the data set is; to be asked for before it is read."""
        return Watch(self.dataset)

    def check(self, folder: Path | None) -> None:
        """Raise what can be known to be wrong before a folder is made or a model loaded."""
        if self.settings.per_token and folder is None:
            raise SettingsError("`per_token` writes a file to the run folder, and there is none", hint="give `run_dir`")
        if self.needs_model:
            assert self.dtype
        assert self.renderer

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """By name, in the order asked for."""
        found: dict[str, Scorer] = {}
        for spec in self.settings.scorer:
            scorer = plugins.build_scorer(spec)
            if any(f.name == "seed" for f in fields(scorer)) and "seed" not in spec:
                scorer = replace(scorer, seed=self.settings.seed)  # type: ignore[call-arg]
            if scorer.name in found:
                raise SettingsError(f"scorer `{scorer.name}` is asked for twice", hint="one column each")
            found[scorer.name] = scorer
        return found

    @cached_property
    def readouts(self) -> set[str]:
        """What the scorers ask for, seen on the first example that can be read."""
        bad: list[BadRow] = []
        for item in self.dataset:
            if isinstance(item, Example):
                asks = [ask for scorer in self.scorers.values() for ask in scorer.asks(item).values()]
                names = {ask.readout for ask in asks}
                return {"nll_tokens" if n == "nll" and self.settings.per_token else n for n in names}
            bad.append(item)
        raise DataError(
            f"no record of `{self.settings.dataset}` can be read: {len(bad)} bad rows, "
            f"the first at {bad[0].where}: {bad[0].reason}",
            hint="`--format` names the shape, if it was not recognised",
        )

    @cached_property
    def columns(self) -> list[str]:
        """The input's columns beside the dialogue, as the first examples have them."""
        examples = [item for item in islice(self.dataset, LOOK) if isinstance(item, Example)]
        return list(dict.fromkeys(name for example in examples for name in example.columns))

    @property
    def needs_model(self) -> bool:
        return any(READOUTS[name].needs_model for name in self.readouts if name in READOUTS)

    @cached_property
    def source(self) -> ModelSource:
        if self.settings.model is None:
            what = "a model" if self.needs_model else "a model's tokenizer, to count tokens"
            raise SettingsError(
                f"{', '.join(self.scorers)} needs {what}",
                hint="`--model` takes a folder or a hub id; `--model pocket` is bundled, for trying out",
            )
        return find_model(self.settings.model, weights=self.weights and self.needs_model)

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
            truncation=s.truncation,
        )
        if s.preset is not None:
            return AUTHORS[s.preset](self.tokenizer, rendering, context_window=self.window)
        return make_renderer(self.tokenizer, rendering, context_window=self.window)

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
        from tithe.engine.model import choose_device, choose_dtype, dtype_name

        return dtype_name(choose_dtype(self.settings.dtype, choose_device(self.settings.device)))

    def stores(self, folder: Path) -> dict[str, Store]:
        """By readout; none where no model is needed."""
        if not self.needs_model:
            return {}
        from tithe.engine.engine import NUMERICS

        name = answers_name(self.fingerprint, self.dtype, NUMERICS)
        return {r: Store(folder, READOUTS[r], name) for r in sorted(self.readouts) if READOUTS[r].needs_model}

    @cached_property
    def engine(self) -> Engine:
        from tithe.engine.engine import Engine
        from tithe.engine.model import load_model

        s = self.settings
        model = load_model(self.source, device=s.device, dtype=s.dtype, trust_remote_code=s.trust_remote_code)
        return Engine(model, budget=s.batch_tokens, workers=s.workers)

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on, for the run record."""
        out: dict[str, Any] = {"settings": self.settings.model_dump(mode="json"), "versions": versions()}
        out["dataset"] = {"source": self.dataset.source, "format": self.dataset.format, "digest": self.watch.digest}
        if Path(self.dataset.source).exists():
            out["dataset"]["path"] = str(Path(self.dataset.source).resolve())
        out["scorers"] = {name: scorer_record(scorer) for name, scorer in self.scorers.items()}
        out["template"] = self.renderer.describe()
        out["model"] = {"name": self.source.name, "revision": self.source.revision, "folder": str(self.source.folder)}
        if self.needs_model and self.weights:
            out["model"] |= {"fingerprint": self.fingerprint, "dtype": self.dtype}
        return out


def named_dataset(name: str) -> str:
    """The path of a bundled data set, or the name as it is; a file or folder of that name goes first."""
    return str(STARTER) if name == "starter" and not Path(name).exists() else name


def scorer_record(scorer: Scorer) -> dict[str, Any]:
    settings = {f.name: getattr(scorer, f.name) for f in fields(scorer)}
    return {"unit": scorer.unit, "reads": scorer.reads, **settings}


def engine_record(engine: Engine) -> dict[str, Any]:
    """How the model was run."""
    model = engine.model
    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "road": model.road,
        "attention": model.implementation,
        "roads_not_taken": model.fallbacks,
        "parameters": model.parameters,
        "batch_tokens": engine.budget,
        "workers": engine.workers,
        "batches_halved": engine.halved,
    }


def engine_sentence(engine: Engine) -> str:
    """Model, size, device, dtype and road, for the terminal."""
    model = engine.model
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if model.parameters >= s)
    size = f"{model.parameters / scale:.3g}{unit}"
    dtype = str(model.dtype).removeprefix("torch.")
    how = {"packed": "packed, no padding", "padded": "padded batches", "single": "one sequence at a time"}[model.road]
    workers = f", {engine.workers} at once" if engine.workers != 1 else ""
    return f"model {model.source.name} ({size}) on {model.device} in {dtype}: {how}{workers}"


def versions(names: Iterable[str] = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")) -> Mapping[str, str]:
    found = {"tithe": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
