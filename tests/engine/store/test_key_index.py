"""The key index finds what a dictionary would."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.engine.store.store import KeyIndex, as_keys

NEAR = st.integers(0, 60).map(lambda i: i.to_bytes(2, "big") + bytes(14))  # which end in NULs
KEYS = NEAR | st.binary(min_size=16, max_size=16)


@settings(deadline=None)
@given(st.lists(st.lists(KEYS, min_size=1, max_size=20), max_size=12), st.lists(KEYS, min_size=1, max_size=20))
def test_the_same_as_a_dictionary(parts, others):
    index, plain = KeyIndex(), dict[bytes, int]()
    place = 0
    for keys in parts:
        index.extend(as_keys(keys))
        for key in keys:
            plain.setdefault(key, place)  # the first stands
            place += 1
        assert len(index) == len(plain)
        asked = [*others, *plain]
        assert index.find(as_keys(asked)).tolist() == [plain.get(key, -1) for key in asked]


def test_many_parts_are_few_blocks_of_20_bytes_a_key():
    index = KeyIndex()
    for part in range(200):
        hashes = [hashlib.blake2b(f"{part},{i}".encode(), digest_size=16).digest() for i in range(100)]
        index.extend(as_keys(hashes))
    assert len(index) == 20_000 and len(index.blocks) <= 16
    assert sum(keys.nbytes + places.nbytes for keys, places in index.blocks) == 20 * 20_000
    assert np.all(np.diff(index.find(as_keys(hashes))) == 1)
