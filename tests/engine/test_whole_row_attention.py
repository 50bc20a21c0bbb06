"""The packed path with attention over a whole row, as on a GPU: the kernels are passed in, the device is a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models import load, plain, random_passes, run, twin, worst
from tithe.engine.engine import Engine
from tithe.engine.forward import path_choice
from tithe.engine.forward.attention import Varlen, probes, whole_rows
from tithe.engine.forward.attention_kernels import BY_SEGMENT, WHOLE_ROW, Call
from tithe.engine.forward.cuts import Cuts
from tithe.run.engines import engine_record, engine_sentence

Family = Callable[[str], Path]
Tensor = torch.Tensor


def dense(query: Tensor, key: Tensor, value: Tensor, cuts: Cuts, ask: Call) -> Tensor:
    """Attend with one product of all pairs and a mask of segments; shares only `Cuts` with the engine's kernels."""
    keys = torch.arange(cuts.tokens) if cuts.keys is None else cuts.keys
    key, value = (x[:, :, keys].repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    of_query = torch.repeat_interleave(torch.arange(len(cuts.own)), torch.tensor(cuts.own))
    of_key = torch.repeat_interleave(torch.arange(len(cuts.own)), torch.tensor(cuts.all))
    at_query, at_key = (torch.cat([torch.arange(n - m, n) for m, n in zip(own, cuts.all, strict=True)])
                        for own in (cuts.own, cuts.all))  # fmt: skip
    distance = at_query[:, None] - at_key[None]
    seen = (of_query[:, None] == of_key[None]) & (distance >= 0)
    if ask.window is not None:
        seen &= distance < ask.window
    scores = query.float() @ key.float().transpose(2, 3) * ask.scaling
    scores = scores if ask.softcap is None else ask.softcap * torch.tanh(scores / ask.softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return (weights @ value.float()).to(query.dtype).transpose(1, 2)


def whole_row(query: Tensor, key: Tensor, value: Tensor, cuts: Cuts, ask: Call) -> Tensor:
    """Attend wrongly: segments see those before them."""
    return dense(query, key, value, Cuts([cuts.tokens]), ask)


def only_half(query: Tensor, *rest: Any) -> Tensor:
    """Attend in 16 bits only, as flash-attn does."""
    if query.dtype == torch.float32:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type\nat line 1")
    return dense(query, *rest)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Use these as the device's kernels."""

    def put(**given: Any) -> None:
        monkeypatch.setattr(path_choice, "whole_rows", lambda device: Varlen(given))

    return put


def still_true(folder: Path, loaded: Any, tolerance: float = 1e-5) -> None:
    passes, model = random_passes(12), plain(folder)
    wanted = [twin(model, pass_) for pass_ in passes]
    for budget in (40, 10_000):
        assert worst(run(Engine(loaded, budget=budget, workers=1), passes), wanted) < tolerance


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "qwen3"])
def test_a_true_way_reads_whole_packs(kernels: Any, family: Family, name: str) -> None:
    kernels(dense=dense)
    loaded = load(family(name))
    assert loaded.forward_path == "packed", loaded.fallbacks
    assert loaded.attend is not None and set(loaded.attend.chosen.values()) == {"dense"}
    still_true(family(name), loaded)


def test_rows_are_cut_once_for_all_layers(kernels: Any, family: Family) -> None:
    rows: list[Cuts] = []
    kernels(dense=lambda query, key, value, cuts, ask: rows.append(cuts) or dense(query, key, value, cuts, ask))
    loaded = load(family("llama"))
    rows.clear()
    loaded.nll(random_passes(5)[:3])
    assert len(rows) == loaded.model.config.num_hidden_layers == 2 and rows[0] is rows[1]


def test_a_wrong_way_is_refused_for_the_next(kernels: Any, family: Family) -> None:
    kernels(leaking=whole_row, dense=dense)
    loaded = load(family("llama"))
    assert loaded.forward_path == "packed" and loaded.attend is not None
    (one,) = engine_record(Engine(loaded))["attention_by"]
    assert one["taken"] == "dense" and one["refused"]["leaking"].startswith("off by ")
    sentence = engine_sentence(Engine(loaded))
    assert "packed, no padding" in sentence and "attention by dense (not leaking: off by " in sentence
    still_true(family("llama"), loaded)


