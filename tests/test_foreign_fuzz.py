"""Every reader of a damaged file returns data or raises one `TitheError` that names the place, and never hangs.

`TITHE_FUZZ_TIMES=10` reads ten times as many, from other seeds.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tithe.contamination.items import read_items
from tithe.data.dataset import open_dataset
from tithe.engine.heads.files import parse_card, read_tensors
from tithe.errors import StoreError, TitheError
from tithe.foreign import read_json
from tithe.lab.evaluate.measured import from_files
from tithe.lab.evaluate.task_files import mmlu_tables
from tithe.lab.experiment.cells import read_done, read_spec
from tithe.lab.experiment.conduct import earlier_looks
from tithe.lab.experiment.settings import read_experiment
from tithe.lab.tune.files import last_checkpoint
from tithe.lab.tune.settings import read_recipe
from tithe.neighbours.vector_files import read_npy, read_parquet
from tithe.run.source import read_kept
from tithe.settings import SelectSettings, settings_from

TIMES = int(os.environ.get("TITHE_FUZZ_TIMES", "1"))
SECONDS = 20  # one file at most, on a busy machine
RECORDS = [{"instruction": f"q{i}", "input": "", "output": f'a "{i}", é', "k": i / 2} for i in range(4)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
CELLS = b'instruction,output\nq,a\n"q, 2","a\n2"\n'
TABLE = b'"What, exactly?",a,b,c,d,A\nWhy,a,b,c,d,D\n'
SETTINGS = b"""# a selection
dataset: data.jsonl
scorer: [ifd, 'length']
limit: 20
exclude_similarity: 0.5
strict: yes
drop_contaminated: &none []
<<: &base {keep: 5%}
drop: |
  ifd > 1
