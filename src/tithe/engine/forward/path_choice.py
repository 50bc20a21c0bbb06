"""Choose a model's forward path by trying them all, so that no list of architectures is needed.

Also find models that keep state between passes: passes in parallel would read each other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from tithe.engine.batches import Batch, SharedPrefix, make_batches
from tithe.engine.forward import attention
from tithe.engine.forward.attention import NoKernelError, whole_rows
from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.forward import TokenNlls
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.host import to_device
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.model_files import first_line
from tithe.errors import ModelError
from tithe.records import Pass

# How far a path may be from the model's own forward, in nats on single random tokens. A wrong path (another sequence
# seen, a soft cap left out) is off by tenths; one that only sums in another order is off by rounding.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
# How far other tokens in the batch may move a sequence, as a share of that: equal shapes are rounded equally.
LEAK = 0.1
ForwardPath: TypeAlias = tuple[str, str | None]  # its name, and transformers' name of the attention it uses
FORWARD_PATHS: tuple[ForwardPath, ...] = (
    ("packed", attention.PACKED),
    ("padded", "sdpa"),
    ("padded", "eager"),
    ("single", None),
)
COMMON = 9  # tokens that the probe's passes 0 and 2 share at the start
BUDGET = 1024
PLAIN = (bool, int, float, str, type(None))
TORCHS = ("_parameters", "_buffers", "_modules")  # attributes that torch gives every module
ModuleState: TypeAlias = dict[tuple[str, str], Any]  # (module, attribute) -> value


def choose_forward_path(
    loaded: LoadedModel, forward_paths: Sequence[ForwardPath] = FORWARD_PATHS, loss: str | None = None
) -> None:
    """Set the model to the first forward path that agrees with its own forward on a few random sequences.

    Args:
        loaded: the model; the outcome is written to it.
        forward_paths: those that may be taken.
        loss: the likelihood kernel that a resumed run began with; None for the fastest.

    Raises:
        ModelError: the model looks ahead or gives no finite number, so that it has no likelihoods; or none of the
            allowed paths, or not that kernel, is correct.
    """
    passes = probe_passes(loaded.vocabulary)
    truth = [loaded.read_on("single", [pass_])[0] for pass_ in passes]
    if not all(np.isfinite(nll).all() for nll in truth):
        raise ModelError(
            f"`{loaded.source.name}` gives no finite likelihood in {str(loaded.dtype).removeprefix('torch.')}",
            hint="another `--dtype` may; else its weights are damaged",
        )
    demand_causal(loaded, passes[0])
    loaded.head = make_head(loaded, loss)
    for forward_path, implementation in forward_paths:
        reason = try_path(loaded, forward_path, implementation, passes, truth)
        if reason is None:
            return
        loaded.fallbacks.append(f"{forward_path}{f' ({implementation})' if implementation else ''}: {reason}")
    if len(forward_paths) < len(FORWARD_PATHS):
        raise ModelError(
            f"`{loaded.source.name}` cannot be read on `{loaded.device}` as on other devices: {loaded.fallbacks[-1]}",
            hint="leave this device out",
        )
    raise ModelError(
        f"`{loaded.source.name}` gives other numbers each time it reads the same tokens",
        hint="something in it is random or keeps state: no likelihood can be read from it",
    )


def probe_passes(vocabulary: int) -> list[Pass]:
    """Make sequences of several lengths from ids that any tokenizer has; 2 begins like 0, and 5 continues 4."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, min(vocabulary, 1000), n).astype(np.int32) for n in (37, 5, 29, 2, 17, 30)]
    ids[2][:COMMON] = ids[0][:COMMON]
    ids[5][: len(ids[4])] = ids[4]
    return [Pass(row, 1 if len(row) < 12 else 11) for row in ids]


def demand_causal(loaded: LoadedModel, pass_: Pass) -> None:
    """Raise if changing the last token read moves any prediction before it."""
    changed = pass_.ids.copy()
    changed[-2] = (changed[-2] + 1) % min(loaded.vocabulary, 1000)
    before, after = (loaded.read_on("single", [Pass(ids, pass_.start)])[0] for ids in (pass_.ids, changed))
    if np.abs(before[:-2] - after[:-2]).max() > LEAK * TOLERANCE[loaded.dtype]:
        raise ModelError(
            f"`{loaded.source.name}` sees later tokens: it is not a causal language model",
            hint="its config must say `is_decoder: true`, or it is an encoder",
        )


def make_head(loaded: LoadedModel, loss: str | None) -> OutputHead | None:
    """Return the model's output head; None, with the reason in `fallbacks`, if the model cannot be split there."""
    try:
        return OutputHead(loaded.model, loss)
    except AttributeError as error:
        loaded.fallbacks.append(f"head apart: {error}")
        return None


