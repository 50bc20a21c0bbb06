"""Texts on disk: what was written is what is read, or it is refused."""

from pathlib import Path

import pytest

from tithe.data.checksum import list_parts
from tithe.errors import StoreError
from tithe.lab.writing.texts import SUFFIX, TextStore, read_part

TEXTS = {"a": {"text": "Blue,\nI think.", "tokens": 4, "finished": True}, "b": {"text": "ü", "tokens": None}}


def part(folder: Path) -> Path:
    store = TextStore(folder, "m")
    for key, value in TEXTS.items():
        store.put(key, {"finished": False, **value})
    store.flush()
    (path,) = store.folder.glob("part-*")
    return path


def unchecked(path: Path) -> Path:
    """The part under the name that it had before names held checksums."""
    return path.rename(path.with_name("part-000001.jsonl"))


def test_every_bit_that_turns_is_noticed(tmp_path: Path) -> None:
    path = part(tmp_path)
    (known,) = list_parts(path.parent, SUFFIX)
    data, written = path.read_bytes(), read_part(known)
    assert {line["key"]: line["text"] for line in written} == {"a": "Blue,\nI think.", "b": "ü"}
    for bit in range(8 * len(data)):
        turned = bytearray(data)
        turned[bit // 8] ^= 1 << bit % 8
        path.write_bytes(turned)
        with pytest.raises(StoreError, match="damaged"):
            read_part(known)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"7\n",
        b"[]\n",
        b'{"key": "a"}\n',
        b'{"key": "a", "text": "x", "tokens": "4", "finished": true}\n',
        b'{"key": "a", "text": "x", "tokens": true, "finished": true}\n',
        b'{"key": "a", "text": "x", "tokens": 4, "finished": 1}\n',
        b'{"key": ["a"], "text": "x", "tokens": 4, "finished": true}\n',
        b'{"key": "a", "text": "x", "tokens": %s, "finished": true}\n' % (b"1" * 5000),
        b"\xff\n",
    ],
)
def test_a_part_that_is_not_ours_is_refused(tmp_path: Path, data: bytes) -> None:
    path = unchecked(part(tmp_path))
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged or was not written by tithe"):
        TextStore(tmp_path, "m")


def test_parts_without_checksums_and_other_files_disturb_nothing(tmp_path: Path) -> None:
    path = unchecked(part(tmp_path))
    path.write_bytes(b'{"key": "old", "text": "x", "tokens": null, "finished": true}\n')
    path.with_name("part-1 (copy).jsonl").write_bytes(b"whatever")
    store = TextStore(tmp_path, "m")
    assert store["old"]["text"] == "x" and store.next_part == 2
