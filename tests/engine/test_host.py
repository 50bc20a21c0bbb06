"""Cores are counted by affinity and CPU-time quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.engine import host


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a host of 64 cores, and the files of its control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(host, "MOUNTED", tmp_path / "cgroup")
    monkeypatch.setattr(host, "OWN", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_without_control_groups_those_that_it_may_run_on(machine: Path) -> None:
    assert host.cpu_cores() == 64
    write(machine / "own", "0::/")
    assert host.cpu_cores() == 64


@pytest.mark.parametrize(("limit", "wanted"), [
    ("max 100000", 64),
    ("400000 100000", 4),
    ("150000 100000", 2),
    ("5000 100000", 1),
    ("9000000 100000", 64),
    ("0 0", 64),
    ("what", 64),
])  # fmt: skip
def test_a_quota_of_version_2(machine: Path, limit: str, wanted: int) -> None:
    write(machine / "own", "0::/")
    write(machine / "cgroup/cpu.max", limit)
    assert host.cpu_cores() == wanted


def test_the_tightest_group_on_the_way_up_counts(machine: Path) -> None:
    write(machine / "own", "0::/pods/one/container")
    write(machine / "cgroup/pods/one/container/cpu.max", "max 100000")
    write(machine / "cgroup/pods/one/cpu.max", "300000 100000")
    write(machine / "cgroup/pods/cpu.max", "800000 100000")
    assert host.cpu_cores() == 3


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1(machine: Path, folder: str) -> None:
    """The path is the host's, which the container does not see: its own group is at the mount's top."""
    write(machine / "own", "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc")
    write(machine / "cgroup" / folder / "cpu.cfs_period_us", "100000")
    write(machine / "cgroup" / folder / "cpu.cfs_quota_us", "-1")
    assert host.cpu_cores() == 64
    write(machine / "cgroup" / folder / "cpu.cfs_quota_us", "250000")
    assert host.cpu_cores() == 3


@given(quota=st.text(max_size=12), period=st.text(max_size=12))
def test_no_text_of_a_limit_is_an_error(quota: str, period: str) -> None:
    found = host.ratio(quota, period)
    assert found is None or found >= 0


@pytest.mark.parametrize(("said", "wanted"), [("", 64), ("3", 3), ("2,1", 2), ("0", 64), ("many", 64), ("²", 64)])
def test_threads_are_limited_by_openmps_variable(
    machine: Path, monkeypatch: pytest.MonkeyPatch, said: str, wanted: int
) -> None:
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
