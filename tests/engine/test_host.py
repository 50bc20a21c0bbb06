"""Cores are counted by affinity and CPU-time quota."""

from __future__ import annotations

import os

import pytest

from tithe.engine import host


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_those_that_the_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert host.cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= host.cpu_cores() <= len(allowed)


def test_cores_are_limited_by_the_variable_of_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert host.cpu_cores() == 1


@pytest.mark.parametrize(("said", "wanted"), [("", 64), ("3", 3), ("2,1", 2), ("0", 64), ("many", 64), ("²", 64)])
def test_threads_are_limited_by_openmps_variable(monkeypatch: pytest.MonkeyPatch, said: str, wanted: int) -> None:
    monkeypatch.setattr(host, "cpu_cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert host.threads_allowed() == wanted


class Library:
    def __init__(self, free):
        self.free, self.trimmed = free, 0

    def mallinfo2(self):
        return host._Figures(fordblks=self.free)

    def malloc_trim(self, pad):
        self.trimmed += 1


@pytest.mark.parametrize(("free", "times"), [(host.FREE, 0), (host.FREE + 1, 1)])
def test_only_what_is_worth_it_is_given_back(monkeypatch, free, times):
    library = Library(free)
    monkeypatch.setattr(host, "_glibc", lambda: library)
    host.trim_heap()
    assert library.trimmed == times


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(host, "_glibc", lambda: None)
    host.trim_heap()


def test_the_real_library_is_read():
    library = host._glibc()
    if library is None:
        pytest.skip("another C library")
    figures = library.mallinfo2()
    assert 0 < figures.uordblks < 1 << 40
    host.trim_heap(above=0)
