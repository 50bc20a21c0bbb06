"""Answers on disk come back as stored, whole or not at all, and never for another key."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.models import make_pass
from tithe.engine.readouts.base import READOUTS, NllReadout, View
from tithe.engine.store.store import Store, answers_name
from tithe.errors import OutputError, StoreError
from tithe.records import Nll

NLL, TOKENS = READOUTS["nll"], READOUTS["nll_tokens"]
NAME = answers_name("model", "fp32", 1)


def key(i: int) -> bytes:
    return hashlib.blake2b(i.to_bytes(8, "little"), digest_size=16).digest()


def row(*nll: float, start: int = 1) -> dict[str, Any]:
    values = np.array(nll, dtype=np.float32)
    return TOKENS.read(View(make_pass(range(start + max(len(values), 1)), start), values))


def same(a: Any, b: Any) -> bool:
    return (a.total, a.tokens) == (b.total, b.tokens) and (a.first == b.first or np.isnan([a.first, b.first]).all())


def name_of(number: int, path: Path) -> str:
    return f"part-{number:06d}-{zlib.crc32(path.parent.name.encode() + path.read_bytes()):08x}.parquet"


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def test_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path, TOKENS, NAME)
    store.put([(key(1), row(0.5, 1.25)), (key(2), row(3.0, start=0))])
    fresh = store.get([key(1), key(2), key(3)])
    store.flush()
    again = Store(tmp_path, TOKENS, NAME).get([key(2), key(3), key(1), key(1)])
    assert set(fresh) == set(again) == {key(1), key(2)}
    for one in (fresh[key(1)], again[key(1)]):
        assert isinstance(one, Nll) and one.per_token is not None
        assert (one.total, one.tokens, one.first) == (1.75, 2, 0.5)
        assert one.per_token.tolist() == [0.5, 1.25] and one.per_token.dtype == np.float32
    first = again[key(2)]
    assert isinstance(first, Nll) and np.isnan(first.first)


@settings(max_examples=25, deadline=None)
@given(
    answers=st.dictionaries(
        st.binary(min_size=16, max_size=16),
        st.tuples(st.lists(st.floats(0, 1e4, width=32), max_size=8), st.integers(0, 2)),
        max_size=12,
    ),
    cuts=st.integers(1, 4),
)
def test_any_answers_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, answers: dict[bytes, tuple[list[float], int]], cuts: int
) -> None:
    """Keys of any bytes (trailing NULs too), in several parts; a resumed run reads what an uninterrupted one has."""
    folder = tmp_path_factory.mktemp("run")
    store = Store(folder, TOKENS, NAME)
    rows = [(k, row(*nll, start=start)) for k, (nll, start) in answers.items()]
    for i in range(cuts):
        store.put(rows[i::cuts])
        store.flush()
    straight, resumed = store.get(list(answers)), Store(folder, TOKENS, NAME).get(list(answers))
    assert set(straight) == set(resumed) == set(answers)
    for k, (nll, _) in answers.items():
        a, b = straight[k], resumed[k]
        assert isinstance(a, Nll) and isinstance(b, Nll) and a.per_token is not None and b.per_token is not None
        assert same(a, b)
        assert a.per_token.tobytes() == b.per_token.tobytes() == np.array(nll, dtype=np.float32).tobytes()
        assert a.total == pytest.approx(float(np.sum(np.array(nll, np.float32), dtype=np.float64)))


def test_parts_are_appended_and_numbered(tmp_path: Path) -> None:
    for i in range(3):
        store = Store(tmp_path, NLL, NAME)
        assert len(store) == i
        store.put([(key(i), row(float(i)))])
        store.flush()
        store.flush()  # nothing new: no part
    assert [path.name for path in parts(tmp_path)] == [name_of(i, path) for i, path in enumerate(parts(tmp_path), 1)]
    assert len(parts(tmp_path)) == 3


def test_an_answer_given_twice_is_kept_once(tmp_path: Path) -> None:
    store = Store(tmp_path, NLL, NAME)
    store.put([(key(1), row(1.0)), (key(1), row(2.0))])
    store.flush()
    other = Store(tmp_path, NLL, NAME)
    other.put([(key(1), row(3.0))])
    other.flush()
    last = Store(tmp_path, NLL, NAME)
    assert len(last) == 1
    answer = last.get([key(1)])[key(1)]
    assert isinstance(answer, Nll) and answer.total == 1.0  # the first one stands


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, NLL, NAME)
    store.put([(key(1), row(1.0))])
    store.flush()
    scrap = store.folder / "part-000002.tmp"
    scrap.write_bytes(b"PAR1 half a part")
    again = Store(tmp_path, NLL, NAME)
    assert len(again) == 1 and not scrap.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "columns"])
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path, NLL, NAME)
    for i in range(2):
        store.put([(key(i), row(1.0))])
        store.flush()
    part = parts(tmp_path)[1]
    if damage == "columns":
        part.unlink()
        part = part.with_name("part-000002.parquet")
        pq.write_table(pa.table({"key": pa.array([key(1)], pa.binary(16)), "score": [1.0]}), part)
    else:
        part.write_bytes({"cut": part.read_bytes()[:-20], "empty": b"", "other": b"hello, I am text"}[damage])
    with pytest.raises(StoreError) as caught:
        Store(tmp_path, NLL, NAME)
    assert str(part) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.hint == "delete that file: its answers are computed again"
    part.unlink()
    assert len(Store(tmp_path, NLL, NAME)) == 1


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    store = Store(tmp_path, NLL, NAME)
    store.put([(key(1), row(1.0))])
    store.flush()
    (store.folder / "part-000001 (copy).parquet").write_bytes(b"whatever")
    (store.folder / "part-note.parquet").write_bytes(b"whatever")
    again = Store(tmp_path, NLL, NAME)
    again.put([(key(2), row(1.0))])
    again.flush()
    assert len(Store(tmp_path, NLL, NAME)) == 2


def test_a_run_folder_named_like_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "key=3" / "lr=1e-5"
    store = Store(folder, NLL, NAME)
    store.put([(key(1), row(1.0))])
    store.flush()
    assert set(Store(folder, NLL, NAME).get([key(1)])) == {key(1)}


class Newer(NllReadout):
    version = 99


def test_nobody_meets_anothers_answer(tmp_path: Path) -> None:
    store = Store(tmp_path, NLL, NAME)
    store.put([(key(1), row(1.0))])
    store.flush()
    others = [answers_name("other", "fp32", 1), answers_name("model", "bf16", 1), answers_name("model", "fp32", 2)]
    assert len({NAME, *others}) == 4
    for name in others:
        assert Store(tmp_path, NLL, name).get([key(1)]) == {}
    assert Store(tmp_path, TOKENS, NAME).get([key(1)]) == {}
    assert Store(tmp_path, Newer(), NAME).get([key(1)]) == {}
    assert Store(tmp_path / "elsewhere", NLL, NAME).get([key(1)]) == {}


@pytest.mark.slow
def test_a_part_of_anothers_folder_is_refused(tmp_path: Path) -> None:
    """Keys hash token ids only: in the same folder another model's answers would be found."""
    other = answers_name("other", "fp32", 1)
    for name, value in ((NAME, 1.0), (other, 2.0)):
        store = Store(tmp_path, NLL, name)
        store.put([(key(1), row(value))])
        store.flush()
    (theirs,) = (part for part in parts(tmp_path) if part.parent.name == other)
    theirs.rename(next(part for part in parts(tmp_path) if part.parent.name == NAME).with_name(theirs.name))
    with pytest.raises(StoreError, match="not those that were written here"):
        Store(tmp_path, NLL, NAME)


