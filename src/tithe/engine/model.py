"""Load a causal language model, choose device and dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tithe.engine.batches.batching import After
from tithe.engine.forward import forward
from tithe.engine.forward.forward import Coming, TokenNlls, Wanted
from tithe.engine.forward.keeping import what_is_kept
from tithe.engine.forward.output_head import Head
from tithe.engine.forward.probe import ROADS, Road, probe
from tithe.engine.forward.states import Reading
from tithe.engine.measure.fp8 import E4M3, demand_fp8
from tithe.engine.measure.fp32_route import Fp32Route, RouteName, take_fastest_fp32
from tithe.engine.measure.half_speed import probe_half
from tithe.engine.model_files import FLOATS, Tensors, reading_folder, tensors_in
from tithe.engine.shard import DeviceMap, device_map, limits
from tithe.engine.sources import ModelSource, fingerprint
from tithe.engine.workers.current import on
from tithe.errors import ModelError, SettingsError
from tithe.records import Pass

if TYPE_CHECKING:
    from tithe.engine.forward.layers import Layers
    from tithe.engine.forward.varlen import Varlen
    from tithe.engine.measure.fp8_error import Fp8
    from tithe.engine.measure.fused import Fused

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
    return next(name for name, known in WEIGHTS.items() if known == dtype)


@dataclass
class LoadedModel:
    """A model on its device, with the fastest road through it that was found true.

    Args:
        dtype: that it computes in; bf16 where its weights are or will be fp8.
        road: `packed`, `padded` or `single`.
        fallbacks: why faster roads were not taken, for the run record.
        alone_above: sequences longer than this must not share a batch.
        keeps: what it keeps of a pass that it has read; None where that is nothing.
        fp32: which kernels multiply, in fp32 on a CPU.
        attend: what attends over a whole pack in one call; None where that is one call a segment, and on other roads.
        fused: parts that were compiled, or why they were not; None where nobody tried.
        awaits_fp8: its weights are still bf16, and are put into fp8 when it is first asked to read.
        fp8: what is in fp8, and how far that is from bf16.
        untouched: rotary embeddings and their state before anything was read, where reading changes it.
    """

    source: ModelSource
    model: Any
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    road: str = "single"
    implementation: str | None = None
    fallbacks: list[str] = field(default_factory=list)
    alone_above: int | None = None
    keeps: str | None = None
    head: Head | None = None
    fp32: Fp32Route | None = None
    attend: Varlen | None = None
    fused: Fused | None = None
    awaits_fp8: bool = False
    fp8: Fp8 | None = None
    untouched: list[tuple[torch.nn.Module, dict[str, Any]]] = field(default_factory=list, repr=False)

    @property
    def vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def side_by_side(self) -> bool:
        """Whether several passes may be under way at once; what a model keeps would be another one's."""
        return self.alone_above is None and self.keeps is None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def nll(self, passes: Sequence[Pass], after: Sequence[After | None] = ()) -> list[TokenNlls]:
        """-log p of each response token that has context: one float32 array per pass."""
        return self.along(self.road, passes, after)

    def along(
        self, road: str, passes: Sequence[Pass], after: Sequence[After | None] = (), wanted: Wanted | None = None
    ) -> list[TokenNlls]:
        """The same on a road of one's choice, and hidden states to who wants them."""
        return self.begun(road, passes, after, wanted or Wanted.likelihoods(passes))()

    def begun(self, road: str, passes: Sequence[Pass], after: Sequence[After | None], wanted: Wanted) -> Coming:
        """The same, not yet waited for: a GPU is given its work and goes on alone; a CPU has done it by then."""
        long_one = self.alone_above is not None and len(passes) == 1 and len(passes[0].ids) > self.alone_above
        if long_one:
            return self.read_whole(road, passes[0], wanted)
        return self.read(road, passes, after, wanted)

    def read(self, road: str, passes: Sequence[Pass], after: Sequence[After | None], wanted: Wanted) -> Coming:
        if self.alone_above is not None:
            self.forget()
        with on(self.device), torch.inference_mode():
            if road == "single" or self.head is None:
                return forward.single(self.model, passes, self.device, wanted)
            if road == "padded":
                return forward.padded(self.head, passes, self.device, wanted)
            return forward.packed(self.head, passes, self.device, after, wanted, self.attend)

    def read_whole(self, road: str, pass_: Pass, wanted: Wanted) -> Coming:
        """A pass above `alone_above`, its last token read as well: the scaling looks at how much is read."""
        longer = Pass(np.append(pass_.ids, pass_.ids[-1:]), pass_.start)
        coming = self.read(road, [longer], (), wanted)
        return lambda: [nll[:-1] for nll in coming()]

    @cached_property
    def layers(self) -> Layers:
        """The way to its hidden states; to be asked for before several threads read."""
        from tithe.engine.forward.layers import Layers

        return Layers(self)

    @property
    def reading(self) -> Reading:
        """What readers of hidden states may know of it."""
        return Reading(self.layers.count, self.device, self.head if self.layers.head_true else None)

    def forget(self) -> None:
        """Put rotary embeddings back to what they were when loaded: some scalings change as they read."""
        if not self.untouched:
            parts = [part for part in self.model.modules() if hasattr(part, "max_seq_len_cached")]
            self.untouched = [(part, {**vars(part), "_buffers": dict(part._buffers)}) for part in parts]
        for part, state in self.untouched:
            vars(part).clear()
            vars(part).update({**state, "_buffers": dict(state["_buffers"])})


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
    """Load safetensors weights whole, put them on the device, and probe the roads.

    Args:
        source: the model's files.
        device: `auto`, or a name.
        dtype: `auto`, `fp32`, `bf16`, `fp16`, or `fp8`, with which the model is loaded and probed in bf16 and put into
            fp8 by the engine, once it has answered some of the first passes in both.
        trust_remote_code: run code that comes with the model.
        fp32_route: kernels with which a run began that is taken up again; None takes the faster ones.
        loss: the kernel of likelihoods with which it began; None takes the fastest.
        roads: those that may be taken, first the fastest.
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
    """The model in evaluation mode, every tensor of it from the files, on the CPU or where a map says.

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
        from tithe.engine.adapters import merged

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
    """Whether it is a mask or a table of rotations, which earlier versions of transformers saved as well."""
    if name.endswith((".masked_bias", ".inv_freq")):
        return True
    # Files may name their tensors without the model's prefix.
    shapes = [shape for known, (_, shape) in tensors.items() if name.endswith(known) or known.endswith(name)]
    mask = any(len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] for shape in shapes)
    return mask and name.endswith((".attn.bias", ".attention.bias"))


def rotary_switch(config: Any) -> int | None:
    """Length from which rotary scalings treat a whole batch by its longest sequence; such sequences run alone."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    if not any(part.get("rope_type", part.get("type")) in ("dynamic", "longrope") for part in kinds):
        return None
    limits = [part.get("original_max_position_embeddings") for part in kinds]
    limits += [getattr(config, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return min(int(limit) for limit in limits if limit)
