"""Load a causal language model: read its weights, put it on its devices, and find the fastest true way through it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch

from tithe.engine.devices import E4M3, choose_device, choose_dtype, dtype_name
from tithe.engine.forward.probe import ROADS, Road, probe, what_is_kept
from tithe.engine.host import on
from tithe.engine.measure.cpu_kernels import RouteName, put_back, take_fastest_fp32
from tithe.engine.measure.shape import model_shape
from tithe.engine.model import LoadedModel
from tithe.engine.model_files import FLOATS, Tensors, reading_folder, tensors_in
from tithe.engine.sources import ModelSource, fingerprint
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


def load_model(
    source: ModelSource,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    fp32_route: RouteName | None = None,
    loss: str | None = None,
    roads: Sequence[Road] = ROADS,
    known: str | None = None,
    spread: Sequence[torch.device] = (),
) -> LoadedModel:
    """Load safetensors weights whole, put them on the device, and probe the forward paths.

    Args:
        source: the model's files.
        device: `auto`, or a name.
        dtype: `auto`, `fp32`, `bf16`, `fp16`, or `fp8`, with which the model is loaded and probed in bf16 and put into
            fp8 by the engine, once it has answered some of the first passes in both.
        trust_remote_code: run code that comes with the model.
        fp32_route: kernels with which a run began that is taken up again; None takes the faster ones.
        loss: the kernel of likelihoods with which it began; None takes the fastest.
        roads: forward paths that may be taken, the fastest first.
        known: the fingerprint, where it is known.
        spread: GPUs that hold a part of the model each; empty puts it whole on `device`.

    Raises:
        ModelError: weights are missing or do not fit the config, or the model is not a causal one.
        SettingsError: the device or dtype is not there.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    in_fp8 = kind == E4M3
    kind = torch.bfloat16 if in_fp8 else kind
    try:
        where = device_map(source, kind, limits(spread), trust_remote_code) if spread else None
        model = read_weights(source, kind, trust_remote_code, where)
        if where is None:
            model = model.to(place)
        place = place if where is None else model.get_input_embeddings().weight.device
        loaded = LoadedModel(source, model, place, kind, known or fingerprint(source))
        loaded.alone_above = rotary_switch(model.config.get_text_config())
        if kind == torch.float32 or place.type != "cpu":
            loaded.fp32 = take_fastest_fp32(place, fp32_route)
        else:
            put_back()  # what heads compute in fp32 has the same bits, whichever model this process had before
        with on(place):
            probe(loaded, roads, loss)
            loaded.keeps = what_is_kept(loaded)
        loaded.awaits_fp8 = in_fp8
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"model `{source.name}` in {dtype_name(kind)} does not fit into the memory of `{place}`",
            hint="a smaller dtype or model, or another device",
        ) from error
    return loaded


def read_weights(
    source: ModelSource, dtype: torch.dtype, trust_remote_code: bool, where: DeviceMap | None = None
) -> Any:
    """Read the model in evaluation mode, every tensor from the files, onto the CPU or where a map says.

    Raises:
        ModelError: the folder cannot be read, or the model and its files have not the same tensors.
    """
    from transformers import AutoModelForCausalLM

    config = source.config
    tensors = tensors_in(source.folder, source.name)
    # Up to transformers 5.17 the default attention leaves this cap out, silently.
    capped = any(part.get("attn_logit_softcapping") for part in (config, config.get("text_config") or {}))
    with reading_folder(f"cannot load model `{source.name}`", source.folder):
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager" if capped else None,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **({} if where is None else {"device_map": where}),
        )
    model, info = read
    demand_same_tensors(source, model, info, tensors)
    if source.adapter is not None:
        model = merged(model, source)
    # A config may have been saved with these; here outputs have names, and nothing but hidden states is kept.
    model.config.return_dict, model.config.output_hidden_states = True, False
    return model.eval()


