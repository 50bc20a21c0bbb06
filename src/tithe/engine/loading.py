"""Load a causal language model: read its weights, place it on its devices, and choose the fastest correct path."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch

from tithe.engine.devices import E4M3, choose_device, choose_dtype, dtype_name
from tithe.engine.forward.path_choice import FORWARD_PATHS, ForwardPath, choose_forward_path, find_kept_state
from tithe.engine.gguf_model import gguf_weights
from tithe.engine.host import on_device
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.cpu_kernels import RouteName, put_back, take_fastest_fp32
from tithe.engine.measure.shape import model_shape
from tithe.engine.model_files import FLOATS, Tensors, reading_folder
from tithe.engine.model_source import ModelSource, fingerprint
from tithe.errors import MissingExtraError, ModelError, SettingsError
from tithe.extras import install_hint

WEIGHTS_SHARE = 0.9  # of the free memory; activations take the rest
SURELY_FITS = 0.5  # of a GPU's memory: below it free memory is not queried, since the query itself takes memory
Limits: TypeAlias = Mapping[int | str, int]  # device as accelerate names it -> bytes
DeviceMap: TypeAlias = dict[str, int | str]  # module name -> device


def spread_over(
    source: ModelSource, dtype: str, devices: Sequence[torch.device], wanted: bool | None
) -> Sequence[torch.device]:
    """Return the devices to spread one model over; none if each device gets a copy of its own.

    Args:
        source: the model.
        dtype: of its weights.
        devices: devices that may be used.
        wanted: whether to spread it; None does so if its weights do not fit into the first device's free memory.

    Raises:
        SettingsError: spreading was requested with a single device, or with devices that are not GPUs.
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
    need = model_shape(source).memory("bf16" if dtype == "fp8" else dtype)  # fp8 models are loaded in bf16 first
    if not wanted and need <= SURELY_FITS * whole_memory(devices[0]):
        return ()
    free = [free_memory(device) for device in devices]
    if not wanted and need <= WEIGHTS_SHARE * free[0]:
        return ()
    if need > WEIGHTS_SHARE * sum(free):
        raise ModelError(
            f"the weights of `{source.name}` take {size_text(need)} in {dtype}, "
            f"and {', '.join(map(str, devices))} have {size_text(sum(free))} of free memory together",
            hint="a smaller model or dtype, or more GPUs",
        )
    return devices


def whole_memory(device: torch.device) -> int:
    """Return a GPU's total bytes; reading them creates no CUDA context, which would take some hundred MB."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def free_memory(device: torch.device) -> int:
    """Return a GPU's free bytes."""
    return int(torch.cuda.mem_get_info(device)[0])


def limits(devices: Sequence[torch.device]) -> Limits:
    """Return how many bytes of each device weights may take."""
    return {device.index or 0: int(WEIGHTS_SHARE * free_memory(device)) for device in devices}


