"""Find out which forward path through a model is true, by trying them: no list of architectures to keep.

Also find models that keep something of what they read: two passes side by side would read each other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from tithe.engine.batches import After, Batch, make_batches
from tithe.engine.forward import attention
from tithe.engine.forward.attention import NoWayError, whole_rows
from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.forward import TokenNlls
from tithe.engine.forward.output_head import Head
from tithe.engine.host import to
from tithe.engine.model import LoadedModel
from tithe.engine.sources import first_line
from tithe.errors import ModelError
from tithe.records import Pass

# How far a path may be from the model's own forward, in nats on single random tokens. A path that is wrong (another
# sequence seen, a soft-cap left out) is off by tenths; one that only sums in another order is off by rounding.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
# How far other tokens of the same batch may move a sequence, as a share of that: shapes are equal, so is the rounding.
LEAK = 0.1
Road: TypeAlias = tuple[str, str | None]  # and the attention that it takes
ROADS: tuple[Road, ...] = (("packed", attention.PACKED), ("padded", "sdpa"), ("padded", "eager"), ("single", None))
COMMON = 9  # tokens with which the probe's passes 0 and 2 both begin
BUDGET = 1024
PLAIN = (bool, int, float, str, type(None))
TORCHS = ("_parameters", "_buffers", "_modules")  # torch's own of every module
Held: TypeAlias = dict[tuple[str, str], Any]  # (module, attribute) -> value


def probe(loaded: LoadedModel, roads: Sequence[Road] = ROADS, loss: str | None = None) -> None:
    """Take the first path whose numbers are those of the model's own forward, on a few random sequences.

    Args:
        loaded: the model; what is found is written there.
        roads: those that may be taken.
        loss: the kernel of likelihoods with which a run began; None for the fastest.

    Raises:
        ModelError: the model looks ahead or gives no finite number, so that no likelihood can be read from it; or none
            of the roads that were given is true, or the kernel is not.
    """
    passes = probe_passes(loaded.vocabulary)
    truth = [loaded.along("single", [pass_])[0] for pass_ in passes]
    if not all(np.isfinite(nll).all() for nll in truth):
        raise ModelError(
            f"`{loaded.source.name}` gives no finite likelihood in {str(loaded.dtype).removeprefix('torch.')}",
            hint="another `--dtype` may; else its weights are damaged",
        )
    demand_causal(loaded, passes[0])
    loaded.head = make_head(loaded, loss)
    for road, implementation in roads:
        reason = try_road(loaded, road, implementation, passes, truth)
        if reason is None:
            return
        loaded.fallbacks.append(f"{road}{f' ({implementation})' if implementation else ''}: {reason}")
    if len(roads) < len(ROADS):
        raise ModelError(
            f"`{loaded.source.name}` cannot be read on `{loaded.device}` as on other devices: {loaded.fallbacks[-1]}",
            hint="leave this device out",
        )
    raise ModelError(
        f"`{loaded.source.name}` gives other numbers each time it reads the same tokens",
        hint="something in it is random or remembers: no likelihood can be read from it",
    )


def probe_passes(vocabulary: int) -> list[Pass]:
    """Make sequences of several lengths over ids that any tokenizer has; 2 begins like 0, the last continues 4."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, min(vocabulary, 1000), n).astype(np.int32) for n in (37, 5, 29, 2, 17, 30)]
    ids[2][:COMMON] = ids[0][:COMMON]
    ids[5][: len(ids[4])] = ids[4]
    return [Pass(row, 1 if len(row) < 12 else 11) for row in ids]


def demand_causal(loaded: LoadedModel, pass_: Pass) -> None:
    """Change the last token read: nothing before it may move."""
    changed = pass_.ids.copy()
    changed[-2] = (changed[-2] + 1) % min(loaded.vocabulary, 1000)
    before, after = (loaded.along("single", [Pass(ids, pass_.start)])[0] for ids in (pass_.ids, changed))
    if np.abs(before[:-2] - after[:-2]).max() > LEAK * TOLERANCE[loaded.dtype]:
        raise ModelError(
            f"`{loaded.source.name}` sees later tokens: it is not a causal language model",
            hint="its config must say `is_decoder: true`, or it is an encoder",
        )


