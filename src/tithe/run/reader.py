"""What reads the passes of a run: a model on one device, a process on each of several, or one spread over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tithe.engine.store.store import answers_name
from tithe.errors import SettingsError
from tithe.run.compiled import check_compile, may_be_large, wants_compiled
from tithe.run.describe import engine_sentence
from tithe.run.kept_choice import keep, keep_route, kept_number, kept_route, kept_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tithe.engine.engine import Engine
    from tithe.run.setup import Parts


def make_engine(parts: Parts) -> Engine:
    """The engine of a run; one that goes on takes what it began with, whatever a new measurement would say.

    Raises:
        TitheError: the model cannot be loaded, or not as it is asked for.
    """
    from tithe.engine.devices import WEIGHTS
    from tithe.engine.engine import NUMERICS, Engine
    from tithe.engine.loading import load_model
    from tithe.engine.measure.cpu_kernels import probe_half
    from tithe.engine.measure.loss_kernels import CANDIDATES, OWN
    from tithe.engine.measure.shape import model_shape
    from tithe.engine.shard import spread_over

    s, place, devices = parts.settings, parts.answers_place, parts.devices
    kind = devices[0].type
    check_compile(s, devices[0])
    own = f"{kind}_{answers_name(parts.fingerprint, parts.dtype, NUMERICS)}"  # stages of other models share the folder
    compiled = wants_compiled(
        s, devices[0], lambda: model_shape(parts.source).parameters, parts.dataset, place, f"compile_{own}"
    )
    loss = kept_word(place, f"loss_{own}", (OWN, *CANDIDATES))
    if loss is None and not (compiled or may_be_large(s, devices[0], parts.dataset)):
        loss = OWN
    how: dict[str, Any] = {
        "dtype": s.dtype if s.dtype != "auto" else parts.dtype,  # measured once, not by each process
        "trust_remote_code": s.trust_remote_code,
        "fp32_route": kept_route(place),
        "loss": loss,
        "known": parts.fingerprint,
    }
    budget = s.batch_tokens or kept_number(place, f"batch_tokens_{own}")
    spread = spread_over(parts.source, parts.dtype, devices, s.shard)
    if len(devices) > 1 and not spread and together(parts, devices):
        from tithe.engine.workers.several import SeveralEngine

        engine: Engine = SeveralEngine(parts.source, devices, how, budget=budget, workers=s.workers, compiled=compiled)
    else:
        model = load_model(parts.source, device=str(devices[0]), spread=spread, **how)
        workers = s.workers or kept_number(place, f"workers_{own}")
        threads = None if s.workers else kept_number(place, f"threads_{own}")
        engine = Engine(model, budget=budget, workers=workers, threads=threads, say=parts.talk.say, compiled=compiled)
        if engine.measured and s.workers is None:  # of several processes each has its own few
            keep(place, f"workers_{own}", engine.workers)
            if engine.threads is not None:
                keep(place, f"threads_{own}", engine.threads)
    if engine.measured and s.batch_tokens is None:
        keep(place, f"batch_tokens_{own}", engine.budget)
    if "loss" in engine.facts:
        keep(place, f"loss_{own}", engine.facts["loss"]["name"])
    keep_route(place, engine.model.fp32)
    parts.talk.say(engine_sentence(engine))
    if parts.elsewhere is not None:
        parts.talk.say(
            f"note: `{parts.elsewhere}` has answers of this model on this data: `--answers {parts.elsewhere}` uses them"
        )
    if kind == "cpu" and s.dtype in ("bf16", "fp16"):
        half = probe_half(WEIGHTS[s.dtype])
        if not half.pays:
            parts.talk.say(f"note: {half.words(s.dtype)}: `--dtype fp32` loses nothing by it")
    return engine


def together(parts: Parts, devices: Sequence[torch.device]) -> bool:
    """Whether several devices read the passes; said where they do not."""
    if not parts.several:
        parts.talk.say(f"note: of {len(devices)} devices one is used, {devices[0]}")
        return False
    if parts.settings.dtype != "fp8":
        return True
    if parts.settings.device != "auto":
        raise SettingsError(
            f"fp8 is read on one device, as its error is measured in one process, and `{parts.settings.device}` "
            f"names {len(devices)}",
            hint=f"`--device {devices[0]}`, or `--dtype bf16` on all of them",
        )
    parts.talk.say(f"note: fp8 is read on one device: of {len(devices)} it takes {devices[0]}")
    return False
