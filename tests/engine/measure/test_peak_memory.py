"""Peaks of memory: of one GPU, or of all that hold a part of the model."""

from __future__ import annotations

import pytest
import torch

from tithe.engine.measure.memory import peak_memory


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
