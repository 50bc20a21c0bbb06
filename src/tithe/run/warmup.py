"""`--warmup`: the run checks it and calls it by name; what trains the model stands above the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tithe import plugins
from tithe.errors import SettingsError
from tithe.run.talk import Talk

if TYPE_CHECKING:
    from tithe.run.setup import Parts


def check_warmup(parts: Parts, folder: Path | None) -> None:
    """Raise what can be known to be wrong with a warm-up before the run folder is made.

    Raises:
        SettingsError: no scorer reads a model, or there is no run folder.
    """
    if not parts.settings.warmup:
        return
    if not parts.needs_model:
        raise SettingsError(
            f"`warmup` is given, and no model is read: not by {', '.join(parts.scorers)}", hint="leave it out"
        )
    if folder is None:
        raise SettingsError(
            "`warmup` trains a model, which is kept in the run folder, and there is none", hint="give `run_dir`"
        )


def warm_up_first(parts: Parts, folder: Path | None, talk: Talk) -> None:
    """Put the trained model in the place of the one given, where that is wanted.

    Raises:
        SettingsError: the model has had its experience already.
    """
    if parts.settings.warmup:
        plugins.step("warmup")(parts, folder, talk)
