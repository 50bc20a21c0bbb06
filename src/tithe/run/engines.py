"""Load the engine of a run when the first pass is not stored, and keep it for later stages.

A resumed run loads it as the run began (batch size, threads, kernels), so that its answers agree with the stored ones.
"""

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
from tithe.run.run_model import (
    RunModel,
    choice,
    chosen_number,
    chosen_route,
    chosen_word,
    keep_choice,
    keep_route,
    say_dequantised,
)
from tithe.settings import ScoreSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine
    from tithe.engine.loaded_model import LoadedModel
    from tithe.engine.measure.cpu_kernels import Fp32Route
    from tithe.engine.model_source import ModelSource

BYTES_PER_TOKEN = 4  # of text, roughly
COMPRESSED = (".parquet", ".gz", ".zst")
RATIO = 3  # of text to bytes in a compressed file, roughly
FIRST = 20  # examples from which the length of the others is estimated
PASSES = 2  # per record: with its prompt and without


@dataclass
class EngineCache:
    """Cache of one engine, so that stages with the same model load it once.

    Args:
        reporter: prints which model was loaded.
        several: allow several worker processes; False for callers that need the model in this process.
    """

    reporter: Reporter = field(default_factory=Reporter)
    several: bool = True
    engine: Engine | None = None
    fingerprint: str = ""

    def get(self, settings: ScoreSettings, dataset: Dataset, model: RunModel, place: Path | None) -> Engine:
        """Return the engine for this model; load it if another one, or none, is loaded.

        Args:
            settings: settings of the run.
            dataset: the data set to read.
            model: the model to load.
            place: folder with the stored answers and the run's first choices.

        Raises:
            TitheError: the model why_not_compilable be loaded.
        """
        if self.engine is None or self.fingerprint != model.fingerprint:
            self.close()
            if self.engine is not None:
                from tithe.engine.engine import release

                self.engine = None
                release(model.devices[0])  # two models may not fit into memory together
            self.engine = make_engine(settings, dataset, model, place, self.reporter, several=self.several)
            self.fingerprint = model.fingerprint
        return self.engine

    def close(self) -> None:
        """Stop the worker processes; the next read starts them again."""
        if self.engine is not None:
            self.engine.close()


@dataclass
class EngineLoader:
    """Deferred load of an engine: called when the first pass is not stored.

    Args:
        engines: cache that keeps the engine between stages.
        settings: settings of the scoring.
        dataset: the data set to read.
        model: the model to load.
        answers_in: folder with the stored answers and the run's first choices.
        engine: the engine, once it was needed.
    """

    engines: EngineCache
    settings: ScoreSettings
    dataset: Dataset
    model: RunModel
    answers_in: Path | None
    engine: Engine | None = None

    def __call__(self) -> Engine:
        self.engine = self.engines.get(self.settings, self.dataset, self.model, self.answers_in)
        return self.engine