def try_path(
    loaded: LoadedModel,
    forward_path: str,
    implementation: str | None,
    passes: Sequence[Pass],
    truth: Sequence[TokenNlls],
) -> str | None:
    """Set the model up for a path; return None if it is correct, else restore the model and return the reason."""
    if forward_path != "single" and loaded.head is None:
        return "the head cannot be run apart"
    original = loaded.model.config._attn_implementation
    loaded.attend = whole_rows(loaded.device) if forward_path == "packed" else None
    try:
        if implementation is not None:
            attention.register()
            loaded.model.set_attn_implementation(implementation)
        reason = why_wrong(loaded, forward_path, passes, truth)
        if reason is None and forward_path == "packed":
            reason = window_unseen(loaded, passes)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except NoKernelError as error:
        reason = f"{error}, and one call a segment is slower than padded rows"
    except Exception as error:  # each architecture fails in its own way
        reason = f"{type(error).__name__}: {first_line(error)}"
    if reason is not None:
        loaded.model.set_attn_implementation(original)
        loaded.attend = None
        return reason
    loaded.forward_path, loaded.implementation = forward_path, loaded.model.config._attn_implementation
    return None


def why_wrong(loaded: LoadedModel, forward_path: str, passes: Sequence[Pass], truth: Sequence[TokenNlls]) -> str | None:
    """Return why a path is wrong, or None: a batched pass must score as a single one, whatever else is in the batch."""
    tolerance = TOLERANCE[loaded.dtype]
    read = read_batched(loaded, forward_path, passes)
    off = max(float(np.abs(nll - truth[i]).max()) for i, nll in read)
    if not off <= tolerance:
        return f"off by {off:.3g} nats"
    other = passes[0].ids.copy()
    other[COMMON:] = other[COMMON:][::-1]
    # The first pass gets other tokens of the same length: all others must stay as they are.
    again = read_batched(loaded, forward_path, [Pass(other, passes[0].start), *passes[1:]])
    leak = max(float(np.abs(was - now).max()) for (i, was), (_, now) in zip(read, again, strict=True) if i != 0)
    return None if leak <= LEAK * tolerance else f"sequences see each other: {leak:.3g} nats"


def read_batched(loaded: LoadedModel, forward_path: str, passes: Sequence[Pass]) -> list[tuple[int, TokenNlls]]:
    """Read passes in batches, as the engine does; return each with its place in `passes`."""
    batches = make_batches(passes, budget=BUDGET, padded=forward_path == "padded", single_above=loaded.single_above)
    if forward_path == "packed" and (loaded.single_above is None or len(passes[0].ids) <= loaded.single_above):
        batches.append(Batch((0, 2, 4, 5), (None, SharedPrefix(0, COMMON), None, SharedPrefix(2, len(passes[4].ids)))))
    return [
        (i, nll)
        for batch in batches
        for i, nll in zip(
            batch.index, loaded.read_on(forward_path, [passes[i] for i in batch.index], batch.after), strict=True
        )
    ]


def window_unseen(loaded: LoadedModel, passes: Sequence[Pass]) -> str | None:
    """Return why a pack would be wrong if the config has local attention that the model does not pass on; else None."""
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
        loaded.head.backbone(input_ids=to_device(passes[0].ids[None].astype(np.int64), loaded.device), use_cache=False)
        return None if pack.saw_window else f"a sliding window of {window} tokens that the attention is not told of"


def find_kept_state(loaded: LoadedModel) -> str | None:
    """Return the module and attribute that a pass changes, such as a recurrent state; None if there is none.

    A value that is changed in place is not noticed.
    """
    before, passes = held(loaded.model), probe_passes(loaded.vocabulary)
    for some in (passes[:2], passes[3:4]):
        loaded.nll(some)
    for (module, name), value in held(loaded.model).items():
        if (module, name) not in before or changed(before[module, name], value):
            return f"`{name}` of `{module}`"
    return None


def held(model: torch.nn.Module) -> ModuleState:
    """Return all attributes of all modules except weights, submodules and hooks; buffers are included."""
    return {
        (module, name): value
        for module, part in model.named_modules()
        for name, value in {**vars(part), **part._buffers}.items()
        if name not in TORCHS and "_hooks" not in name
    }


def changed(before: Any, now: Any) -> bool:
    """Tell whether a value changed; objects other than numbers and strings are compared by identity."""
    if isinstance(before, PLAIN) and isinstance(now, PLAIN):
        return bool(before != now)
    return before is not now
