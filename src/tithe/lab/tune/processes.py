"""The processes of one training: their number, which one is the main one, and how they wait for each other."""

from __future__ import annotations

import os

from tithe.errors import SettingsError


def devices() -> int:
    """Return how many processes `accelerate launch` or `torchrun` started for this training; each has a device.

    Raises:
        SettingsError: WORLD_SIZE is not a positive number.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise SettingsError(f"the environment variable WORLD_SIZE is `{given}`", hint="a launcher sets it to a number")
    return int(given)


def is_main() -> bool:
    """Return whether this is the process that writes files and messages."""
    return os.environ.get("RANK", "0") == "0"


def connect(device: str) -> None:
    """Connect the processes; must come before `wait`."""
    if devices() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


def wait() -> None:
    """Wait until all processes have reached this call."""
    if devices() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def main_value(wanted: bool) -> bool:
    """Return the main process's value in all processes, since their clocks differ."""
    if devices() == 1:
        return wanted
    from accelerate.utils import broadcast_object_list

    said = [wanted]
    broadcast_object_list(said)
    return said[0]