@dataclass(frozen=True)
class DeferredModel:
    """The scoring model, as the encoder `self` uses it: weights are loaded when they are needed.

    Args:
        model: its files.
        load: loads the weights; None where nothing is embedded.
    """

    model: RunModel
    load: Callable[[], Engine] | None = None

    @property
    def engine(self) -> Engine:
        if self.load is None:
            raise ModelError(f"the weights of `{self.model.name}` are not loaded here")
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
    model: RunModel,
    place: Path | None,
    reporter: Reporter,
    *,
    several: bool = True,
) -> Engine:
    """Load the engine of a run; a resumed run uses what it began with, whatever a new measurement would say.

    Args:
        settings: settings of the run.
        dataset: the data set to read; its size decides whether compiling pays.
        model: the model to load.
        place: folder with the stored answers and the run's first choices.
        reporter: prints which model was loaded.
        several: allow several worker processes.

    Raises:
        TitheError: the model why_not_compilable be loaded, or not with these settings.
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
    own = f"{kind}_{model_answers(model)}"  # stages with other models share the folder, so choices are kept per model
    compiled = should_compile(
        s, devices[0], lambda: model_shape(model.files).parameters, dataset, place, f"compile_{own}"
    )
    loss = chosen_word(place, f"loss_{own}", (OWN, *CANDIDATES))
    if loss is None and not (compiled or may_try_loss_kernels(s, devices[0], dataset)):
        loss = OWN
    how: dict[str, Any] = {
        "dtype": s.dtype if s.dtype != "auto" else dtype,  # measured once here, not again in each process
        "trust_remote_code": s.trust_remote_code,
        "fp32_route": chosen_route(place),
        "loss": loss,
        "known": model.fingerprint,
    }
    # Precedence: the setting, then what the run began with, then the engine's own measurement.
    budget = s.batch_tokens or chosen_number(place, f"batch_tokens_{own}")
    elsewhere = None if place is None else answers_elsewhere(s, dataset, model, place)
    spread = spread_over(model.files, dtype, devices, s.shard)
    say_dequantised(model.files, reporter, dtype)
    if len(devices) > 1 and not spread and use_all_devices(s, devices, reporter, several=several):
        from tithe.engine.dequantised import share_dequantised
        from tithe.engine.workers.multi_device import MultiDeviceEngine

        def start(files: ModelSource) -> Engine:
            return MultiDeviceEngine(files, devices, how, budget=budget, workers=s.workers, compiled=compiled)

        unpacked = WEIGHTS["bf16" if dtype == "fp8" else dtype]
        engine: Engine = share_dequantised(model.files, unpacked, start, reporter.say)
    else:
        loaded = load_model(model.files, device=str(devices[0]), spread=spread, **how)
        workers = s.workers or chosen_number(place, f"workers_{own}")
        threads = None if s.workers else chosen_number(place, f"threads_{own}")
        engine = Engine(loaded, budget=budget, workers=workers, threads=threads, say=reporter.say, compiled=compiled)
        if engine.measured and s.workers is None:  # several processes divide the cores by themselves
            keep_choice(place, f"workers_{own}", engine.workers)
            if engine.threads is not None:
                keep_choice(place, f"threads_{own}", engine.threads)
    if engine.measured and s.batch_tokens is None:
        keep_choice(place, f"batch_tokens_{own}", engine.budget)
    if "loss" in engine.facts:
        keep_choice(place, f"loss_{own}", engine.facts["loss"]["name"])
    keep_route(place, engine.model.fp32)
    reporter.say(engine_sentence(engine))
    if elsewhere is not None:
        reporter.say(f"note: `{elsewhere}` has answers of this model on this data: `--answers {elsewhere}` uses them")
    if kind == "cpu" and s.dtype in ("bf16", "fp16"):
        half = probe_half(WEIGHTS[s.dtype])
        if not half.pays:
            reporter.say(f"note: {half.words(s.dtype)}: `--dtype fp32` loses nothing by it")
    return engine


def use_all_devices(
    settings: ScoreSettings, devices: Sequence[torch.device], reporter: Reporter, *, several: bool
) -> bool:
    """Tell whether to use all devices; print a note if only one is used."""
    if not several:
        reporter.say(f"note: only one of {len(devices)} devices is used, {devices[0]}")
        return False
    if settings.dtype != "fp8":
        return True
    if settings.device != "auto":
        raise SettingsError(
            f"fp8 runs on one device, as its error is measured in one process, and `{settings.device}` "
            f"names {len(devices)}",
            hint=f"`--device {devices[0]}`, or `--dtype bf16` on all of them",
        )
    reporter.say(f"note: fp8 runs on one device: {devices[0]} of {len(devices)}")
    return False


def check_compile(settings: ScoreSettings, device: torch.device) -> None:
    """Refuse `compile="on"` where nothing can be compiled, before the model is loaded.

    Raises:
        SettingsError: torch.compile does not work for this device.
    """
    if settings.compile != "on":
        return
    from tithe.engine.measure.fused import why_not_compilable

    reason = why_not_compilable(device)
    if reason is not None:
        raise SettingsError(f"nothing can be compiled for `{device}`: {reason}", hint="leave `--compile on` out")


def should_compile(
    settings: ScoreSettings,
    device: torch.device,
    parameters: Callable[[], int],
    dataset: Dataset,
    place: Path | None,
    name: str,
) -> bool:
    """Tell whether to compile parts of the model; a resumed run does as it began.

    Args:
        settings: settings of the run.
        device: device of the model.
        parameters: returns the model's parameter count; called only when it is needed.
        dataset: the data set to read.
        place: the run folder.
        name: key of this choice in the run folder.
    """
    from tithe.engine.measure.fused import why_not_worth_compiling

    wanted = str(settings.compile)
    if wanted == "auto":
        wanted = chosen_word(place, name, ("on", "off")) or "off"
        if device.type == "cuda" and choice(place, name) is None:
            wanted = "off" if why_not_worth_compiling(device, parameters(), estimate_tokens(dataset)) else "on"
    if device.type != "cpu" or wanted == "on":  # on a CPU `auto` always means off: nothing to keep
        keep_choice(place, name, wanted)
    return wanted == "on"


def may_try_loss_kernels(settings: ScoreSettings, device: torch.device, dataset: Dataset) -> bool:
    """Tell whether to try loss kernels although nothing else is compiled; compiling them for the trial takes seconds.

    A data set of unknown size (on a hub) may be large. Without a GPU there is nothing to try.
    """
    return device.type != "cuda" or (settings.compile == "auto" and estimate_tokens(dataset) is None)


def estimate_tokens(dataset: Dataset) -> int | None:
    """Estimate from the file sizes how many tokens a run over a data set reads; None if no size is known."""
    found = [size for size in (text_bytes_in_files(dataset), text_bytes_to_read(dataset)) if size is not None]
    return PASSES * min(found) // BYTES_PER_TOKEN if found else None


def text_bytes_in_files(dataset: Dataset) -> int | None:
    """Estimate the bytes of text in all files; None if a hub does not give their sizes."""
    path = Path(dataset.source)
    if path.exists():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes = {str(file): file.stat().st_size for file in files}
    else:
        sizes = dataset.origin.sizes() if isinstance(dataset.origin, HubData) else {}
    return sum(size * (RATIO if name.endswith(COMPRESSED) else 1) for name, size in sizes.items()) if sizes else None


def text_bytes_to_read(dataset: Dataset) -> int | None:
    """Estimate the bytes of text in the records up to `limit` from the first ones; None without a limit."""
    if dataset.limit is None:
        return None
    first = [item for item in islice(dataset, FIRST) if isinstance(item, Example)]
    each = [sum(len(turn.content) for turn in (*one.prompt, one.response)) for one in first]
    return round(statistics.fmean(each) * dataset.limit) if each else None


def engine_record(engine: Engine) -> dict[str, Any]:
    """Return how the model was run, for the run record."""
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
    """Return one line for the terminal: model, size, devices, dtype and forward path."""
    model = engine.model
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if model.parameters >= s)
    size = f"{model.parameters / scale:.3g}{unit}"
    dtype = weights_dtype(model)
    if model.fp32 is not None:
        dtype += describe_fp32_kernels(model.fp32)
    where = ", ".join(engine.devices)
    if len(engine.devices) > 1:
        where += " (one process each)" if engine.model.model is None else " (a part of it on each)"
    how = [describe_forward_path(model), *describe_parallelism(engine), *engine.words]
    return f"model {model.source.name} ({size}) on {where} in {dtype}: {', '.join(how)}"


def describe_parallelism(engine: Engine) -> list[str]:
    """Describe how many passes run at once, and with how many threads each."""
    words = [f"{engine.workers} at once"] if engine.workers != 1 else []
    if engine.threads is not None:
        each = " each" if engine.workers != 1 or len(engine.devices) > 1 else ""
        words.append(f"{engine.threads} {'thread' if engine.threads == 1 else 'threads'}{each}")
    return words


def describe_forward_path(model: LoadedModel) -> str:
    """Describe the forward path, and on a GPU why it is not the packed one."""
    how = {"packed": "packed, no padding", "padded": "padded batches", "single": "one sequence at a time"}[
        model.forward_path
    ]
    refused = [] if model.device.type == "cpu" else [one for one in model.fallbacks if one.startswith("packed")]
    return " ".join([how, *(f"({shorten(one)})" for one in refused)])


def shorten(text: str, longest: int = 160) -> str:
    """Cut a reason to the length of a note; the run record has all of it."""
    return text if len(text) <= longest else f"{text[:longest]} ..."


def weights_dtype(model: LoadedModel) -> str:
    """Return torch's name for the dtype of the block weights."""
    return "float8_e4m3fn" if model.awaits_fp8 or model.fp8 is not None else str(model.dtype).removeprefix("torch.")


def torch_name(dtype: str) -> str:
    """Return torch's name for ours: `float32` for `fp32`."""
    from tithe.engine.devices import WEIGHTS

    return str(WEIGHTS[dtype]).removeprefix("torch.")


def describe_fp32_kernels(route: Fp32Route) -> str:
    """Describe the fp32 kernels of a CPU if they are not torch's own, or not true fp32; else return an empty text."""
    by = f" by oneDNN ({route.why})" if route.name == "onednn" else ""
    wrong = route.relative_error[route.name]
    return by if route.is_true(route.name) else f"{by} that is not true fp32 here (relative error {wrong:.1e})"
