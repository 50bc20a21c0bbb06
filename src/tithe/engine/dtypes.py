"""Devices and dtypes: what is there, and what is taken where nothing is asked for."""

from __future__ import annotations

import torch

from tithe.engine.measure.half_speed import probe_half
from tithe.engine.workers.current import on
from tithe.errors import SettingsError

E4M3 = torch.float8_e4m3fn
CAPABILITY = (8, 9)  # of the first CUDA devices with fp8 units
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {**DTYPES, "fp8": E4M3}  # fp8 holds weights; all else is bf16 then


def choose_device(wanted: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; a device that is asked for and not there is an error."""
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
    """`auto` takes bf16 where the hardware multiplies in it, else fp16 on a GPU and fp32 on a CPU; never fp8.

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
    """By AVX-512 or AMX; elsewhere, and where torch does not say, bf16 may be far slower than fp32."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test is not None and test() for test in tests)


def dtype_name(dtype: torch.dtype) -> str:
    """Return our name of a dtype: `fp32`, `bf16`, `fp16` or `fp8`."""
    return next(name for name, known in WEIGHTS.items() if known == dtype)


def multiplies_fp8(device: torch.device) -> bool:
    """Whether the device has units for e4m3: NVIDIA's from Ada and Hopper on."""
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