"""
EXPERIMENT = b"""dataset: d.jsonl
model: m
arms: {ifd: , random: , x: {file: k.jsonl, allow_fewer: true}}
seeds: [0, 1, 2]
budgets: 5%
training: {num_train_epochs: 1}
"""
RECIPE = b"extends: alpaca\nlearning_rate: 2e-5\nuse_peft: true\nlora_target_modules: [q_proj]\nmax_steps: 5\n"
SPEC = {"arm": "a", "budget": "5%", "seed": 1, "tune": {"x": 1}, "evaluation": {"y": [1]}, "keep_models": True}
METRIC = {"metric": "m", "kind": "number", "unit": "u", "higher_is_better": True, "about": {}}
DONE = {
    "training": {"recipe_digest": "d", "steps": 3},
    "evaluation": [METRIC],
    "items": "i",
    "seconds": 1.5,
    "spec_digest": "s",
}
STEP = b'{"step": 3, "seconds": 1.5}'
CARD = {
    "kind": "probe",
    "layers": [0, 2],
    "count": 3,
    "width": 4,
    "model": {"name": "m", "fingerprint": "f", "dtype": "fp32"},
    "rendering": {},
    "training": {},
    "weights": "0" * 64,
    "format": 1,
    "tithe": "1",
}
TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b"'", b",", b":", b"\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\", b"\\ud800"),
    *(b"- ", b"&a ", b"*a", b"<<: ", b"!!int ", b"!!binary ", b"!!python/name:os ", b"---\n", b"? ", b"|", b">", b"#"),
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 500, b"0.1", b"[" * 300, b'{"a":' * 300, b"1:30"),
    *(b"PAR1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"(" * 200, b"\xff" * 4, b"\0" * 8, b"2001-99-99"),
]  # fmt: skip


def bytes_of(write: Callable[[Any], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    def write(stream: Any) -> None:
        with zipfile.ZipFile(stream, "w", method) as packed:
            for name, raw in files.items():
                packed.writestr(name, raw)

    return bytes_of(write)


def parquet(columns: dict[str, Any], **how: Any) -> bytes:
    return bytes_of(lambda stream: pq.write_table(pa.table(columns), stream, **how))


def safetensors() -> bytes:
    from safetensors.numpy import save

    return bytes(save({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}))


def data(path: Path) -> None:
    dataset = open_dataset(path)
    rows = [number for number, _ in dataset.rows()]
    assert sorted({item.row for item in dataset}) == rows  # each is an example or a bad row
    if path.suffix == ".jsonl" and path.read_bytes().lstrip()[:1] not in b"[":
        there = sum(bool(line.strip()) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        assert len(rows) == there or dataset.origin.container != "jsonl"  # type: ignore[union-attr]


def measured(path: Path) -> None:
    from_files(path, [METRIC])


def card(path: Path) -> None:
    parse_card(path.read_bytes(), path)


@dataclass(frozen=True)
class Reader:
    """How one kind of file is read.

    Args:
        name: of the file.
        good: a whole one.
        read: called with its path.
        times: how many damaged ones; fewer where one takes longer.
    """

    name: str
    good: bytes
    read: Callable[[Path], object]
    times: int


VALUES = {
    "metric": ["m"] * 3,
    "item": list("abc"),
    "group": [None] * 3,
    "value": [1.0, 2.0, 3.0],
    "problem": [None] * 3,
}
READERS = (
    Reader("settings.yaml", SETTINGS, lambda path: settings_from(SelectSettings, {}, path), 2_000),
    Reader("experiment.yaml", EXPERIMENT, lambda path: read_experiment(path, {}), 2_000),
    Reader("recipe.yaml", RECIPE, lambda path: read_recipe(str(path)), 2_000),
    Reader("data.jsonl", LINES, data, 1_500),
    Reader("data.json", json.dumps({"v": 1, "data": RECORDS}).encode(), data, 3_000),
    Reader("data.csv", CELLS, data, 2_000),
    Reader("data.parquet", parquet({"instruction": ["q"] * 3, "output": ["a", "b", "c"]}), data, 4_000),
    Reader("data.jsonl.gz", gzip.compress(LINES), data, 6_000),
    Reader("data.jsonl.zst", zstandard.ZstdCompressor(write_checksum=True).compress(LINES), data, 6_000),
    Reader("items.csv", CELLS, lambda path: list(read_items(path)), 6_000),
    Reader("items.zip", archive({"a.jsonl": LINES, "b.csv": TABLE}), lambda path: list(read_items(path)), 6_000),
    Reader("data.zip", archive({"s_test.csv": TABLE, "s_dev.csv": TABLE}), lambda path: mmlu_tables(path, "s"), 6_000),
    Reader("vectors.npy", bytes_of(lambda stream: np.save(stream, np.eye(3, dtype=np.float32))), read_npy, 6_000),
    Reader("vectors.parquet", parquet({"id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]]}), read_parquet, 4_000),
    Reader("items.parquet", parquet(VALUES), measured, 4_000),
    Reader("kept.parquet", parquet({"a": [1, 2], "b": ["x", "y"]}), lambda path: read_kept(str(path)), 4_000),
    Reader("cell-settings.json", json.dumps(SPEC).encode(), lambda path: read_spec(path.parent), 6_000),
    Reader("cell.json", json.dumps(DONE).encode(), lambda path: read_done(path.parent), 6_000),
    Reader("design.json", json.dumps(SPEC).encode(), lambda path: read_json(path, StoreError, "hint"), 6_000),
    Reader("experiment.json", b'{"settings": {"seeds": [0, 1]}}', lambda path: earlier_looks(path, 3), 6_000),
    Reader(
        "checkpoint-1/complete.json", b'{"step": 3, "seconds": 1.5}', lambda p: last_checkpoint(p.parents[1]), 6_000
    ),
    Reader("head.json", json.dumps(CARD).encode(), card, 6_000),
    Reader("head.safetensors", safetensors(), read_tensors, 4_000),
)


def damaged(good: bytes, lot: random.Random) -> bytes:
    """The file with a few faults of kinds that disks, editors and enemies make."""
    raw = bytearray(good)
    for _ in range(lot.choice((1, 1, 2, 4))):
        at = lot.randrange(len(raw) + 1)
        end = min(len(raw), at + lot.choice((1, 4, 30)))
        kind = lot.randrange(6)
        if kind == 0:
            raw[at:end] = bytes(lot.randrange(256) for _ in range(at, end))
        elif kind == 1:
            del raw[at:]
        elif kind == 2:
            del raw[at:end]
        elif kind == 3:
            raw[at:at] = lot.choice(TOKENS)
        elif kind == 4:
            raw[at:end] = lot.choice(TOKENS)
        else:
            begin = lot.randrange(len(good))
            raw[at:at] = good[begin : begin + 40]
    return bytes(raw)


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """A hang is a failure."""

    def ring(*_: object) -> None:
        raise KeyboardInterrupt(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(path: Path, raw: bytes, read: Callable[[Path], object]) -> bool:
    """Whether it could be read; fails on all that is not a `TitheError` with a place."""
    path.write_bytes(raw)
    try:
        with alarm(SECONDS):
            read(path)
    except TitheError as error:
        said = str(error)
        assert "`" in said or path.name in said, said
        assert len(said) < 1_000, said
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / reader.name
    path.parent.mkdir(exist_ok=True)
    lot = random.Random(f"{reader.name} {TIMES}")
    times = reader.times * TIMES
    path.write_bytes(reader.good)
    reader.read(path)  # the first imports libraries, for as long as that takes
    read = sum(check(path, damaged(reader.good, lot), reader.read) for _ in range(times))
    assert 0 < read < times
