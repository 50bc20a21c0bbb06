"""The engine of a run: loaded when the first pass has to be read, as the run began, and kept between stages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.dataset import Dataset
from tithe.data.hub import HubData
from tithe.errors import ModelError, SettingsError
from tithe.records import Example
from tithe.report.reporter import Reporter
from tithe.run.answers import answers_elsewhere, model_answers
from tithe.run.model import Model, keep, keep_route, kept, kept_number, kept_route, kept_word
from tithe.settings import ScoreSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine
    from tithe.engine.loaded_model import LoadedModel
    from tithe.engine.measure.cpu_kernels import Fp32Route

BYTES = 4  # of text, a token
DENSE = (".parquet", ".gz", ".zst")  # files that hold more text than they have bytes,
TIMES = 3  # about so many times as much
FIRST = 20  # examples by which the length of the others is guessed
PASSES = 2  # of each record: with its prompt and without


@dataclass
class Engines:
    """Holds one engine at a time, so that stages of the same model load it once.

    Args:
        reporter: is told what is loaded.
        several: whether several processes may read; whoever looks at the model itself has it in this one.
    """

    reporter: Reporter = field(default_factory=Reporter)
    several: bool = True
    engine: Engine | None = None
    fingerprint: str = ""

    def of(self, settings: ScoreSettings, dataset: Dataset, model: Model, place: Path | None) -> Engine:
        """Return the engine that reads for a run, loaded if it is not there.

        Args:
            settings: of the run.
            dataset: what is read.
            model: that reads it.
            place: the folder that keeps answers and first choices.

        Raises:
            TitheError: the model cannot be loaded.
        """
        if self.engine is None or self.fingerprint != model.fingerprint:
            self.close()
            if self.engine is not None:
                from tithe.engine.engine import release

                self.engine = None
                release(model.devices[0])  # the last model goes before the next one comes
            self.engine = make_engine(settings, dataset, model, place, self.reporter, several=self.several)
            self.fingerprint = model.fingerprint
        return self.engine

    def close(self) -> None:
        """End the processes that read; whoever reads later starts them again."""
        if self.engine is not None:
            self.engine.close()


@dataclass
class Loader:
    """Loads the engine of one scoring when the first pass has to be read.

    Args:
        engines: where engines are kept between stages.
        settings: of the scoring.
        dataset: what is read.
        model: that reads it.
        answers_in: the folder that keeps answers and first choices.
        engine: once it was needed.
    """

    engines: Engines
    settings: ScoreSettings
    dataset: Dataset
    model: Model
    answers_in: Path | None
    engine: Engine | None = None

    def __call__(self) -> Engine:
        self.engine = self.engines.of(self.settings, self.dataset, self.model, self.answers_in)
        return self.engine


@dataclass(frozen=True)
class OwnModel:
    """The scoring model as the encoder `self` has it.

    Args:
        model: its files.
        load: loads it; without, nothing can be embedded.
    """

    model: Model
    load: Callable[[], Engine] | None = None

    @property
    def engine(self) -> Engine:
        if self.load is None:
            raise ModelError(f"the weights of `{self.model.name}` are not read here")
        return self.load()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    @property
    def dtype(self) -> str:
        return self.model.weights_dtype

    @property
    def window(self) -> int | None:
        return self.model.window


def make_engine(
    settings: ScoreSettings,
    dataset: Dataset,
    model: Model,
    place: Path | None,
    reporter: Reporter,
    *,
    several: bool = True,
) -> Engine:
    """Load the engine of a run; one that goes on takes what it began with, whatever a new measurement would say.

    Args:
        settings: of the run.
        dataset: what is read; its size decides whether compiling pays.
        model: that reads it.
        place: the folder that keeps answers and first choices.
        reporter: is told what was loaded.
        several: whether several processes may read.

    Raises:
        TitheError: the model cannot be loaded, or not as it is asked for.
    """
    from tithe.engine.devices import WEIGHTS
    from tithe.engine.engine import Engine
    from tithe.engine.loading import load_model, spread_over
    from tithe.engine.measure.cpu_kernels import probe_half
    from tithe.engine.measure.loss_kernels import CANDIDATES, OWN
    from tithe.engine.measure.shape import model_shape

    s, devices, dtype = settings, model.devices, model.weights_dtype
    kind = devices[0].type
    check_compile(s, devices[0])
    own = f"{kind}_{model_answers(model)}"  # stages of other models share the folder
    compiled = wants_compiled(
        s, devices[0], lambda: model_shape(model.files).parameters, dataset, place, f"compile_{own}"
    )
    loss = kept_word(place, f"loss_{own}", (OWN, *CANDIDATES))
    if loss is None and not (compiled or may_be_large(s, devices[0], dataset)):
        loss = OWN
    how: dict[str, Any] = {
        "dtype": s.dtype if s.dtype != "auto" else dtype,  # measured once, not by each process
        "trust_remote_code": s.trust_remote_code,
        "fp32_route": kept_route(place),
        "loss": loss,
        "known": model.fingerprint,
    }
    budget = s.batch_tokens or kept_number(place, f"batch_tokens_{own}")
    elsewhere = None if place is None else answers_elsewhere(s, dataset, model, place)
    spread = spread_over(model.files, dtype, devices, s.shard)
    if len(devices) > 1 and not spread and together(s, devices, reporter, several=several):
        from tithe.engine.workers.multi_device import MultiDeviceEngine

        engine: Engine = MultiDeviceEngine(
            model.files, devices, how, budget=budget, workers=s.workers, compiled=compiled
        )
    else:
        loaded = load_model(model.files, device=str(devices[0]), spread=spread, **how)
        workers = s.workers or kept_number(place, f"workers_{own}")
        threads = None if s.workers else kept_number(place, f"threads_{own}")
        engine = Engine(loaded, budget=budget, workers=workers, threads=threads, say=reporter.say, compiled=compiled)
        if engine.measured and s.workers is None:  # of several processes each has its own few
            keep(place, f"workers_{own}", engine.workers)
            if engine.threads is not None:
                keep(place, f"threads_{own}", engine.threads)
    if engine.measured and s.batch_tokens is None:
        keep(place, f"batch_tokens_{own}", engine.budget)
    if "loss" in engine.facts:
        keep(place, f"loss_{own}", engine.facts["loss"]["name"])
    keep_route(place, engine.model.fp32)
    reporter.say(engine_sentence(engine))
    if elsewhere is not None:
        reporter.say(f"note: `{elsewhere}` has answers of this model on this data: `--answers {elsewhere}` uses them")
    if kind == "cpu" and s.dtype in ("bf16", "fp16"):
        half = probe_half(WEIGHTS[s.dtype])
        if not half.pays:
            reporter.say(f"note: {half.words(s.dtype)}: `--dtype fp32` loses nothing by it")
    return engine


def together(settings: ScoreSettings, devices: Sequence[torch.device], reporter: Reporter, *, several: bool) -> bool:
    """Return whether several devices read the passes; say so where they do not."""
    if not several:
        reporter.say(f"note: of {len(devices)} devices one is used, {devices[0]}")
        return False
    if settings.dtype != "fp8":
        return True
    if settings.device != "auto":
        raise SettingsError(
            f"fp8 is read on one device, as its error is measured in one process, and `{settings.device}` "
            f"names {len(devices)}",
            hint=f"`--device {devices[0]}`, or `--dtype bf16` on all of them",
        )
    reporter.say(f"note: fp8 is read on one device: of {len(devices)} it takes {devices[0]}")
    return False


def check_compile(settings: ScoreSettings, device: torch.device) -> None:
    """Before the model is loaded.

    Raises:
        SettingsError: it is asked for, and cannot be.
    """
    if settings.compile != "on":
        return
    from tithe.engine.measure.fused import why_not_compilable

    reason = why_not_compilable(device)
    if reason is not None:
        raise SettingsError(f"nothing can be compiled for `{device}`: {reason}", hint="leave `--compile on` out")


def wants_compiled(
    settings: ScoreSettings,
    device: torch.device,
    parameters: Callable[[], int],
    dataset: Dataset,
    place: Path | None,
    name: str,
) -> bool:
    """Whether parts are to be compiled; a run that goes on does as it began.

    Args:
        settings: of the run.
        device: where the model is going to be.
        parameters: counts the model's; asked where it matters.
        dataset: what is read.
        place: the run folder.
        name: by which the choice is kept there.
    """
    from tithe.engine.measure.fused import why_not_worth_compiling

    wanted = str(settings.compile)
    if wanted == "auto":
        wanted = kept_word(place, name, ("on", "off")) or "off"
        if device.type == "cuda" and kept(place, name) is None:
            wanted = "off" if why_not_worth_compiling(device, parameters(), about(dataset)) else "on"
    if device.type != "cpu" or wanted == "on":  # on a CPU nothing is chosen
        keep(place, name, wanted)
    return wanted == "on"


def may_be_large(settings: ScoreSettings, device: torch.device, dataset: Dataset) -> bool:
    """Whether loss kernels are worth a trial where nothing else is compiled: they are compiled for it, for seconds.

    Nobody knows how large a data set elsewhere is, and without a GPU there is nothing to try.
    """
    return device.type != "cuda" or (settings.compile == "auto" and about(dataset) is None)


def about(dataset: Dataset) -> int | None:
    """Tokens that a run over a data set reads, roughly, from the size of its files; None where that is not known."""
    found = [size for size in (bytes_in(dataset), bytes_wanted(dataset)) if size is not None]
    return PASSES * min(found) // BYTES if found else None


def bytes_in(dataset: Dataset) -> int | None:
    """Of text in all its files; None where a hub does not say how large they are."""
    path = Path(dataset.source)
    if path.exists():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes = {str(file): file.stat().st_size for file in files}
    else:
        sizes = dataset.origin.sizes() if isinstance(dataset.origin, HubData) else {}
    return sum(size * (TIMES if name.endswith(DENSE) else 1) for name, size in sizes.items()) if sizes else None


def bytes_wanted(dataset: Dataset) -> int | None:
    """Of text in as many records as are read, by the length of the first; None where all are."""
    if dataset.limit is None:
        return None
    first = [item for item in islice(dataset, FIRST) if isinstance(item, Example)]
    each = [sum(len(turn.content) for turn in (*one.prompt, one.response)) for one in first]
    return round(statistics.fmean(each) * dataset.limit) if each else None


def engine_record(engine: Engine) -> dict[str, Any]:
    """How the model was run."""
    model = engine.model
    return {
        "device": str(model.device),
        "devices": engine.devices,
        "dtype": weights_dtype(model),
        "road": model.forward_path,
        "attention": model.implementation,
        "roads_not_taken": model.fallbacks,
        "parameters": model.parameters,
        "batch_tokens": engine.budget,
        "workers": engine.workers,
        **({} if engine.threads is None else {"threads": engine.threads}),
        "batches_halved": engine.halved,
        **({} if model.fp32 is None else {"fp32": model.fp32.as_dict()}),
        **engine.facts,
    }


def engine_sentence(engine: Engine) -> str:
    """Model, size, devices, dtype and road, for the terminal."""
    model = engine.model
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if model.parameters >= s)
    size = f"{model.parameters / scale:.3g}{unit}"
    dtype = weights_dtype(model)
    if model.fp32 is not None:
        dtype += kernels(model.fp32)
    where = ", ".join(engine.devices)
    if len(engine.devices) > 1:
        where += " (one process each)" if engine.model.model is None else " (a part of it on each)"
    how = [road_words(model), *at_once(engine), *engine.words]
    return f"model {model.source.name} ({size}) on {where} in {dtype}: {', '.join(how)}"


def at_once(engine: Engine) -> list[str]:
    """How many passes, and threads of each."""
    words = [f"{engine.workers} at once"] if engine.workers != 1 else []
    if engine.threads is not None:
        each = " each" if engine.workers != 1 or len(engine.devices) > 1 else ""
        words.append(f"{engine.threads} {'thread' if engine.threads == 1 else 'threads'}{each}")
    return words


def road_words(model: LoadedModel) -> str:
    """The road, and on a GPU why it is not the packed one."""
    how = {"packed": "packed, no padding", "padded": "padded batches", "single": "one sequence at a time"}[
        model.forward_path
    ]
    refused = [] if model.device.type == "cpu" else [one for one in model.fallbacks if one.startswith("packed")]
    return " ".join([how, *(f"({shortened(one)})" for one in refused)])


def shortened(text: str, longest: int = 160) -> str:
    """The run record has all of it."""
    return text if len(text) <= longest else f"{text[:longest]} ..."


def weights_dtype(model: LoadedModel) -> str:
    """That of the weights in its blocks, by torch's name."""
    return "float8_e4m3fn" if model.awaits_fp8 or model.fp8 is not None else str(model.dtype).removeprefix("torch.")


def torch_name(dtype: str) -> str:
    """Return torch's name for ours: `float32` for `fp32`."""
    from tithe.engine.devices import WEIGHTS

    return str(WEIGHTS[dtype]).removeprefix("torch.")


def kernels(route: Fp32Route) -> str:
    """Who multiplies fp32 on a CPU, where that is not torch as it comes, or not true."""
    by = f" by oneDNN ({route.why})" if route.name == "onednn" else ""
    wrong = route.relative_error[route.name]
    return by if route.is_true(route.name) else f"{by} that is not true fp32 here (relative error {wrong:.1e})"
