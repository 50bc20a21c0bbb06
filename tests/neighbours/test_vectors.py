"""Each text is encoded once, kept, and found again; a stopped run goes on; nothing stale is found."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.neighbours.small_encoders import ask, asks, make_sentence, random_texts
from tithe.errors import ModelError, OutputError, StoreError
from tithe.neighbours import vectors
from tithe.neighbours.encoder import TextEncoder, TextSettings, TextVectors
from tithe.neighbours.encoders import make_encoder
from tithe.neighbours.vectors import embed, unit

DIM = 5


def vector_of(text: str) -> np.ndarray:
    """Some vector that the text alone decides."""
    return np.random.default_rng(zlib.crc32(text.encode("utf-8", "surrogatepass"))).normal(size=DIM) * 7


@dataclass
class Fake(TextEncoder):
    """Two texts at a time; counts, and can be killed. Vectors of a batch hang together a little, as real ones do."""

    name: str = "fake"
    version: int = 1
    killed_after: int | None = None
    encoded: list[str] = field(default_factory=list)
    settings: TextSettings = field(default_factory=TextSettings)
    together: float = 0.0
    odd: str | None = None

    def identity(self) -> dict[str, Any]:
        return {"kind": "fake", "version": self.version}

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[TextVectors]:
        for start in range(0, len(texts), 2):
            part = [i for i in range(start, min(start + 2, len(texts))) if not have[i]]
            if not part:
                continue
            if self.killed_after is not None and len(self.encoded) >= self.killed_after:
                raise KeyboardInterrupt
            self.encoded += [texts[i] for i in part]
            rows = np.array([vector_of(texts[i]) for i in part])
            rows += self.together * rows.sum(axis=0)
            rows[[texts[i] == self.odd for i in part]] = np.nan
            yield TextVectors(part, rows.astype(np.float32), [len(texts[i]) // 10 for i in part])


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is a part of its own."""
    monkeypatch.setattr(vectors, "FLUSH_SECONDS", -1.0)


def twin(texts: Sequence[str]) -> np.ndarray:
    rows = [vector_of(text) if text.strip() else np.zeros(DIM) for text in texts]
    return np.array([row / (np.sqrt(sum(x * x for x in row.tolist())) or 1.0) for row in rows])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.sampled_from([*"abcdefgh", "", " ", "\n", "ä", "\ud800", "a" * 25]), min_size=1, max_size=30),
    before=st.lists(st.sampled_from([*"abcdxyz", "ä"]), max_size=10),
    window=st.sampled_from([1, 3, 4096]),
)
def test_any_texts_stored_or_not(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], before: list[str], window: int
) -> None:
    folder, fake = tmp_path_factory.mktemp("run"), Fake()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "WINDOW", window)
        if before:
            embed(asks(before), Fake(), folder)
        for place in (folder, None):
            found = embed(asks(texts), fake, place)
            assert found.vectors.dtype == np.float32
            distinct = {text for text in texts if text.strip()}
            if not distinct:
                assert found.vectors.shape[0] == len(texts) and not found.vectors.any()
                continue
            assert np.abs(found.vectors - twin(texts)).max() < 1e-6
            assert found.counts == {
                "texts": len(distinct),
                "encoded": len(distinct - set(before)) if place else len(distinct),
                "reused": len(distinct & set(before)) if place else 0,
                "cut": sum(len(text) >= 10 for text in texts if text.strip()),
                "empty": sum(not text.strip() for text in texts),
                "unknown": 0,
            }


def test_each_text_is_encoded_once_and_longest_first() -> None:
    fake = Fake()
    embed(asks(["aa", "b", "aa", "", "cccc", "b", "aa"]), fake)
    assert fake.encoded == ["cccc", "aa", "b"]


