"""Load a causal language model, choose device and dtype, and find out which roads through it are true."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tithe.engine import attention, forward
from tithe.engine.forward import Head, TokenNlls
from tithe.engine.sources import ModelSource, fingerprint
from tithe.errors import ModelError, SettingsError
from tithe.records import Pass

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far a road may be from the model's own forward, in nats on single random tokens. A road that is wrong (another
# sequence seen, a soft-cap left out) is off by tenths; one that only sums in another order is off by rounding.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
ROADS = (("packed", attention.PACKED), ("padded", "sdpa"), ("padded", "eager"), ("single", None))


def choose_device(wanted: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; a device that is asked for and not there is an error."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise SettingsError(f"no device `{wanted}`", hint="auto, cuda, cuda:0, mps or cpu") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise SettingsError(f"device `{wanted}` is not available here", hint="`--device auto` takes what is there")
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` takes bf16 where the hardware multiplies in it, else fp16 on a GPU and fp32 on a CPU."""
    if wanted == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        if device.type == "mps":
            return torch.float16
        return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    if wanted not in DTYPES:
        raise SettingsError(f"no dtype `{wanted}`", hint=f"auto, {', '.join(DTYPES)}")
    return DTYPES[wanted]


def cpu_multiplies_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


@dataclass
class LoadedModel:
    """A model on its device, with the fastest road through it that was found true.

    Args:
        road: `packed`, `padded` or `single`.
        fallbacks: why faster roads were not taken, for the run record.
        alone_above: sequences longer than this must not share a batch.
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
    head: Head | None = None

    @property
    def vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def nll(self, passes: Sequence[Pass], prefix: int = 0) -> list[TokenNlls]:
        """-log p of each response token that has context: one float32 array per pass."""
        with torch.inference_mode():
            return road_through(self.road, self.model, self.head, self.device)(passes, prefix)


def load_model(
    source: ModelSource, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load safetensors weights whole, put them on the device, and probe the roads.

    Raises:
        ModelError: weights are missing or do not fit the config, or the model is not a causal one.
        SettingsError: the device or dtype is not there.
    """
    from transformers import AutoModelForCausalLM

    place, kind = choose_device(device), choose_dtype(dtype, choose_device(device))
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=kind,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the readers of configs and weights raise whatever they like
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise ModelError(
            f"cannot load model `{source.name}`: {(lines or [type(error).__name__])[0][:300]}",
            hint=f"looked in `{source.folder}`",
        ) from error
    model, info = read
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights of `{source.name}` lack {len(missing)} of the model's tensors, e.g. `{missing[0]}`",
            hint="a checkpoint of another architecture, or one without its language-model head",
        )
    loaded = LoadedModel(source, model.eval().to(place), place, kind, fingerprint(source))
    loaded.alone_above = rotary_switch(model.config)
    probe(loaded)
    return loaded


def rotary_switch(config: Any) -> int | None:
    """Length from which rotary scalings treat a whole batch by its longest sequence; such sequences run alone."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    if not any(part.get("rope_type", part.get("type")) in ("dynamic", "longrope") for part in kinds):
        return None
    limits = [part.get("original_max_position_embeddings") for part in kinds]
    limits += [getattr(config, "original_max_position_embeddings", None), config.max_position_embeddings]
    return int(next(limit for limit in limits if limit))


def road_through(
    road: str, model: Any, head: Head | None, device: torch.device
) -> Callable[[Sequence[Pass], int], list[TokenNlls]]:
    if road == "single" or head is None:
        return lambda passes, _: forward.single(model, passes, device)
    if road == "padded":
        return lambda passes, _: forward.padded(head, passes, device)
    return lambda passes, prefix: forward.packed(head, passes, device, prefix)


def probe(loaded: LoadedModel) -> None:
    """Take the first road whose numbers are those of the model's own forward, on a few random sequences.

    Raises:
        ModelError: the model looks ahead, so that no likelihood can be read from it.
    """
    passes = probe_passes(loaded.vocabulary)
    with torch.inference_mode():
        truth = np.concatenate(forward.single(loaded.model, passes, loaded.device))
        demand_causal(loaded, passes[0])
        loaded.head = make_head(loaded)
        for road, implementation in ROADS:
            reason = try_road(loaded, road, implementation, passes, truth)
            if reason is None:
                return
            loaded.fallbacks.append(f"{road}{f' ({implementation})' if implementation else ''}: {reason}")
    raise AssertionError("the model's own forward disagrees with itself")


def probe_passes(vocabulary: int) -> list[Pass]:
    """Sequences of several lengths, two of them with a common beginning, over ids that any tokenizer has."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, min(vocabulary, 1000), n).astype(np.int32) for n in (37, 5, 29, 2, 17)]
    ids[2][:9] = ids[0][:9]
    return [Pass(row, 1 if len(row) < 12 else 11) for row in ids]


