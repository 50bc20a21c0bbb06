"""The model of a run as files: tokenizer, window, fingerprint, and where and in which dtype it will be. No weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tithe.data.authors import CherryRenderer, CpqsRenderer, SuperfilteringRenderer
from tithe.data.checksum import sealed, unsealed
from tithe.data.render import Renderer, RenderSettings, Truncation, make_renderer
from tithe.engine.model_source import ModelSource, context_window, find_model, fingerprint, load_tokenizer
from tithe.errors import SettingsError, StoreError
from tithe.foreign import read_json
from tithe.run.folder import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.measure.cpu_kernels import Fp32Route, RouteName

CHOICES = Path("answers", "choices.json")  # what a run chose when it began: the run that goes on does the same
ROUTE, DTYPE = "fp32_route", "dtype_cpu"
TIMED = ("bf16", "fp32")  # dtypes between which a CPU's speed decides
ALWAYS_THERE = ("auto", "cpu")
AUTHORS: Mapping[str, Callable[..., Renderer]] = {
    "cherry": CherryRenderer,
    "superfiltering": SuperfilteringRenderer,
    "cpqs-paper": CpqsRenderer,
}


@dataclass(frozen=True)
class Model:
    """A model on this disk, and how a run takes it.

    Args:
        files: config, tokenizer and weights.
        device: as asked for: `auto`, a device, or several.
        dtype: as asked for; `auto` takes what the device multiplies fast.
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
        """Tokens of the longest sequence; None where the model does not say."""
        return context_window(self.files, self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of weights and tokenizer."""
        return fingerprint(self.files)

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the weights may be.

        Raises:
            SettingsError: there is no such device.
        """
        from tithe.engine.devices import choose_devices

        return choose_devices(self.device)

    @property
    def first_device(self) -> str:
        """Where all else is done that needs a device, such as an encoder."""
        one_name = "," not in self.device and self.device != "cuda:all"
        return self.device if one_name else str(self.devices[0])

    @property
    def dtype_is_timed(self) -> bool:
        """Whether this machine's speed decides the dtype: then a run folder keeps what its first run took."""
        return self.dtype == "auto" and self.devices[0].type == "cpu"

    @cached_property
    def chosen_dtype(self) -> tuple[str, str | None]:
        """The weights' dtype, and a note where the run folder decides it."""
        from tithe.engine.devices import choose_dtype, dtype_name

        fresh = dtype_name(choose_dtype(self.dtype, self.devices[0]))
        return began_with(self.began_in, fresh) if self.dtype_is_timed else (fresh, None)

    @property
    def weights_dtype(self) -> str:
        """`fp32`, `bf16`, `fp16` or `fp8`."""
        return self.chosen_dtype[0]

    def keep_dtype(self, place: Path) -> None:
        """Let later runs in this folder take the same dtype."""
        if self.dtype_is_timed:
            keep(place, DTYPE, self.weights_dtype)

    def describe(self) -> dict[str, Any]:
        """Return which files it is, for the record of a run."""
        out = {"name": self.name, "revision": self.files.revision, "folder": str(self.files.folder)}
        if self.files.adapter is not None:
            out["adapter"] = str(self.files.adapter)
        return out


class ModelSettings(Protocol):
    """The settings that say which model is read, and where."""

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
) -> Model:
    """Find the files of the model that the settings name.

    Args:
        settings: of the run.
        weights: also fetch or demand the weights; a plan needs only the tokenizer.
        began_in: the run folder.
        missing: what is said where no model is given.

    Raises:
        SettingsError: none is given.
        ModelError: it cannot be found.
    """
    if settings.model is None:
        raise SettingsError(
            missing, hint="`--model` takes a folder or a hub id; `--model pocket` is bundled, for trying out"
        )
    files = find_model(settings.model, weights=weights)
    return Model(files, settings.device, settings.dtype, settings.trust_remote_code, began_in)


class RenderingSettings(Protocol):
    """The settings that say how an example becomes tokens."""

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


def open_renderer(settings: RenderingSettings, model: Model, *, whole_response: bool = False) -> Renderer:
    """Make what turns examples into passes, as the settings have it.

    Args:
        settings: of the run.
        model: whose tokenizer and window.
        whole_response: whether a scorer needs responses whole: then the prompt gives way first.

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


def longest_pass(max_length: int | None, model: Model) -> int:
    """Return the length asked for, or the model's context window.

    Raises:
        SettingsError: neither is known.
    """
    length = model.window if max_length is None else max_length
    if length is None:
        raise SettingsError(f"`{model.name}` does not say how long its context window is", hint="give `--max-length`")
    return length


def kept(folder: Path | None, name: str) -> Any:
    """Return what an earlier part of the run chose; None where there was none, or nothing to choose.

    Raises:
        StoreError: the file is damaged.
    """
    return None if folder is None else read_choices(folder / CHOICES).get(name)


def kept_number(folder: Path | None, name: str) -> int | None:
    """Return a number above 0 that the run chose when it began, or None."""
    value = kept(folder, name)
    if value is not None and (type(value) is not int or value < 1):
        raise damaged(folder, name, value)
    return value


def kept_word(folder: Path | None, name: str, known: tuple[str, ...]) -> str | None:
    """Return one of several words that the run chose when it began, or None."""
    value = kept(folder, name)
    if value is not None and value not in known:
        raise damaged(folder, name, value)
    return None if value is None else str(value)


def keep(folder: Path | None, name: str, value: Any) -> None:
    """Write down what was chosen; the first choice of a run stays."""
    if folder is None:
        return
    path = folder / CHOICES
    choices = read_choices(path)
    if name in choices:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, sealed({**choices, name: value}))


def read_choices(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return unsealed(read_json(path, StoreError, ""))
    except (StoreError, ValueError) as error:
        raise StoreError(f"`{path}` is damaged", hint="delete it: what it held is then chosen again") from error


def damaged(folder: Path | None, name: str, value: object) -> StoreError:
    assert folder is not None
    return StoreError(f"`{folder / CHOICES}`: `{name}` cannot be `{value}`", hint="delete it: it is then chosen again")


def kept_route(folder: Path | None) -> RouteName | None:
    """Return the kernels of fp32 with which the run began."""
    found = kept_word(folder, ROUTE, ("default", "onednn"))
    return None if found is None else "onednn" if found == "onednn" else "default"


def keep_route(folder: Path | None, route: Fp32Route | None) -> None:
    """Write down what was taken, where there was something to choose."""
    if route is not None and route.gflops:
        keep(folder, ROUTE, route.name)


def began_with(folder: Path | None, fresh: str) -> tuple[str, str | None]:
    """Return the dtype of a run on a CPU that was given none: that with which it began, whatever is faster by now.

    Args:
        folder: of the run.
        fresh: what a new measurement takes.

    Returns:
        The dtype, and a note where it is not what the measurement takes.
    """
    before = kept_word(folder, DTYPE, TIMED) or held(folder)
    if before in (None, fresh):
        return fresh, None
    return before, (
        f"note: {before}, as this run began; measured anew, `--dtype auto` takes {fresh}, "
        f"and `--dtype {fresh}` computes all passes again"
    )


def held(folder: Path | None) -> str | None:
    """Return the one dtype whose answers a folder of an earlier version holds; None where it has none, or several."""
    stores = () if folder is None else (folder / CHOICES.parent).glob("*/*-*")
    found = {path.name.partition("-")[0] for path in stores}
    return found.pop() if len(found) == 1 and found <= {*TIMED} else None
