"""The usual layout of passes over cores is taken, unless another is clearly faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models import load, random_passes
from tithe.engine.engine import Engine
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.layout import (
    LARGE,
    ROUNDS,
    SMALL,
    USUAL_TOKENS,
    GatedMlp,
    Layout,
    choose_layout,
    gated_mlp,
    spread_otherwise,
    timed,
)

MEDIUM = GatedMlp(512, 2048, torch.float32)


def speeds(speed: Callable[[Layout, int], float]) -> Callable[..., Mapping[Layout, Sequence[float]]]:
    """A fake clock that returns given rates, by layout and round."""

    def rate(gated: GatedMlp, layouts: Sequence[Layout], rounds: int) -> Mapping[Layout, Sequence[float]]:
        assert gated.flops(USUAL_TOKENS) <= LARGE and rounds == ROUNDS
        return {one: [speed(one, number) for number in range(rounds)] for one in layouts}

    return rate


def never(*_: object) -> Mapping[Layout, Sequence[float]]:
    raise AssertionError("nothing was to be timed")


def test_the_usual_layout_stays_where_all_are_as_fast() -> None:
    choice = choose_layout(MEDIUM, 4, rate=speeds(lambda *_: 100.0))
    assert (choice.workers, choice.tokens, choice.why) == (4, 1024, "measured")
    assert set(choice.tokens_per_second) == {
        "4 x 1 threads, 1,024 tokens",
        "2 x 2 threads, 1,024 tokens",
        "1 x 4 threads, 1,024 tokens",
        "2 x 1 threads, 1,024 tokens",
        "4 x 1 threads, 512 tokens",
        "4 x 1 threads, 2,048 tokens",
    }


def test_nine_per_cent_are_not_enough_and_eleven_are() -> None:
    for gain, wanted in ((1.09, 4), (1.11, 2)):
        rate = speeds(lambda one, _, gain=gain: 100.0 * (gain if one[:2] == (2, 2) else 1.0))
        assert choose_layout(MEDIUM, 4, rate=rate).workers == wanted


def test_packs_are_tried_with_the_workers_that_were_taken() -> None:
    choice = choose_layout(MEDIUM, 4, rate=speeds(lambda one, _: one.threads * 100.0 + one.tokens))
    assert (choice.workers, choice.tokens) == (1, 2048)
    assert choice.why == f"{(400 + 2048) / (100 + 1024):.2f} times as fast as 4 x 1 threads, 1,024 tokens"


def test_a_burst_of_other_work_does_not_decide() -> None:
    # The usual layout is disturbed in most rounds; at its best it is as fast as the other.
    disturbed = speeds(lambda one, number: 50.0 if one.workers == 4 and number != 2 else 100.0)
    assert choose_layout(MEDIUM, 4, tokens=1024, rate=disturbed).workers == 4
    # One lucky round of the other one.
    lucky = speeds(lambda one, number: 200.0 if one.workers == 1 and number == 2 else 100.0)
    assert choose_layout(MEDIUM, 4, tokens=1024, rate=lucky).workers == 4


def test_what_is_asked_for_is_not_measured() -> None:
    assert choose_layout(MEDIUM, 8, workers=3, tokens=77, rate=never).tokens_per_second == {}
    seen: list[Layout] = []

    def rate(_: GatedMlp, layouts: Sequence[Layout], rounds: int) -> Mapping[Layout, Sequence[float]]:
        seen.extend(layouts)
        return {one: [1.0] * rounds for one in layouts}

    assert choose_layout(MEDIUM, 8, workers=3, rate=rate).workers == 3
    assert seen == [Layout(3, 2, 1024), Layout(3, 2, 512), Layout(3, 2, 2048)]
    seen.clear()
    assert choose_layout(MEDIUM, 2, tokens=800, rate=rate).tokens == 800
    assert seen == [Layout(2, 1, 800), Layout(1, 2, 800), Layout(1, 1, 800)]


@pytest.mark.parametrize("gated", [None, GatedMlp(64, 128, torch.float32)])
def test_small_and_unknown_models_are_not_measured(gated: GatedMlp | None) -> None:
    assert gated is None or gated.flops(USUAL_TOKENS) < SMALL
    choice = choose_layout(gated, 16, rate=never)
    assert (choice.workers, choice.tokens) == (8, 1024)


def test_one_core_has_nothing_to_share_out() -> None:
    assert choose_layout(MEDIUM, 1, tokens=512, rate=never).workers == 1


def test_no_layout_has_more_threads_than_cores() -> None:
    for cores in range(1, 40):
        for most in (1, 2, cores):
            choice = choose_layout(None, cores, most=most)
            usual = Layout(choice.workers, choice.threads, choice.tokens)
            others = spread_otherwise(usual, cores, most)
            assert all(one.workers * one.threads <= cores and one.threads <= max(most, 1) for one in others)
            assert usual not in others and len(set(others)) == len(others)
            assert cores == 1 or any(one.workers * one.threads <= cores // 2 for one in others)


def test_half_the_threads_are_taken_where_two_of_them_share_a_core() -> None:
    """As on a machine of 16 cores with 32 hyperthreads: more threads than cores only slow each other down."""
    rate = speeds(lambda one, _: 100.0 * min(one.workers * one.threads, 16) / max(1, one.workers * one.threads / 16))
    choice = choose_layout(MEDIUM, 32, tokens=1024, rate=rate)
    assert choice.workers * choice.threads == 16 and choice.why.startswith("2.00 times as fast")
    rate = speeds(lambda one, _: 100.0 * min(one.workers * one.threads, 2) / max(1, one.workers * one.threads / 2))
    choice = choose_layout(MEDIUM, 4, tokens=1024, rate=rate)
    assert (choice.workers, choice.threads) == (2, 1)


def test_threads_are_as_given() -> None:
    assert choose_layout(MEDIUM, 8, workers=3, threads=1, tokens=77, rate=never).threads == 1
    assert choose_layout(MEDIUM, 8, workers=3, tokens=77, rate=never).threads == 2
    assert choose_layout(MEDIUM, 8, workers=1, tokens=77, most=2, rate=never).threads == 2


def test_a_large_product_is_cut_in_its_inner_width_alone() -> None:
    cut = GatedMlp(8192, 28672, torch.bfloat16).slice
    assert (cut.width, cut.dtype) == (8192, torch.bfloat16)
    assert 0.9 * LARGE < cut.flops(USUAL_TOKENS) <= LARGE
    assert MEDIUM.slice == MEDIUM


def test_the_product_is_the_gated_one() -> None:
    generator = torch.Generator().manual_seed(0)
    states, gate, up, down = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (3, 7), (3, 7), (7, 3))
    )
    for row, found in zip(states, gated_mlp(states, gate, up, down), strict=True):
        inner = [float(a) / (1 + torch.exp(-a).item()) * float(b) for a, b in zip(row @ gate, row @ up, strict=True)]
        wanted = [sum(inner[i] * float(down[i, j]) for i in range(7)) for j in range(3)]
        assert found.tolist() == pytest.approx(wanted)


def test_real_clocks_tick_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    layouts = [Layout(2, 1, 16), Layout(1, 2, 32)]
    rates = timed(GatedMlp(32, 64, torch.float32), layouts, 2)
    assert torch.get_num_threads() == before
    assert all(len(rates[one]) == 2 and min(rates[one]) > 0 for one in layouts)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pass_has_as_many_threads_as_were_chosen(
    family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    loaded, passes, before = load(family("llama")), random_passes(), torch.get_num_threads()
    engine, seen = Engine(loaded, budget=64, workers=workers, threads=3, cores=12), list[int]()
    assert Engine(loaded, budget=64, workers=2, cores=2).threads == 1
    real = type(loaded).start_reading

    def counted(self: LoadedModel, *given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return real(self, *given)

    monkeypatch.setattr(type(loaded), "start_reading", counted)
    batches = engine.batches(passes)
    list(engine.run(passes, batches))
    assert seen == [3] * len(batches) and torch.get_num_threads() == before