def demand_causal(loaded: LoadedModel, pass_: Pass) -> None:
    changed = pass_.ids.copy()
    changed[-2] = (changed[-2] + 1) % min(loaded.vocabulary, 1000)
    before, after = (
        forward.single(loaded.model, [Pass(ids, pass_.start)], loaded.device)[0] for ids in (pass_.ids, changed)
    )
    if np.abs(before[:-2] - after[:-2]).max() > TOLERANCE[loaded.dtype]:
        raise ModelError(
            f"`{loaded.source.name}` sees later tokens: it is not a causal language model",
            hint="its config must say `is_decoder: true`, or it is an encoder",
        )


def make_head(loaded: LoadedModel) -> Head | None:
    try:
        return Head(loaded.model)
    except AttributeError as error:
        loaded.fallbacks.append(f"head apart: {error}")
        return None


def try_road(
    loaded: LoadedModel, road: str, implementation: str | None, passes: Sequence[Pass], truth: TokenNlls
) -> str | None:
    """Set the model up for a road; None if it is true, else the reason why it is not taken."""
    if road == "packed" and loaded.device.type != "cpu":
        return "padded rows are faster on a GPU"
    if road != "single" and loaded.head is None:
        return "the head cannot be run apart"
    original = loaded.model.config._attn_implementation
    try:
        if implementation is not None:
            attention.register()
            loaded.model.set_attn_implementation(implementation)
        groups = [(passes, 0), ([passes[0], passes[2]], 9)] if road == "packed" else [(passes, 0)]
        run = road_through(road, loaded.model, loaded.head, loaded.device)
        off = 0.0
        for group, prefix in groups:
            got = np.concatenate(run(group, prefix))
            wanted = truth if group is passes else np.concatenate([truth_of(passes, truth, i) for i in (0, 2)])
            off = max(off, float(np.abs(got - wanted).max()))
        reason = None if off <= TOLERANCE[loaded.dtype] else f"off by {off:.3g} nats"
        if reason is None and road == "packed":
            reason = window_unseen(loaded, passes)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an architecture that cannot do it says so in its own way
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
    if reason is not None:
        loaded.model.set_attn_implementation(original)
        return reason
    loaded.road, loaded.implementation = road, loaded.model.config._attn_implementation
    return None


def truth_of(passes: Sequence[Pass], truth: TokenNlls, i: int) -> TokenNlls:
    ends = np.cumsum([len(p.ids) - max(p.start, 1) for p in passes])
    return np.split(truth, ends[:-1])[i]


def window_unseen(loaded: LoadedModel, passes: Sequence[Pass]) -> str | None:
    """Refuse the pack where a config has local attention that the attention call never hears of."""
    config = loaded.model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return "chunked attention"
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    assert loaded.head is not None
    with attention.segments([len(passes[0].ids)]) as pack:
        loaded.head.backbone(input_ids=forward.to(passes[0].ids[None].astype(np.int64), loaded.device), use_cache=False)
        return None if pack.saw_window else f"a sliding window of {window} tokens that the attention is not told of"


def cpu_workers() -> int:
    """Cores this process may use: one forward pass of one thread on each beats one pass on all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
