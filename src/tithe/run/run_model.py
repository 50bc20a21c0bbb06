"""The model of a run: its files, dtype and renderer, and the choices that a run made when it began.

A run chooses batch size, threads, kernels and dtype when it begins, and a resumed run chooses the same. Measurements
differ from day to day; without these choices a resumed run could compute its remaining answers otherwise than the
stored ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tithe.data.checksum import seal, unseal
from tithe.data.paper_renderers import CherryRenderer, CpqsRenderer, SuperfilteringRenderer
from tithe.data.render import Renderer, RenderSettings, Truncation, make_renderer
from tithe.engine.held_model import HeldModel
from tithe.engine.model_source import ModelSource, context_window, find_model, fingerprint, load_tokenizer
from tithe.errors import SettingsError, StoreError
from tithe.foreign import read_json
from tithe.report.reporter import Reporter
from tithe.run.folder import write_json

if TYPE_CHECKING:
    from tithe.engine.measure.cpu_kernels import Fp32Route, RouteName

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

ALWAYS_THERE = ("auto", "cpu")
AUTHORS: Mapping[str, Callable[..., Renderer]] = {
    # presets that render as the authors' code does, down to its quirks
    "cherry": CherryRenderer,
    "superfiltering": SuperfilteringRenderer,
    "cpqs-paper": CpqsRenderer,
}
CHOICES = Path("answers", "choices.json")
ROUTE, DTYPE = "fp32_route", "dtype_cpu"
TIMED = ("bf16", "fp32")  # dtypes between which a CPU's speed decides


def choice(folder: Path | None, name: str) -> Any:
    """Return what the run chose under this name when it began, or None.

    Raises:
        StoreError: the file is damaged.
    """
    return None if folder is None else read_choices(folder / CHOICES).get(name)


def chosen_number(folder: Path | None, name: str) -> int | None:
    """Return a number above 0 that the run chose when it began, or None."""
    value = choice(folder, name)
    if value is not None and (type(value) is not int or value < 1):
        raise damaged(folder, name, value)
    return value


def chosen_word(folder: Path | None, name: str, known: tuple[str, ...]) -> str | None:
    """Return one of several words that the run chose when it began, or None."""
    value = choice(folder, name)
    if value is not None and value not in known:
        raise damaged(folder, name, value)
    return None if value is None else str(value)


def keep_choice(folder: Path | None, name: str, value: Any) -> None:
    """Write a choice to the run folder, unless an earlier part of the run has made it."""
    if folder is None:
        return
    path = folder / CHOICES
    choices = read_choices(path)
    if name in choices:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, seal({**choices, name: value}))


def read_choices(path: Path) -> dict[str, Any]:
    """Read the file of choices, {} if there is none.

    Raises:
        StoreError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return unseal(read_json(path, StoreError, ""))
    except (StoreError, ValueError) as error:
        raise StoreError(f"`{path}` is damaged", hint="delete it: what it held is then chosen again") from error


def damaged(folder: Path | None, name: str, value: object) -> StoreError:
    assert folder is not None
    return StoreError(f"`{folder / CHOICES}`: `{name}` cannot be `{value}`", hint="delete it: it is then chosen again")


def chosen_route(folder: Path | None) -> RouteName | None:
    """Return the fp32 kernels with which the run began, or None."""
    found = chosen_word(folder, ROUTE, ("default", "onednn"))
    return None if found is None else "onednn" if found == "onednn" else "default"


def keep_route(folder: Path | None, route: Fp32Route | None) -> None:
    """Keep the fp32 kernels if several were measured."""
    if route is not None and route.gflops:
        keep_choice(folder, ROUTE, route.name)


def dtype_at_start(folder: Path | None, fresh: str) -> tuple[str, str | None]:
    """Return the dtype for `--dtype auto` on a CPU: the one with which the run began, even if another is faster now.

    Args:
        folder: the run folder.
        fresh: the dtype that a new measurement chooses.

    Returns:
        The dtype, and a note if a new measurement chooses another one.
    """
    before = chosen_word(folder, DTYPE, TIMED) or dtype_of_answers(folder)
    if before in (None, fresh):
        return fresh, None
    return before, (
        f"note: {before}, as this run began; measured anew, `--dtype auto` takes {fresh}, "
        f"and `--dtype {fresh}` computes all passes again"
    )


def dtype_of_answers(folder: Path | None) -> str | None:
    """Return the one dtype of the answers in a folder; early versions kept no choice. None if there is not just one."""
    stores = () if folder is None else (folder / CHOICES.parent).glob("*/*-*")
    found = {path.name.partition("-")[0] for path in stores}
    return found.pop() if len(found) == 1 and found <= {*TIMED} else None


