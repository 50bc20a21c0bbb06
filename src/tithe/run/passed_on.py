"""Settings of a run that its scorers and selectors read, each those that it has a field for."""

from __future__ import annotations

from collections.abc import Sequence

from tithe import plugins
from tithe.config import ScoreSettings
from tithe.errors import SettingsError
from tithe.scorers.base import Scorer
from tithe.selectors.base import Selector

PASSED_ON = ("encoder", "shots", "exclude_similarity", "shot_pool", "head", "target")


def check_passed_on(settings: ScoreSettings, used: Sequence[Scorer | Selector]) -> None:
    """Refuse a setting for scorers and selectors that none of a run's has.

    Raises:
        SettingsError: naming who would read it.
    """
    for name in PASSED_ON:
        given = getattr(settings, name)
        reading = [one for one in used if name in plugins.setting_names(type(one))]
        if given is None or any(getattr(one, name) == given for one in reading):
            continue
        if reading:
            own = ", ".join(f"`{one.name}({name}={getattr(one, name)})`" for one in reading)
            raise SettingsError(
                f"`{name}` is given as `{given}`, and nothing reads it: {own}", hint="leave one of the two out"
            )
        raise SettingsError(
            f"`{name}` is given, and nothing reads it: not {', '.join(f'`{one.name}`' for one in used)}",
            hint=f"it is read by {', '.join(readers(name))}",
        )


def readers(setting: str) -> list[str]:
    """Names of all scorers and selectors that have such a setting."""
    found = [name for name in plugins.names(plugins.SCORERS) if setting in plugins.setting_names(plugins.scorer(name))]
    for name in plugins.names(plugins.SELECTORS):
        if setting in plugins.setting_names(plugins.selector(name)):
            found.append(name)
    return [f"`{name}`" for name in found]
