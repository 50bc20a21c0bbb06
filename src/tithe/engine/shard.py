"""A model that is larger than one GPU, its layers spread over several: by accelerate, without offloading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch

from tithe.engine.measure.shape import model_shape
from tithe.engine.model import LoadedModel
from tithe.engine.model_files import reading_folder
from tithe.engine.sources import ModelSource
from tithe.errors import MissingExtraError, ModelError, SettingsError
from tithe.extras import install_hint

ROOM = 0.9  # of the free memory, for weights; the rest is for what passes hold
SURELY = 0.5  # of a GPU's memory: weights below that are not worth a look at what is free, which takes memory itself
Limits: TypeAlias = Mapping[int | str, int]  # device as accelerate names it -> bytes
DeviceMap: TypeAlias = dict[str, int | str]  # part of the model -> device


def spread_over(
    source: ModelSource, dtype: str, devices: Sequence[torch.device], wanted: bool | None
) -> Sequence[torch.device]:
    """Return the devices over which one model is spread; none where each device is to have its own model.

    Args:
        source: the model.
        dtype: of its weights.
        devices: those that may be used.
        wanted: whether to spread it; None does so where its weights do not fit into the first device's free memory.

    Raises:
        SettingsError: it is to be spread over one device, or over devices that are no GPUs.
        ModelError: the weights do not fit into the free memory of all devices together.
    """
    on_gpus = devices[0].type == "cuda"
    if wanted and (len(devices) < 2 or not on_gpus):
        raise SettingsError(
            f"`shard` spreads a model over several GPUs, not over {', '.join(map(str, devices))}",
            hint="`--device cuda:all`, or leave it out",
        )
    if wanted is False or not on_gpus or len(devices) < 2:
        return ()
    need = model_shape(source).memory("bf16" if dtype == "fp8" else dtype)  # what is read, before it is put into fp8
    if not wanted and need <= SURELY * whole_memory(devices[0]):
        return ()
    free = [free_memory(device) for device in devices]
    if not wanted and need <= ROOM * free[0]:
        return ()
    if need > ROOM * sum(free):
        raise ModelError(
            f"the weights of `{source.name}` take {size_text(need)} in {dtype}, "
            f"and {', '.join(map(str, devices))} have {size_text(sum(free))} of free memory together",
            hint="a smaller model or dtype, or more GPUs",
        )
    return devices


def whole_memory(device: torch.device) -> int:
    """Return the bytes of a GPU; known without starting work on it, which would take some hundred MB."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def free_memory(device: torch.device) -> int:
    """Return the bytes that nobody uses on a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])


def limits(devices: Sequence[torch.device]) -> Limits:
    """Return what weights may take of each device."""
    return {device.index or 0: int(ROOM * free_memory(device)) for device in devices}


def device_map(source: ModelSource, dtype: torch.dtype, room: Limits, trust_remote_code: bool) -> DeviceMap:
    """Decide which part of the model goes where, blocks whole and about as much to each device.

    Raises:
        MissingExtraError: accelerate is not installed.
        ModelError: the parts do not fit, or an adapter would have to be merged.
    """
    if find_spec("accelerate") is None:
        raise MissingExtraError(
            f"model `{source.name}` is to be spread over several devices, for which the package `accelerate` is needed",
            hint=install_hint("large"),
        )
    if source.adapter is not None:
        raise ModelError(
            f"the adapter `{source.name}` cannot be merged into a model that is spread over several devices",
            hint="merge it into its base model and save that, or take a GPU that holds the model",
        )
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    empty = without_weights(source, dtype, trust_remote_code)
    together = sorted(getattr(empty, "_no_split_modules", None) or ())
    balanced = get_balanced_memory(empty, max_memory=dict(room), no_split_module_classes=together, dtype=dtype)
    kept = {place: balanced[place] for place in room}
    found: DeviceMap = dict(infer_auto_device_map(empty, kept, no_split_module_classes=together, dtype=dtype))
    outside = [part for part, place in found.items() if place not in room]
    if outside:
        raise ModelError(
            f"of `{source.name}` the parts {outside[0]}, ... find no room: "
            + ", ".join(f"{size_text(size)} on {place}" for place, size in room.items()),
            hint="a smaller model or dtype, or more GPUs",
        )
    return found


def without_weights(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Make the model's parts and their sizes, without weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with reading_folder(f"cannot load model `{source.name}`", source.folder):
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        known: Any = AutoModelForCausalLM
        with init_empty_weights():
            model = known.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def placed(model: LoadedModel) -> list[str]:
    """Name the devices that hold a part of the model."""
    found = getattr(model.model, "hf_device_map", None) or {"": str(model.device)}
    names = [f"cuda:{place}" if isinstance(place, int) else str(place) for place in found.values()]
    return list(dict.fromkeys(names))


def size_text(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