def test_a_hundred_thousand_keys_are_found_quickly(tmp_path: Path) -> None:
    store = Store(tmp_path, NLL, NAME)
    keys = [key(i) for i in range(100_000)]
    store.put((k, {"total": float(i), "tokens": 1, "first": 0.0}) for i, k in enumerate(keys))
    store.flush()
    began = time.process_time()
    again = Store(tmp_path, NLL, NAME)
    found = [again.get([*keys[i : i + 4096], key(2**40 - i)]) for i in range(0, len(keys), 4096)]
    seconds = time.process_time() - began
    assert sum(map(len, found)) == 100_000
    some = found[3][keys[3 * 4096 + 7]]
    assert isinstance(some, Nll) and some.total == 3 * 4096 + 7
    assert seconds < 5, seconds


def test_answers_reach_the_disk_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    clock = [now]
    monkeypatch.setattr("tithe.engine.store.store.time.monotonic", lambda: clock[0])
    store = Store(tmp_path, NLL, NAME)
    for i in range(13):
        store.put([(key(i), row(1.0))])
        clock[0] += 1.0
    assert len(parts(tmp_path)) == 2


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "write", "mkdir"])
def test_a_full_disk_is_said_and_earlier_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = Store(tmp_path, NLL, NAME)
    store.put([(key(1), row(1.0))])
    store.flush()
    store.put([(key(2), row(2.0))])
    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr(os, "fsync", full)
        elif where == "mkdir":
            patch.setattr(Path, "mkdir", full)
        else:
            patch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(OutputError) as caught:
            store.flush()
    assert str(store.folder) in str(caught.value) and str(caught.value).endswith("No space left on device")
    assert caught.value.hint is not None and "what was written before is kept" in caught.value.hint
    assert [path.name for path in store.folder.iterdir()] == [name_of(1, parts(tmp_path)[0])]
    assert set(Store(tmp_path, NLL, NAME).get([key(1), key(2)])) == {key(1)}
    store.flush()  # there is space again: nothing was lost
    assert set(Store(tmp_path, NLL, NAME).get([key(1), key(2)])) == {key(1), key(2)}