def test_without_a_true_way_rows_are_padded(kernels: Any, family: Family) -> None:
    kernels(leaking=whole_row, half=only_half)
    loaded = load(family("llama"))
    assert (loaded.forward_path, loaded.implementation, loaded.attend) == ("padded", "sdpa", None)
    (reason,) = loaded.fallbacks
    assert reason.startswith("packed (tithe_packed): no attention over packs is true here (leaking: off by ")
    assert "half: RuntimeError: FlashAttention only support fp16 and bf16 data type)" in reason
    assert reason.endswith("one call a segment is slower than padded rows")
    assert "attention_by" not in engine_record(Engine(loaded))
    still_true(family("llama"), loaded)


def test_a_way_may_be_for_some_dtypes_alone(kernels: Any, family: Family) -> None:
    kernels(half=only_half)
    assert load(family("llama")).forward_path == "padded"
    loaded = load(family("llama"), dtype="bf16")
    assert loaded.forward_path == "packed" and loaded.attend is not None, loaded.fallbacks
    assert list(loaded.attend.chosen.values()) == ["half"]


def test_a_way_that_is_wrong_on_the_models_rows_alone(kernels: Any, family: Family) -> None:
    """A kernel that passes its check but is wrong for the model: the model's own numbers show it."""

    def sly(query: Tensor, key: Tensor, value: Tensor, cuts: Cuts, ask: Call) -> Tensor:
        held_against = cuts.tokens == sum(probes(query.device)[0].lengths)
        return (dense if held_against else whole_row)(query, key, value, cuts, ask)

    kernels(sly=sly)
    loaded = load(family("llama"))
    assert loaded.forward_path == "padded" and loaded.fallbacks[0].startswith("packed (tithe_packed): off by ")
    still_true(family("llama"), loaded)


def test_windows_are_tried_before_a_row_is_long_enough(kernels: Any, tmp_path: Path, family: Family) -> None:
    """The probe's rows are shorter than real windows; a kernel without windows must be refused at once."""
    import transformers

    from tests.engine.models import GROUPED, save

    def no_windows(query: Tensor, key: Tensor, value: Tensor, cuts: Cuts, ask: Call) -> Tensor:
        if ask.window is not None:
            raise NotImplementedError("no sliding window")
        return dense(query, key, value, cuts, ask)

    folder = save(tmp_path / "wide", transformers.MistralConfig(**GROUPED, sliding_window=100))
    kernels(no_windows=no_windows)
    loaded = load(folder)
    assert loaded.forward_path == "padded" and "no sliding window" in loaded.fallbacks[0]


def test_sinks_are_not_known_to_kernels(kernels: Any, family: Family) -> None:
    kernels(dense=dense)
    loaded = load(family("gpt-oss"))
    assert loaded.forward_path != "packed" and "attention sinks are not known" in loaded.fallbacks[0]
    still_true(family("gpt-oss"), loaded)


def test_what_each_device_tries() -> None:
    assert whole_rows(torch.device("cpu")) is None
    (on_cuda, on_mps) = (whole_rows(torch.device(name)) for name in ("cuda", "mps"))
    assert on_cuda is not None and on_cuda.kernels is WHOLE_ROW and BY_SEGMENT not in WHOLE_ROW
    assert on_mps is not None and on_mps.kernels == {}


def test_hidden_states_come_on_the_same_forward_path(kernels: Any, family: Family) -> None:
    from tests.engine.readouts import test_pooled as states

    kernels(dense=dense)
    loaded, rows = load(family("llama")), states.random_rows()
    assert loaded.attend is not None
    wanted = [states.twin(plain(family("llama")), ids) for ids in rows]
    assert states.off(states.collect(Engine(loaded, budget=100), rows), wanted) < 1e-5
