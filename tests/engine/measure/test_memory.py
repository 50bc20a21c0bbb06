"""The token budget from free memory is the largest power of two whose batch fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models import load
from tithe.engine.measure import memory
from tithe.engine.measure.memory import (
    LEAST,
    MOST,
    SEQUENCE,
    SHARE,
    USUAL,
    PeakMemory,
    compute_budget,
    extra_bytes,
    find_memory_budget,
    peak_memory,
    probe_batch,
)

Family = Callable[[str], Path]
GB = 10**9
CUDA = torch.device("cuda")


@pytest.mark.parametrize("fixed", [0, 400_000_000])
@pytest.mark.parametrize("per_token", [9_000, 170_000, 600_000])
@pytest.mark.parametrize("free", [GB, 6 * GB, 60 * GB])
def test_the_largest_that_fits(free: int, per_token: int, fixed: int) -> None:
    found = compute_budget(lambda tokens, whole: fixed + per_token * tokens, lambda: free)
    fits = [1 << n for n in range(40) if fixed + per_token * (1 << n) <= SHARE * free]
    assert found.budget == min(max([LEAST, *fits]), MOST)
    assert (found.fixed, found.per_token, found.free) == (fixed, per_token, free)


def test_what_is_free_counts_after_the_first_batch() -> None:
    """Kernels keep workspaces: they are no longer free, and not allocated again."""
    read: list[int] = []

    def taken(tokens: int, whole: bool) -> int:
        read.append(tokens)
        return tokens * 1000 + (5 * GB if len(read) == 1 else 0)

    found = compute_budget(taken, lambda: 10 * GB - (5 * GB if read else 0))
    assert (found.per_token, found.fixed, found.free) == (1000, 0, 5 * GB)


def test_a_device_that_is_full() -> None:
    def taken(tokens: int, whole: bool) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert compute_budget(taken, lambda: 0).as_dict() == {
        "budget": LEAST,
        "note": "a batch of 2,048 tokens does not fit",
    }
    assert compute_budget(lambda tokens, whole: tokens * 1000, lambda: 0).budget == LEAST
    assert compute_budget(lambda tokens, whole: 5, lambda: 100).budget == LEAST  # 70 tokens


def test_batches_that_seem_to_take_nothing() -> None:
    assert compute_budget(lambda tokens, whole: 0, lambda: GB).budget == MOST


def test_a_head_does_not_hide_what_the_blocks_take() -> None:
    """As in an 8B model: up to some thousand tokens the tile of logits needs more than the blocks."""

    def taken(tokens: int, whole: bool) -> int:
        blocks, head = 102_000 * tokens, 328_000_000 + 16_000 * tokens
        return max(blocks, head) if whole else blocks

    found = compute_budget(taken, lambda: GB)
    assert found.budget == 4096 and (found.fixed, found.per_token) == (0, 102_000)
    assert taken(4096, True) <= SHARE * GB < taken(8192, True)
    assert compute_budget(taken, lambda: GB // 2).budget == 1024  # the tile is what does not fit


@pytest.mark.parametrize(
    ("name", "longest"), [("llama", 128), ("llama-dynamic", 32), ("gpt2", 128), ("bloom", SEQUENCE)]
)
def test_probes_are_no_longer_than_a_model_can_read(family: Family, name: str, longest: int) -> None:
    passes = probe_batch(load(family(name)), 1024)
    assert {len(one.ids) for one in passes} == {longest} and len(passes) == 1024 // longest
    assert {one.start for one in passes} == {1}
    assert {one.start for one in probe_batch(load(family(name)), 1024, whole=False)} == {longest - 1}


def test_memory_above_the_model(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    loaded, read = load(family("llama")), list[Any]()

    @contextmanager
    def peak(device: torch.device) -> Iterator[PeakMemory]:
        found = PeakMemory()
        yield found
        found.bytes = 1750

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(memory, "peak_memory", peak)
    monkeypatch.setattr(
        type(loaded), "read_on", lambda self, forward_path, passes: read.append((forward_path, len(passes)))
    )
    assert extra_bytes(loaded, 1024, True, CUDA) == 750 and read == [("packed", 8)]


def test_a_spread_model_has_the_room_of_its_fullest_device(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    loaded = replace(load(family("llama")), device=CUDA)
    loaded.model.hf_device_map = {"model": 0, "lm_head": 1}
    monkeypatch.setattr(memory, "extra_bytes", lambda loaded, tokens, whole, place: 100_000 * tokens)
    monkeypatch.setattr(memory, "free_bytes", lambda place: GB if place.index else 6 * GB)
    assert find_memory_budget(loaded).free == GB


def test_free_is_what_the_driver_and_torch_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15)
    assert memory.free_bytes(torch.device("cuda")) == 75


def test_where_nothing_is_measured(family: Family) -> None:
    loaded = load(family("llama"))
    on_mps = find_memory_budget(replace(loaded, device=torch.device("mps")))
    assert on_mps.budget == USUAL and on_mps.note == "free memory is not told on `mps`"
    alone = find_memory_budget(replace(loaded, device=torch.device("cuda"), forward_path="single"))
    assert alone.budget == USUAL and alone.note == "one sequence at a time"


@pytest.mark.parametrize(("places", "total"), [((0,), 70), ((0, 1), 75)])
def test_the_peaks_of_all_devices_are_added_up(
    monkeypatch: pytest.MonkeyPatch, places: tuple[int, ...], total: int
) -> None:
    peaks, reset = {0: 70, 1: 5}, list[int]()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: reset.append(device.index))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[device.index])
    with peak_memory(*(torch.device("cuda", place) for place in places)) as peak:
        assert tuple(reset) == places and peak.bytes is None
    assert peak.bytes == total