def rows_of(table: pa.Table) -> Iterable[dict[str, Any]]:
    return table.to_pylist()


def test_what_a_part_holds(tmp_path: Path) -> None:
    """The documented file format: a key of 16 bytes, float64 sums, and the tokens if requested."""
    store = Store(tmp_path, TOKENS, NAME)
    store.put([(key(1), row(0.5, 0.25))])
    store.flush()
    (only,) = rows_of(pq.read_table(parts(tmp_path)[0]))
    assert only == {"key": key(1), "total": 0.75, "tokens": 2, "first": 0.5, "per_token": [0.5, 0.25]}


@pytest.mark.slow
def test_answers_leave_memory_once_they_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty bytes per answer stay in memory, whether written or read; all answers come back equal."""
    monkeypatch.setattr("tithe.engine.store.store.MOST_UNWRITTEN", 100 * 500)
    store = Store(tmp_path, NLL, NAME)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(20_000):
        store.put([(key(i), {"total": i / 7, "tokens": i, "first": 0.5})])
    store.flush()
    grown = (tracemalloc.get_traced_memory()[0] - before) / 20_000
    tracemalloc.stop()
    assert store.unwritten == {} and len(parts(tmp_path)) > 50
    assert grown < 20 * 1.2 + 10, grown  # and 1,000 bytes for each part of a hundred
    asked = [key(i) for i in range(19_999, -1, -37)]
    straight = store.get(asked)
    theirs = parts(tmp_path)[3]
    pq.write_table(pq.read_table(theirs), theirs.with_name("part-000004.parquet"), compression="zstd")
    theirs.unlink()
    resumed = Store(tmp_path, NLL, NAME).get([*asked, key(2**40)])
    expected = {key(i): Nll(i / 7, i, 0.5) for i in range(19_999, -1, -37)}
    assert straight == resumed == expected


def test_parts_of_lists_are_held_for_a_while_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, TOKENS, NAME)
    for i in range(9):
        store.put([(key(i), row(*([float(i)] * (i + 1))))])
        store.flush()
    monkeypatch.setattr("tithe.engine.store.store.HELD_BYTES", 200)
    for order in (range(9), range(8, -1, -1)):
        for i in order:
            answer = store.get([key(i)])[key(i)]
            assert isinstance(answer, Nll) and answer.per_token is not None
            assert answer.per_token.tolist() == [float(i)] * (i + 1)
            held = [table.nbytes for table in store.parts._held.values()]
            assert len(held) == 1 or sum(held) <= 200


@pytest.mark.parametrize("readout", [NLL, TOKENS], ids=lambda one: one.name)
def test_a_flipped_bit_never_gives_another_answer(tmp_path: Path, readout: Any) -> None:
    """Any flipped bit of a part is an error that names it, and nothing of it is used."""
    store = Store(tmp_path, readout, NAME)
    store.put([(key(i), row(0.5 + i, 1.25)) for i in range(3)])
    store.flush()
    (part,) = parts(tmp_path)
    data = part.read_bytes()
    every = range(len(data) * 8)
    bits = every if readout is NLL else np.random.default_rng(0).choice(len(every), 1000, replace=False).tolist()
    for bit in bits:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        part.write_bytes(damaged)
        with pytest.raises(StoreError, match="is damaged: its bytes are not those that were written"):
            Store(tmp_path, readout, NAME)
    part.write_bytes(data)
    assert len(Store(tmp_path, readout, NAME).get([key(0), key(2)])) == 2


@pytest.mark.parametrize("readout", [NLL, TOKENS], ids=lambda one: one.name)
def test_parts_without_a_checksum_in_their_name_are_read(tmp_path: Path, readout: Any) -> None:
    """Parts of earlier versions are read; new ones are added after them."""
    store = Store(tmp_path, readout, NAME)
    store.put([(key(1), row(0.5))])
    store.flush()
    (part,) = parts(tmp_path)
    part.rename(part.with_name("part-000001.parquet"))
    old = Store(tmp_path, readout, NAME)
    old.put([(key(2), row(0.75))])
    old.flush()
    assert [path.name for path in parts(tmp_path)] == ["part-000001.parquet", name_of(2, parts(tmp_path)[1])]
    assert set(Store(tmp_path, readout, NAME).get([key(1), key(2)])) == {key(1), key(2)}


def test_an_old_part_with_missing_values_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, NLL, NAME)
    store.folder.mkdir(parents=True)
    rows = {"key": pa.array([None], pa.binary(16)), "total": [1.0], "tokens": pa.array([1], pa.int32())}
    table = pa.table({**rows, "first": pa.array([0.5], pa.float32())})
    pq.write_table(table, store.folder / "part-000001.parquet")
    with pytest.raises(StoreError, match=r"part-000001\.parquet` is damaged or not ours: it has rows without values"):
        Store(tmp_path, NLL, NAME)
