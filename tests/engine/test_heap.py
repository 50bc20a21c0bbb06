"""Free memory goes back to the system, where the C library can do that."""

import pytest

from tithe.engine import heap


class Library:
    def __init__(self, free):
        self.free, self.trimmed = free, 0

    def mallinfo2(self):
        return heap._Figures(fordblks=self.free)

    def malloc_trim(self, pad):
        self.trimmed += 1


@pytest.mark.parametrize(("free", "times"), [(heap.FREE, 0), (heap.FREE + 1, 1)])
def test_only_what_is_worth_it_is_given_back(monkeypatch, free, times):
    library = Library(free)
    monkeypatch.setattr(heap, "_glibc", lambda: library)
    heap.give_back()
    assert library.trimmed == times


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.give_back()


def test_the_real_library_is_read():
    library = heap._glibc()
    if library is None:
        pytest.skip("another C library")
    figures = library.mallinfo2()
    assert 0 < figures.uordblks < 1 << 40
    heap.give_back(above=0)
