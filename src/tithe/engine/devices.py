"""Which devices a model is read on, one or several that are alike, and in which dtype."""

from __future__ import annotations

import torch

from tithe.engine.host import on
from tithe.engine.measure.cpu_kernels import probe_half
from tithe.errors import SettingsError

E4M3 = torch.float8_e4m3fn
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {**DTYPES, "fp8": E4M3}  # fp8 holds weights; all else is bf16 then
CAPABILITY = (8, 9)  # of the first CUDA devices with fp8 units
ALL = "cuda:all"
HOW = "`cuda:0,cuda:1`, `cuda:all`, or `cpu,cpu` for two processes on the CPU"


def choose_device(wanted: str) -> torch.device:
    """Choose a device: `auto` takes cuda, then mps, then cpu; a device that is missing is an error."""
    if "," in wanted or wanted == "cuda:all":
        raise SettingsError(
            f"`{wanted}` names several devices, and here one alone is used", hint="several score: `score`, `select`"
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
    """Choose a dtype: `auto` takes bf16 where the hardware multiplies in it, else fp16 on a GPU and fp32 on a CPU.

    On a CPU it is multiplied for a moment first: instructions alone are no kernels.
    """
    if wanted == "auto":
        if device.type == "cuda":
            with on(device):  # it asks about the current one
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
    """Tell whether the device has units for e4m3: NVIDIA's from Ada and Hopper on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY


def demand_fp8(device: torch.device) -> None:
    """Raise unless the device multiplies fp8.

    Raises:
        SettingsError: it does not; nothing is put in its place.
    """
    if not multiplies_fp8(device):
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise SettingsError(
            f"dtype `fp8` wants an NVIDIA GPU of compute capability 8.9 or more, and `{what}` is none",
            hint="`--dtype bf16`, or `auto` for what the device multiplies",
        )


def choose_devices(wanted: str) -> tuple[torch.device, ...]:
    """Choose the devices of a name, or of several names with commas between them.

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
    """Return a device of a list, where `cuda` means the first one."""
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
    """Return the name that a GPU's maker gives it."""
    return torch.cuda.get_device_name(index)


def names(devices: tuple[torch.device, ...]) -> list[str]:
    """Name each device; add its place where one occurs several times."""
    count = len(devices)
    same = len(set(devices)) < count
    return [f"{device} ({i} of {count})" if same else str(device) for i, device in enumerate(devices, 1)]