def make_head(loaded: LoadedModel, loss: str | None) -> Head | None:
    try:
        return Head(loaded.model, loss)
    except AttributeError as error:
        loaded.fallbacks.append(f"head apart: {error}")
        return None


def try_road(
    loaded: LoadedModel, road: str, implementation: str | None, passes: Sequence[Pass], truth: Sequence[TokenNlls]
) -> str | None:
    """Set the model up for a path; return None if it is true, else the reason why it is not taken."""
    if road != "single" and loaded.head is None:
        return "the head cannot be run apart"
    original = loaded.model.config._attn_implementation
    loaded.attend = whole_rows(loaded.device) if road == "packed" else None
    try:
        if implementation is not None:
            attention.register()
            loaded.model.set_attn_implementation(implementation)
        reason = untrue(loaded, road, passes, truth)
        if reason is None and road == "packed":
            reason = window_unseen(loaded, passes)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except NoWayError as error:
        reason = f"{error}, and one call a segment is slower than padded rows"
    except Exception as error:  # an architecture that cannot do it says so in its own way
        reason = f"{type(error).__name__}: {first_line(error)}"
    if reason is not None:
        loaded.model.set_attn_implementation(original)
        loaded.attend = None
        return reason
    loaded.road, loaded.implementation = road, loaded.model.config._attn_implementation
    return None


def untrue(loaded: LoadedModel, road: str, passes: Sequence[Pass], truth: Sequence[TokenNlls]) -> str | None:
    """Say why a path is not true: a batched pass must score as it does alone, whatever else is in the batch."""
    tolerance = TOLERANCE[loaded.dtype]
    read = together(loaded, road, passes)
    off = max(float(np.abs(nll - truth[i]).max()) for i, nll in read)
    if not off <= tolerance:
        return f"off by {off:.3g} nats"
    other = passes[0].ids.copy()
    other[COMMON:] = other[COMMON:][::-1]
    again = together(loaded, road, [Pass(other, passes[0].start), *passes[1:]])
    leak = max(float(np.abs(was - now).max()) for (i, was), (_, now) in zip(read, again, strict=True) if i != 0)
    return None if leak <= LEAK * tolerance else f"sequences see each other: {leak:.3g} nats"


def together(loaded: LoadedModel, road: str, passes: Sequence[Pass]) -> list[tuple[int, TokenNlls]]:
    """Read the passes batched as the engine does it, with their places."""
    batches = make_batches(passes, budget=BUDGET, padded=road == "padded", alone_above=loaded.alone_above)
    if road == "packed" and (loaded.alone_above is None or len(passes[0].ids) <= loaded.alone_above):
        batches.append(Batch((0, 2, 4, 5), (None, After(0, COMMON), None, After(2, len(passes[4].ids)))))
    return [
        (i, nll)
        for batch in batches
        for i, nll in zip(batch.index, loaded.along(road, [passes[i] for i in batch.index], batch.after), strict=True)
    ]


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
    cuts = Cuts([len(passes[0].ids)], device=loaded.device)
    with torch.inference_mode(), attention.segments(cuts, loaded.attend) as pack:
        loaded.head.backbone(input_ids=to(passes[0].ids[None].astype(np.int64), loaded.device), use_cache=False)
        return None if pack.saw_window else f"a sliding window of {window} tokens that the attention is not told of"


def what_is_kept(loaded: LoadedModel) -> str | None:
    """Name the module and attribute that reading changes, such as a recurrent state; None where nothing is.

    A value that is changed in its place is not noticed.
    """
    before, passes = held(loaded.model), probe_passes(loaded.vocabulary)
    for some in (passes[:2], passes[3:4]):
        loaded.nll(some)
    for (module, name), value in held(loaded.model).items():
        if (module, name) not in before or changed(before[module, name], value):
            return f"`{name}` of `{module}`"
    return None


def held(model: torch.nn.Module) -> Held:
    """Return all that modules have besides weights, parts and hooks; buffers are included."""
    return {
        (module, name): value
        for module, part in model.named_modules()
        for name, value in {**vars(part), **part._buffers}.items()
        if name not in TORCHS and "_hooks" not in name
    }


def changed(before: Any, now: Any) -> bool:
    """Tell whether a value changed; of what is no number or word, whether it is another object."""
    if isinstance(before, PLAIN) and isinstance(now, PLAIN):
        return bool(before != now)
    return before is not now
