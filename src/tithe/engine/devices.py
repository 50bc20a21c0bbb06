"""Choose the devices that read a model, one or several of the same kind, and its dtype."""

from __future__ import annotations

import torch

from tithe.engine.host import on_device
from tithe.engine.measure.cpu_kernels import probe_half
from tithe.errors import SettingsError

E4M3 = torch.float8_e4m3fn
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {**DTYPES, "fp8": E4M3}  # in fp8 only weights are stored; everything else is bf16
CAPABILITY = (8, 9)  # the first CUDA compute capability with fp8 units
ALL = "cuda:all"
HOW = "`cuda:0,cuda:1`, `cuda:all`, or `cpu,cpu` for two processes on the CPU"


def choose_device(wanted: str) -> torch.device:
    """Return a device: `auto` takes cuda, then mps, then cpu; a missing device is an error."""
    if "," in wanted or wanted == "cuda:all":
        raise SettingsError(
            f"`{wanted}` names several devices, but this command uses one",
            hint="name one; `score` and `select` use several",
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise SettingsError(f"no device `{wanted}`", hint="auto, cuda, cuda:0, mps or cpu") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise SettingsError(f"device `{wanted}` is not available here", hint="`--device auto` takes what is there")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"there is no device `{wanted}`", hint=f"the last one is `cuda:{torch.cuda.device_count() - 1}`"
        )
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return a dtype: `auto` takes bf16 if the hardware multiplies in it, else fp16 on a GPU and fp32 on a CPU.

    On a CPU bf16 is timed first: a processor can have the instructions while torch has no kernel that uses them.
    """
    if wanted == "auto":
        if device.type == "cuda":
            with on_device(device):  # `is_bf16_supported` looks at the current device
                return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        if device.type == "mps":
            return torch.float16
        return torch.bfloat16 if cpu_multiplies_bf16() and probe_half(torch.bfloat16).pays else torch.float32
    if wanted not in WEIGHTS:
        raise SettingsError(f"no dtype `{wanted}`", hint=f"auto, {', '.join(WEIGHTS)}")
    if wanted == "fp8":
        demand_fp8(device)
    return WEIGHTS[wanted]


def cpu_multiplies_bf16() -> bool:
    """Tell whether the CPU has AVX-512 or AMX for bf16; without them it may be far slower than fp32."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test is not None and test() for test in tests)


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in WEIGHTS.items() if known == dtype)


def multiplies_fp8(device: torch.device) -> bool:
    """Tell whether the device has e4m3 units, as NVIDIA's GPUs do from Ada and Hopper on."""
    if device.type != "cuda" or torch.version.hip is not None:  # AMD's units may use another e4m3 format
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY


def demand_fp8(device: torch.device) -> None:
    """Raise unless the device multiplies in fp8.

    Raises:
        SettingsError: it does not; there is no silent fallback to another dtype.
    """
    if not multiplies_fp8(device):
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise SettingsError(
            f"dtype `fp8` needs an NVIDIA GPU of compute capability 8.9 or more, and `{what}` is none",
            hint="`--dtype bf16`, or `auto` for what the device multiplies",
        )


def choose_devices(wanted: str) -> tuple[torch.device, ...]:
    """Return the devices that a name, or a comma-separated list of names, stands for.

    `auto` takes every GPU of the first one's model, else mps, else the CPU; `cuda:all` does the same but requires GPUs.

    Raises:
        SettingsError: a device is missing, named twice, or of another kind than the rest.
    """
    if wanted in ("auto", ALL):
        first = choose_device("auto" if wanted == "auto" else "cuda")
        alike = (
            [i for i in range(torch.cuda.device_count()) if gpu_name(i) == gpu_name(0)] if first.type == "cuda" else []
        )
        return tuple(torch.device("cuda", i) for i in alike) if len(alike) > 1 else (first,)
    names = [name.strip() for name in wanted.split(",")]
    if len(names) == 1:
        return (choose_device(names[0]),)
    if not set(names).isdisjoint({"auto", ALL, ""}):
        raise SettingsError(f"`{wanted}` is no list of devices", hint=HOW)
    found = tuple(map(with_index, names))  # with indices, so that `cuda` and `cuda:0` count as the same device
    demand_alike(found, wanted)
    return found


def with_index(name: str) -> torch.device:
    """Return a device with an explicit index, where `cuda` means the first GPU."""
    device = choose_device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else torch.device(device.type)


def demand_alike(devices: tuple[torch.device, ...], wanted: str) -> None:
    """Raise if the devices would round batches differently, or if two processes would share a GPU."""
    kinds = sorted({device.type for device in devices})
    if len(kinds) > 1:
        raise SettingsError(
            f"`{wanted}` names devices of {len(kinds)} kinds ({', '.join(kinds)}), which round differently: "
            "scores would change from run to run",
            hint="name devices of one kind",
        )
    # Several processes on one GPU would compete for its memory; on a CPU they share the cores.
    twice = [str(device) for i, device in enumerate(devices) if device in devices[:i]]
    if twice and kinds != ["cpu"]:
        raise SettingsError(f"`{wanted}` names `{twice[0]}` twice", hint="one process a GPU; name each once")
    makes = sorted({gpu_name(device.index) for device in devices if device.type == "cuda"})
    if len(makes) > 1:
        raise SettingsError(
            f"`{wanted}` names GPUs of different makes ({', '.join(makes)}), which round differently: "
            "scores would change from run to run",
            hint="`cuda:all` takes those that are like the first",
        )


def gpu_name(index: int) -> str:
    """Return the product name of a GPU."""
    return torch.cuda.get_device_name(index)


def device_names(devices: tuple[torch.device, ...]) -> list[str]:
    """Return a name for each device; if one occurs several times, with its place in the list."""
    count = len(devices)
    same = len(set(devices)) < count
    return [f"{device} ({i} of {count})" if same else str(device) for i, device in enumerate(devices, 1)]
