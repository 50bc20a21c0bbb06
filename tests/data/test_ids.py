"""`HashSet` behaves like a set of numbers."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.data.ids import HashSet, Occurrences, first_64_bits

TOP = 2**64 - 1
NUMBERS = st.one_of(st.integers(0, TOP), st.integers(0, 3), st.integers(TOP - 3, TOP))


@settings(deadline=None)
@given(st.lists(NUMBERS, max_size=300))
def test_the_same_as_a_set(numbers):
    """Test numbers that all want the same few slots, the first or the last."""
    ours, plain = HashSet(), set()
    for number in numbers:
        assert (number in ours) == (number in plain)
        assert ours.add(number) == (number not in plain)
        plain.add(number)
        assert number in ours and len(ours) == len(plain)
    assert all(number in ours for number in plain)


def test_many():
    """Test thirteen doublings, with hashes and with numbers that fill the end of the table."""
    draw = random.Random(0)
    numbers = [draw.getrandbits(64) for _ in range(200_000)] + [TOP - i for i in range(2_000)] + [0]
    ours = HashSet()
    assert all(ours.add(number) for number in numbers)
    assert not any(ours.add(number) for number in numbers)
    assert len(ours) == len(numbers)
    others = {draw.getrandbits(64) for _ in range(10_000)} - set(numbers)
    assert not any(number in ours for number in others)
    assert ours.nbytes <= 24 * len(numbers)


def test_occurrences_are_counted_like_a_dictionary_would():
    draw, ours, plain = random.Random(1), Occurrences(), dict[int, int]()
    for content in (draw.randrange(50) << 58 for _ in range(1_000)):
        before = plain.get(content, 0)
        plain[content] = before + 1
        assert ours.name(content) == f"{content:016x}" + (f"-{before}" if before else "")


def test_first_half():
    assert first_64_bits(bytes(range(1, 17))) == int.from_bytes(bytes(range(1, 9)), "little")
