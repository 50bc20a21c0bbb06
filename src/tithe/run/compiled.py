"""Whether a run compiles parts of its model: as asked for, as it began, or where the work repays it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.config import ScoreSettings
from tithe.data.files import Dataset
from tithe.data.hub import HubData
from tithe.errors import SettingsError
from tithe.records import Example
from tithe.run.kept_choice import keep, kept, kept_word

if TYPE_CHECKING:
    import torch

BYTES = 4  # of text, a token
DENSE = (".parquet", ".gz", ".zst")  # files that hold more text than they have bytes,
TIMES = 3  # about so many times as much
FIRST = 20  # examples by which the length of the others is guessed
PASSES = 2  # of each record: with its prompt and without


def check_compile(settings: ScoreSettings, device: torch.device) -> None:
    """Before the model is loaded.

    Raises:
        SettingsError: it is asked for, and cannot be.
    """
    if settings.compile != "on":
        return
    from tithe.engine.measure.fused import cannot

    reason = cannot(device)
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
    from tithe.engine.measure.fused import worth

    wanted = str(settings.compile)
    if wanted == "auto":
        wanted = kept_word(place, name, ("on", "off")) or "off"
        if device.type == "cuda" and kept(place, name) is None:
            wanted = "off" if worth(device, parameters(), about(dataset)) else "on"
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
