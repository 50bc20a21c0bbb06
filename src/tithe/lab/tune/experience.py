"""`--warmup`: the model gets its brief experience in the run folder, and what scores is the model with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.config import ScoreSettings
from tithe.report.reporter import Talk

if TYPE_CHECKING:
    from tithe.lab.tune.tune import TuneResult
    from tithe.lab.tune.warmup_settings import WarmupSettings
    from tithe.run.method import Setup

FOLDER = "warmup"
TAKEN = ("dataset", "format", "turns", "split", "limit", "strict", "model", "template", "bos", "seed")


def experience(setup: Setup, folder: Path | None, talk: Talk) -> dict[str, Any]:
    """Train the model that the run will score with, or find it in the run folder; return what the record says of it.

    The model lies under a name made of all that its training depends on: another data set, model or setting makes
    another one.

    Raises:
        SettingsError: the model has had its experience already.
    """
    assert folder is not None
    from tithe.lab.tune.warming import WarmupParts, warm_up

    settings = warmup_settings(setup.settings, setup.model.first_device)
    warm = WarmupParts(settings)
    talk.say("warm-up: the model gets its brief experience before it scores")
    made = warm_up(settings, folder / FOLDER / name_of(warm.identity()), talk=talk)
    talk.say(f"scoring with the experienced model in `{made.folder}`")
    return told(made, warm)


def warmup_settings(settings: ScoreSettings, device: str) -> WarmupSettings:
    """As the run reads and renders; the rest as the paper has it."""
    from tithe.lab.tune.warmup_settings import WarmupSettings

    values: dict[str, Any] = {name: getattr(settings, name) for name in TAKEN}
    values |= {"trust_remote_code": settings.trust_remote_code, "device": device}
    if settings.max_length is not None:
        values["max_length"] = settings.max_length
    return WarmupSettings.of(values)


def name_of(identity: dict[str, Any]) -> str:
    """16 hex digits of all that a training depends on."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def told(made: TuneResult, warm: Any) -> dict[str, Any]:
    """What the run record says of the experience."""
    record = made.record
    return {
        "folder": str(made.folder),
        "base": {"name": warm.source.name, "fingerprint": warm.fingerprint},
        "dataset_digest": record["dataset"]["digest"],
        "records": record["counts"]["trained_on"],
        "chosen": {name: value for name, value in record["warmup"].items() if name != "chosen"},
        "recipe_digest": record["recipe_digest"],
        "steps": record["steps"],
        "losses": [record["losses"][0], record["losses"][-1]],
        "seconds": record["seconds"],
    }