@dataclass(frozen=True)
class RunModel:
    """A model on disk, and how a run loads it.

    Args:
        files: config, tokenizer and weights.
        device: the setting: `auto`, a device, or several.
        dtype: the setting; `auto` means the dtype that is fast on the device.
        trust_remote_code: run code that comes with the model.
        began_in: run folder whose first run may have chosen the dtype.
    """

    files: ModelSource
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    began_in: Path | None = None

    @property
    def name(self) -> str:
        return self.files.name

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.files, trust_remote_code=self.trust_remote_code)

    @cached_property
    def window(self) -> int | None:
        """Context window in tokens; None if the model does not say."""
        return context_window(self.files, self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights and tokenizer, 16 hex digits."""
        return fingerprint(self.files)

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that the weights may be on.

        Raises:
            SettingsError: there is no such device.
        """
        from tithe.engine.devices import choose_devices

        return choose_devices(self.device)

    @property
    def first_device(self) -> str:
        """The device for everything else, such as an encoder."""
        # A single name needs no look at the devices, which would import torch.
        one_name = "," not in self.device and self.device != "cuda:all"
        return self.device if one_name else str(self.devices[0])

    @property
    def dtype_is_timed(self) -> bool:
        """Whether this machine's speed decides the dtype; the run folder then keeps the first run's choice."""
        return self.dtype == "auto" and self.devices[0].type == "cpu"

    @cached_property
    def chosen_dtype(self) -> tuple[str, str | None]:
        """The dtype of the weights, and a note if the run folder decides it against a new measurement."""
        return self.dtype_in(self.began_in)

    def dtype_in(self, folder: Path | None) -> tuple[str, str | None]:
        """Return the dtype for a run in a folder, and a note if the folder decides it against a new measurement."""
        from tithe.engine.devices import choose_dtype, dtype_name

        fresh = dtype_name(choose_dtype(self.dtype, self.devices[0]))
        return dtype_at_start(folder, fresh) if self.dtype_is_timed else (fresh, None)

    @property
    def weights_dtype(self) -> str:
        """`fp32`, `bf16`, `fp16` or `fp8`."""
        return self.chosen_dtype[0]

    def keep_dtype(self, place: Path) -> None:
        """Keep the dtype for later runs in this folder."""
        if self.dtype_is_timed:
            keep_choice(place, DTYPE, self.weights_dtype)

    def describe(self) -> dict[str, Any]:
        """Return the name and place of the model, for the run record."""
        if self.files.held is not None:  # the folder is gone after the call
            return {"name": self.name, "in_memory": True}
        out: dict[str, Any] = {"name": self.name, "revision": self.files.revision, "folder": str(self.files.place)}
        if self.files.adapter is not None:
            out["adapter"] = str(self.files.adapter)
        return out


class ModelSettings(Protocol):
    """The settings that name the model, its device and dtype."""

    @property
    def model(self) -> str | None: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def trust_remote_code(self) -> bool: ...


def open_model(
    settings: ModelSettings, *, weights: bool = True, began_in: Path | None = None, missing: str = "no model given"
) -> RunModel:
    """Find the files of the model that the settings name.

    Args:
        settings: settings of the run.
        weights: also fetch or demand the weights; a plan needs only the tokenizer.
        began_in: the run folder.
        missing: error message if no model is given.

    Raises:
        SettingsError: no model is given.
        ModelError: the model cannot be found.
    """
    if settings.model is None:
        raise SettingsError(
            missing,
            hint="`--model` takes a folder, GGUF file or hub id; `--model pocket` is bundled, for trying out",
        )
    files = find_model(settings.model, weights=weights)
    if files.held is not None:
        check_held(settings, files.held)
        return RunModel(files, files.held.device, files.held.dtype, settings.trust_remote_code, began_in)
    return RunModel(files, settings.device, settings.dtype, settings.trust_remote_code, began_in)


def check_held(settings: ModelSettings, held: HeldModel) -> None:
    """Refuse settings that would move or convert a model in memory, or need it in several processes.

    Raises:
        SettingsError: names the setting.
    """
    if settings.device not in ("auto", held.device, held.device.partition(":")[0]):
        raise SettingsError(
            f"a model in memory is read in this process and where it is, on `{held.device}`, not on "
            f"`{settings.device}`",
            hint="leave `device` out, or give the model's folder, which worker processes can load",
        )
    if settings.dtype not in ("auto", held.dtype):
        raise SettingsError(
            f"a model in memory is read as it is, in {held.dtype}, not in {settings.dtype}",
            hint="leave `dtype` out, or convert the model",
        )


class RenderingSettings(Protocol):
    """The settings that decide how an example becomes tokens."""

    @property
    def template(self) -> str: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def truncation(self) -> Truncation | None: ...
    @property
    def bos(self) -> Literal["auto", "always", "never"]: ...
    @property
    def eos(self) -> bool: ...
    @property
    def alone_header(self) -> str: ...
    @property
    def preset(self) -> str | None: ...


def open_renderer(settings: RenderingSettings, model: RunModel, *, whole_response: bool = False) -> Renderer:
    """Make the renderer, which turns examples into passes.

    Args:
        settings: settings of the run.
        model: the model; gives the tokenizer and the context window.
        whole_response: whether a scorer needs uncut responses; then the prompt is cut first.

    Raises:
        TitheError: template, length and model do not go together.
    """
    s = settings
    authors = AUTHORS.get(s.preset or "")
    rendering = RenderSettings(
        template=s.template,
        max_length=longest_pass(s.max_length, model),
        bos=s.bos,
        eos=s.eos,
        alone_header=s.alone_header,
        truncation=s.truncation or ("prompt" if whole_response and authors is None else "response"),
    )
    return (authors or make_renderer)(model.tokenizer, rendering, context_window=model.window)


def longest_pass(max_length: int | None, model: RunModel) -> int:
    """Return the given maximal length, or else the model's context window.

    Raises:
        SettingsError: neither is known.
    """
    length = model.window if max_length is None else max_length
    if length is None:
        raise SettingsError(f"`{model.name}` does not say how long its context window is", hint="give `--max-length`")
    return length


def say_dequantised(files: ModelSource, reporter: Reporter, dtype: str | None = None) -> None:
    """Say that the weights of a GGUF file are dequantised; say nothing of another model.

    Args:
        files: the model.
        reporter: prints the note.
        dtype: of the dequantised weights, if it is known.
    """
    if files.gguf is not None:
        from tithe.engine.gguf_model import note_on

        reporter.say(note_on(files.gguf, files.name, "bf16" if dtype == "fp8" else dtype))
