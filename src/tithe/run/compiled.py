"""Whether a run compiles parts of its model: as asked for, as it began, or where the work repays it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tithe.config import ScoreSettings
from tithe.data.files import Dataset
from tithe.errors import SettingsError
from tithe.run.kept_choice import keep, kept_word

if TYPE_CHECKING:
    import torch

    from tithe.engine.sources import ModelSource

BYTES = 4  # of text, a token
PASSES = 2  # of each record: with its prompt and without


def check_compile(settings: ScoreSettings, device: torch.device) -> None:
    """Before the model is loaded.

    Raises:
        SettingsError: it is asked for, and cannot be.
    """
    if settings.compile != "on":
        return
    from tithe.engine.fused import cannot

    reason = cannot(device)
    if reason is not None:
        raise SettingsError(f"nothing can be compiled for `{device}`: {reason}", hint="leave `--compile on` out")


def wants_compiled(
    settings: ScoreSettings, device: torch.device, source: ModelSource, dataset: Dataset, place: Path | None
) -> bool:
    """Whether parts are to be compiled; a run that goes on does as it began."""
    from tithe.engine.fused import worth
    from tithe.engine.shape import model_shape

    name, wanted = f"compile_{device.type}", str(settings.compile)
    if wanted == "auto":
        began = kept_word(place, name, ("on", "off"))
        wanted = began or ("off" if worth(device, model_shape(source).parameters, about(dataset)) else "on")
    if device.type != "cpu" or wanted == "on":  # on a CPU nothing is chosen
        keep(place, name, wanted)
    return wanted == "on"


def about(dataset: Dataset) -> int | None:
    """Tokens that a run over a data set reads, roughly, from the size of its files; None for what is elsewhere."""
    path = Path(dataset.source)
    if not path.exists():
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return PASSES * sum(file.stat().st_size for file in files) // BYTES