def test_what_is_stored_needs_no_encoder(tmp_path: Path) -> None:
    texts, never = random_texts(30), Fake(killed_after=0)
    first = embed(asks(texts), Fake(together=0.01), tmp_path)
    again = embed(asks(texts), never, tmp_path)
    assert (first.vectors == again.vectors).all() and never.encoded == []
    assert again.counts == first.counts | {"encoded": 0, "reused": 30}
    order = np.random.default_rng(0).permutation(30)
    assert (embed(asks([texts[i] for i in order]), never, tmp_path).vectors == first.vectors[order]).all()


@pytest.mark.parametrize("killed_after", [0, 2, 4, 12, 28])
@pytest.mark.parametrize("window", [5, 4096])
def test_a_killed_run_goes_on_with_the_batches_that_it_would_have_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, window: int
) -> None:
    monkeypatch.setattr(vectors, "WINDOW", window)
    texts = random_texts(30)
    straight = embed(asks(texts), Fake(together=0.1), tmp_path / "straight")
    first, second = Fake(together=0.1, killed_after=killed_after), Fake(together=0.1)
    with pytest.raises(KeyboardInterrupt):
        embed(asks(texts), first, tmp_path / "killed")
    assert len(first.encoded) >= killed_after
    found = embed(asks(texts), second, tmp_path / "killed")
    assert (found.vectors == straight.vectors).all()
    assert sorted(first.encoded + second.encoded) == sorted(texts)


