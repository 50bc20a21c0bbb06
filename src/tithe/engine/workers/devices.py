"""Which devices a model is read on: one, or several that are alike."""

from __future__ import annotations

import torch

from tithe.engine.dtypes import choose_device
from tithe.errors import SettingsError

ALL = "cuda:all"
HOW = "`cuda:0,cuda:1`, `cuda:all`, or `cpu,cpu` for two processes on the CPU"


def choose_devices(wanted: str) -> tuple[torch.device, ...]:
    """The devices of a name, or of several names with commas between them.

    `auto` takes every GPU like the first one, else mps, else the CPU; `cuda:all` is that without the else.

    Raises:
        SettingsError: one of them is not there, or named twice, or they are not of one kind.
    """
    if wanted in ("auto", ALL):
        first = choose_device("auto" if wanted == "auto" else "cuda")
        alike = [i for i in range(torch.cuda.device_count()) if make(i) == make(0)] if first.type == "cuda" else []
        return tuple(torch.device("cuda", i) for i in alike) if len(alike) > 1 else (first,)
    names = [name.strip() for name in wanted.split(",")]
    if len(names) == 1:
        return (choose_device(names[0]),)
    if not set(names).isdisjoint({"auto", ALL, ""}):
        raise SettingsError(f"`{wanted}` is no list of devices", hint=HOW)
    found = tuple(map(numbered, names))
    demand_alike(found, wanted)
    return found


def numbered(name: str) -> torch.device:
    """A device of a list, where `cuda` is the first one."""
    device = choose_device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else torch.device(device.type)


def demand_alike(devices: tuple[torch.device, ...], wanted: str) -> None:
    """Raise where a batch would be rounded otherwise from device to device, or two processes were to share a GPU."""
    kinds = sorted({device.type for device in devices})
    if len(kinds) > 1:
        raise SettingsError(
            f"`{wanted}` names devices of {len(kinds)} kinds ({', '.join(kinds)}), which round differently: "
            "scores would change from run to run",
            hint="name devices of one kind",
        )
    twice = [str(device) for i, device in enumerate(devices) if device in devices[:i]]
    if twice and kinds != ["cpu"]:
        raise SettingsError(f"`{wanted}` names `{twice[0]}` twice", hint="one process a GPU; name each once")
    makes = sorted({make(device.index) for device in devices if device.type == "cuda"})
    if len(makes) > 1:
        raise SettingsError(
            f"`{wanted}` names GPUs of different makes ({', '.join(makes)}), which round differently: "
            "scores would change from run to run",
            hint="`cuda:all` takes those that are like the first",
        )


def make(index: int) -> str:
    """What a GPU is called by its maker."""
    return torch.cuda.get_device_name(index)


def names(devices: tuple[torch.device, ...]) -> list[str]:
    """A name for each; where one is there several times, with its place."""
    count = len(devices)
    same = len(set(devices)) < count
    return [f"{device} ({i} of {count})" if same else str(device) for i, device in enumerate(devices, 1)]