def demand_same_tensors(source: ModelSource, model: Any, info: Mapping[str, Any], tensors: Tensors) -> None:
    """Compare what the files hold with what the model has, as transformers accounts for it.

    What its own rules leave out (a head for further tokens, another modality) is left out here.

    Raises:
        ModelError: one has a tensor that the other lacks, or weights are whole numbers.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights of `{source.name}` lack {len(missing)} of the model's tensors, e.g. `{missing[0]}`",
            hint="a checkpoint of another architecture, or one without its language-model head",
        )
    surplus = sorted(name for name in info["unexpected_keys"] if not is_old_buffer(name, tensors))
    if surplus:
        raise ModelError(
            f"the weights of `{source.name}` have {len(surplus)} tensors that the model has not, e.g. `{surplus[0]}`",
            hint="`config.json` is of another checkpoint (fewer layers?), or the weights hold more than the model",
        )
    if "quantization_config" in source.config:
        return
    weights = dict(model.named_parameters())
    coded = sorted(name for name, (kind, _) in tensors.items() if kind not in FLOATS and name in weights)
    if coded:
        raise ModelError(
            f"the weights of `{source.name}` are quantised (`{coded[0]}` is {tensors[coded[0]][0]}), "
            "and `config.json` has no `quantization_config` that says how",
            hint="give the checkpoint in bf16, fp16 or fp32",
        )


def is_old_buffer(name: str, tensors: Tensors) -> bool:
    """Tell whether it is a mask or a table of rotations, which earlier versions of transformers saved as well."""
    if name.endswith((".masked_bias", ".inv_freq")):
        return True
    # Files may name their tensors without the model's prefix.
    shapes = [shape for known, (_, shape) in tensors.items() if name.endswith(known) or known.endswith(name)]
    mask = any(len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] for shape in shapes)
    return mask and name.endswith((".attn.bias", ".attention.bias"))


def rotary_switch(config: Any) -> int | None:
    """Return the length from which a rotary scaling depends on a batch's longest sequence; those run alone."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    if not any(part.get("rope_type", part.get("type")) in ("dynamic", "longrope") for part in kinds):
        return None
    limits = [part.get("original_max_position_embeddings") for part in kinds]
    limits += [getattr(config, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return min(int(limit) for limit in limits if limit)


def merged(model: Any, source: ModelSource) -> Any:
    """Return the base model with the adapter's part added to its weights.

    Raises:
        ModelError: the adapter does not fit the model, or holds tensors for which the model has no place.
    """
    assert source.adapter is not None
    from peft import PeftModel

    folder, does_not_fit = str(source.adapter), f"does not fit its base model `{source.folder}`"
    with reading_folder(f"the adapter `{source.name}` {does_not_fit}", source.adapter), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers in an old way
        warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")  # see `untie`
        warnings.filterwarnings("error", message="Found missing adapter keys")  # those would stay as if untrained
        mapping = getattr(model, "_checkpoint_conversion_mapping", {})
        both: Any = PeftModel.from_pretrained(model, folder, use_safetensors=True)
        surplus = both.load_adapter(folder, "default", key_mapping=mapping, use_safetensors=True).unexpected_keys
        if surplus:  # PEFT leaves them out without a word
            raise ModelError(
                f"the adapter `{source.name}` {does_not_fit}: {len(surplus)} of its tensors have no place there, "
                f"e.g. `{surplus[0]}`",
                hint="it was trained on another model, or its `adapter_config.json` is of another training",
            )
        untie(both)
        return both.merge_and_unload(safe_merge=False)


def untie(both: Any) -> None:
    """Give the output head a matrix of its own, where it is the embedding's and the adapter changes one of the two.

    Beside the base model an adapter of the embedding leaves the head as it is; added to one matrix it changes both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper
    from torch.nn import Parameter

    base = both.get_base_model()
    table, head = (inner(part) for part in (base.get_input_embeddings(), base.get_output_embeddings()))
    changed = [inner(part) for part in both.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if head is None or head.weight is not table.weight or not any(part in (table, head) for part in changed):
        return
    head.weight = Parameter(table.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def inner(part: Any) -> Any:
    """Return the layer of the base model inside PEFT's wrappers."""
    while (within := getattr(part, "base_layer", None) or getattr(part, "original_module", None)) is not None:
        part = within
    return part