def device_map(source: ModelSource, dtype: torch.dtype, available: Limits, trust_remote_code: bool) -> DeviceMap:
    """Assign the model's modules to devices, evenly and without splitting a block.

    Raises:
        MissingExtraError: accelerate is not installed.
        ModelError: the modules do not fit, or an adapter would have to be merged.
    """
    if find_spec("accelerate") is None:
        raise MissingExtraError(
            f"spreading model `{source.name}` over several devices needs the package `accelerate`",
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
    balanced = get_balanced_memory(empty, max_memory=dict(available), no_split_module_classes=together, dtype=dtype)
    kept = {place: balanced[place] for place in available}
    found: DeviceMap = dict(infer_auto_device_map(empty, kept, no_split_module_classes=together, dtype=dtype))
    outside = [part for part, place in found.items() if place not in available]
    if outside:
        raise ModelError(
            f"`{source.name}` does not fit: no device has room for {outside[0]}, ... ("
            + ", ".join(f"{size_text(size)} on {place}" for place, size in available.items())
            + ")",
            hint="a smaller model or dtype, or more GPUs",
        )
    return found


def without_weights(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Build the model without weights, to learn its modules and their sizes."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with reading_folder(f"cannot load model `{source.name}`", source.place):
        if source.gguf is None:
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        else:
            config = AutoConfig.for_model(**source.config)
        known: Any = AutoModelForCausalLM
        with init_empty_weights():
            model = known.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def holding_devices(model: LoadedModel) -> list[str]:
    """Return the names of the devices that hold a part of the model."""
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
    forward_paths: Sequence[ForwardPath] = FORWARD_PATHS,
    known: str | None = None,
    spread: Sequence[torch.device] = (),
) -> LoadedModel:
    """Load weights from safetensors or a GGUF file, put them on the device, and choose a forward path.

    Args:
        source: the model's files.
        device: `auto`, or a name.
        dtype: `auto`, `fp32`, `bf16`, `fp16`, or `fp8`. A model for fp8 is loaded and checked in bf16; the engine
            converts it once it has read some of the first passes in bf16, to measure the difference.
        trust_remote_code: whether to run code that comes with the model.
        fp32_route: the fp32 kernels that a resumed run began with; None takes the faster ones.
        loss: the likelihood kernel that a resumed run began with; None takes the fastest.
        forward_paths: allowed forward paths, fastest first.
        known: the fingerprint, if it was computed before.
        spread: GPUs that hold a part of the model each; if empty, all of it goes to `device`.

    Raises:
        ModelError: weights are missing or do not fit the config, or the model is not causal.
        SettingsError: the device or dtype is not available.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    in_fp8 = kind == E4M3
    kind = torch.bfloat16 if in_fp8 else kind
    try:
        where = device_map(source, kind, limits(spread), trust_remote_code) if spread else None
        if source.held is not None:  # it is where it is, in its own dtype
            model = source.held.ready()
        else:
            model = read_weights(source, kind, trust_remote_code, where)
            model = model.to(place) if where is None else model
        place = place if where is None else model.get_input_embeddings().weight.device
        loaded = LoadedModel(source, model, place, kind, known or fingerprint(source))
        loaded.single_above = rotary_limit(model.config.get_text_config())
        if kind == torch.float32 or place.type != "cpu":
            loaded.fp32 = take_fastest_fp32(place, fp32_route)
        else:
            put_back()  # quality heads compute in fp32: their bits must not depend on which model was loaded before
        with on_device(place):
            choose_forward_path(loaded, forward_paths, loss)
            loaded.keeps = find_kept_state(loaded)
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
    """Read the model in evaluation mode, onto the CPU or as a device map says; every tensor must come from the files.

    Raises:
        ModelError: the folder cannot be read, or the model and its files do not have the same tensors.
    """
    from transformers import AutoModelForCausalLM

    config = source.config
    demand_readable_quantisation(source)
    tensors = source.tensors
    # Up to transformers 5.17 the default attention silently ignores this cap.
    capped = any(part.get("attn_logit_softcapping") for part in (config, config.get("text_config") or {}))
    how: dict[str, Any] = {"attn_implementation": "eager" if capped else None}
    how |= {} if where is None else {"device_map": where}
    if source.gguf is not None:
        model, info = gguf_weights(source.gguf, source.name, dtype, **how)
    else:
        with reading_folder(f"cannot load model `{source.name}`", source.folder):
            read: Any = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **how,
            )
        model, info = read
    demand_same_tensors(source, model, info, tensors)
    if source.adapter is not None:
        model = merged(model, source)
    # A config may have been saved with other values: outputs must have names, and states are requested per call.
    model.config.return_dict, model.config.output_hidden_states = True, False
    return model.eval()


def demand_readable_quantisation(source: ModelSource) -> None:
    """Raise for a quantised checkpoint that transformers does not know, or whose scores would depend on the batch.

    Raises:
        ModelError: says why it cannot be read.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    said = {} if source.gguf is not None else source.config.get("quantization_config") or {}
    hint = "give the checkpoint in bf16, fp16 or fp32"
    if said.get("load_in_8bit"):
        raise ModelError(
            f"`{source.name}` is quantised to 8 bits by bitsandbytes, which scales activations over all tokens of a "
            "batch, so that a score would depend on its neighbours",
            hint=hint,
        )
    method = said.get("quant_method")
    bits = ("bitsandbytes_4bit",) if method == "bitsandbytes" else (str(method),)
    if said and method is not None and not any(name in AUTO_QUANTIZER_MAPPING for name in bits):
        raise ModelError(f"`{source.name}` is quantised by `{method}`, which transformers does not read", hint=hint)


def demand_same_tensors(source: ModelSource, model: Any, info: Mapping[str, Any], tensors: Tensors) -> None:
    """Raise if the files and the model do not have the same tensors.

    The comparison is transformers' own: what its rules ignore (a multi-token prediction head, another modality) is
    ignored here too.

    Raises:
        ModelError: one has a tensor that the other lacks, or the weights are integers.
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
            hint="`config.json` is from another checkpoint (fewer layers?), or the weights hold more than the model",
        )
    if source.gguf is not None or "quantization_config" in source.config:
        return
    # Integer weights without a quantisation config would be cast to floats, without their scales.
    weights = dict(model.named_parameters())
    coded = sorted(name for name, (kind, _) in tensors.items() if kind not in FLOATS and name in weights)
    if coded:
        raise ModelError(
            f"the weights of `{source.name}` are quantised (`{coded[0]}` is {tensors[coded[0]][0]}), "
            "and `config.json` has no `quantization_config` that says how",
            hint="give the checkpoint in bf16, fp16 or fp32",
        )


def is_old_buffer(name: str, tensors: Tensors) -> bool:
    """Tell whether a tensor is an attention mask or rotary table, which older transformers versions saved as well."""
    if name.endswith((".masked_bias", ".inv_freq")):
        return True
    # The files' names may lack the model's prefix, so either name may be the longer one.
    shapes = [shape for known, (_, shape) in tensors.items() if name.endswith(known) or known.endswith(name)]
    mask = any(len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] for shape in shapes)
    return mask and name.endswith((".attn.bias", ".attention.bias"))


def rotary_limit(config: Any) -> int | None:
    """Return the length above which a rotary scaling depends on a batch's longest sequence; None if it never does.

    Sequences above it are read in batches of one.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    if not any(part.get("rope_type", part.get("type")) in ("dynamic", "longrope") for part in kinds):
        return None
    # The lengths at which a scaling may switch; the smallest one is safe for all.
    limits = [part.get("original_max_position_embeddings") for part in kinds]
    limits += [getattr(config, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return min(int(limit) for limit in limits if limit)


def merged(model: Any, source: ModelSource) -> Any:
    """Merge the adapter into its base model's weights and return the model.

    Raises:
        ModelError: the adapter does not fit the model, or holds tensors that the model has no place for.
    """
    assert source.adapter is not None
    from peft import PeftModel

    folder, does_not_fit = str(source.adapter), f"does not fit its base model `{source.place}`"
    with reading_folder(f"the adapter `{source.name}` {does_not_fit}", source.adapter), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calls a deprecated transformers API
        warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")  # see `untie`
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay untrained
        mapping = getattr(model, "_checkpoint_conversion_mapping", {})
        # Loaded twice: only `load_adapter` reports which of the adapter's tensors found no place.
        both: Any = PeftModel.from_pretrained(model, folder, use_safetensors=True)
        surplus = both.load_adapter(folder, "default", key_mapping=mapping, use_safetensors=True).unexpected_keys
        if surplus:  # PEFT ignores them silently
            raise ModelError(
                f"the adapter `{source.name}` {does_not_fit}: {len(surplus)} of its tensors have no place there, "
                f"e.g. `{surplus[0]}`",
                hint="it was trained on another model, or its `adapter_config.json` is from another training run",
            )
        untie(both)
        return both.merge_and_unload(safe_merge=False)


def untie(both: Any) -> None:
    """Give the output head a matrix of its own if it is tied to the embedding and the adapter changes one of the two.

    Unmerged, an adapter of the embedding leaves the head alone; merged into the shared matrix it would change both.
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
    """Unwrap a base model's layer from PEFT's wrappers."""
    while (within := getattr(part, "base_layer", None) or getattr(part, "original_module", None)) is not None:
        part = within
    return part
