"""Free memory goes back to the system, where the C library can do that."""

import pytest

from tithe.engine import host


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
    host.give_back()
    assert library.trimmed == times


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(host, "_glibc", lambda: None)
    host.give_back()


def test_the_real_library_is_read():
    library = host._glibc()
    if library is None:
        pytest.skip("another C library")
    figures = library.mallinfo2()
    assert 0 < figures.uordblks < 1 << 40
    host.give_back(above=0)