def test_a_real_encoder_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, texts = make_sentence(tmp_path / "model"), random_texts(20)
    spec = f"{folder}(pooling=mean, batch_size=3)"
    straight = embed(asks(texts), make_encoder(spec, device="cpu"))
    encoder, batches = make_encoder(spec, device="cpu"), 0
    real = type(encoder).read  # type: ignore[attr-defined]

    def killed(self: Any, some: list[str]) -> Any:
        nonlocal batches
        batches += 1
        if batches == 4:
            raise KeyboardInterrupt
        return real(self, some)

    with monkeypatch.context() as patch:
        patch.setattr(type(encoder), "read", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(asks(texts), encoder, tmp_path)
    found = embed(asks(texts), make_encoder(spec, device="cpu"), tmp_path)
    assert (found.counts["reused"], found.counts["encoded"]) == (9, 11)
    assert (found.vectors == straight.vectors).all()


@pytest.mark.usefixtures("eager")
def test_many_parts_are_read_together_and_scrap_is_swept(tmp_path: Path) -> None:
    texts = random_texts(21)
    embed(asks(texts), Fake(), tmp_path)
    (folder,) = (tmp_path / "embeddings").iterdir()
    parts = sorted(folder.glob("part-*.parquet"))
    assert [part.name[:11] for part in parts] == [f"part-{i:06d}" for i in range(1, 12)]
    assert json.loads((folder / "encoder.json").read_text())["version"] == 1
    (folder / "part-000012.tmp").write_bytes(b"half")
    parts[3].unlink()
    shutil.copy(parts[0], folder / "part-000013.parquet")  # the same rows twice
    more = Fake()
    assert np.abs(embed(asks([*texts, "more"]), more, tmp_path).vectors - twin([*texts, "more"])).max() < 1e-6
    assert len(more.encoded) == 3
    assert not list(folder.glob("*.tmp")) and list(folder.glob("part-000014-????????.parquet"))


def test_another_text_or_encoder_finds_nothing(tmp_path: Path) -> None:
    embed(asks(["a", "b"]), Fake(), tmp_path)
    for texts, version, encoded in ((["a", "b "], 1, ["b "]), (["a", "b"], 2, ["a", "b"]), (["A"], 1, ["A"])):
        fake = Fake(version=version)
        embed(asks(texts), fake, tmp_path)
        assert sorted(fake.encoded) == encoded


def test_the_response_moves_nothing(tmp_path: Path) -> None:
    example = ask("a")
    first = embed([example], Fake(), tmp_path)
    other = replace(example, response=replace(example.response, content="something else"))
    assert (embed([other], Fake(killed_after=0), tmp_path).vectors == first.vectors).all()


@pytest.mark.usefixtures("eager")
def test_a_vector_that_is_not_finite_is_named_and_not_stored(tmp_path: Path) -> None:
    examples = asks(["aaaa", "bbb", "cc", "cc", "d"])
    with pytest.raises(
        ModelError, match=r"`fake` returns a vector that is not finite for example `id2` \(data.jsonl:3"
    ):
        embed(examples, Fake(odd="cc"), tmp_path)
    fake = Fake()
    embed(examples, fake, tmp_path)
    assert fake.encoded == ["cc", "d"]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    embed(asks("ab"), Fake(), tmp_path)
    (part,) = tmp_path.rglob("part-*.parquet")
    whole = part.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(0, len(whole), 9)]
    for damage in (b"words", whole[: len(whole) // 2], b"", *flipped):
        part.write_bytes(damage)
        with pytest.raises(StoreError, match=r"part-000001-[0-9a-f]{8}\.parquet` is damaged") as caught:
            embed(asks("ab"), Fake(), tmp_path)
        assert caught.value.hint == "delete that file; its vectors are then computed again"


@pytest.mark.parametrize(
    "columns",
    [
        {"id": ["a"]},
        {"key": pa.array([b"k" * 16], pa.binary(16)), "vector": pa.array([[1.0]], pa.list_(pa.float32())), "cut": [0]},
    ],
)
def test_a_part_that_is_not_ours_is_named(tmp_path: Path, columns: dict[str, Any]) -> None:
    embed(asks("ab"), Fake(), tmp_path)
    (part,) = tmp_path.rglob("part-*.parquet")
    pq.write_table(pa.table(columns), part.with_name("part-000002.parquet"))
    with pytest.raises(StoreError, match=r"part-000002\.parquet` does not fit this encoder: it has"):
        embed(asks("ab"), Fake(), tmp_path)


def test_a_part_of_another_width_is_named(tmp_path: Path) -> None:
    embed(asks("ab"), Fake(), tmp_path)
    (part,) = tmp_path.rglob("part-*.parquet")
    table = pa.Table.from_arrays(
        [
            pa.array([b"k" * 16], pa.binary(16)),
            pa.array([[1.0] * (DIM + 1)], pa.list_(pa.float32(), DIM + 1)),
            pa.array([0], pa.int32()),
        ],
        schema=vectors.schema(DIM + 1),
    )
    pq.write_table(table, part.with_name("part-000002.parquet"))
    with pytest.raises(StoreError, match=r"part-000002\.parquet` does not fit this encoder"):
        embed(asks("ab"), Fake(), tmp_path)


def test_a_part_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    embed(asks("ab"), Fake(), tmp_path)
    (part,) = tmp_path.rglob("part-*.parquet")
    part.rename(part.with_name("part-000001.parquet"))
    fake = Fake()
    embed(asks("abc"), fake, tmp_path)
    assert fake.encoded == ["c"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors, "write_table", full)
    with pytest.raises(OutputError, match=r"cannot write vectors to .* No space left on device"):
        embed(asks("ab"), Fake(), tmp_path)


def test_progress_counts_distinct_texts(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    embed(asks("ab"), Fake(), tmp_path)
    embed(asks([*"abcdea", ""]), Fake(), tmp_path, lambda done, total: told.append((done, total)))
    assert told[0] == (2, 5) and told[-1] == (5, 5) and [a for a, _ in told] == sorted(a for a, _ in told)


def test_no_example_at_all() -> None:
    assert len(embed([], Fake()).vectors) == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_unit_length_of_any_size(scale: float) -> None:
    rows = np.array([[3, 4], [0, 0], [-1, 0]], dtype=np.float32) * np.float32(scale)
    assert np.allclose(unit(rows), [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-6)


def test_nothing_is_kept_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vectors, "PART", 0)
    texts = random_texts(9)
    assert np.abs(embed(asks(texts), Fake()).vectors - twin(texts)).max() < 1e-6
    assert not list(tmp_path.iterdir())


def test_held_back_vectors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PART", 3 * 2 * DIM * 4)  # three batches
    embed(asks(random_texts(16)), Fake(), tmp_path)
    assert len(list(tmp_path.rglob("part-*.parquet"))) == 2
