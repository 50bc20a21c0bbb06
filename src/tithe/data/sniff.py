"""Find the files of a data set and what kind each is, by looking into them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tithe.data.containers import Container, DataFile
from tithe.data.formats import COMPLETIONS, CONVERSATIONS, INPUTS, OUTPUTS
from tithe.data.jsonstream import JsonFault, JsonStream
from tithe.data.lines import MOST_LINE, reading, skip_space, unpacked
from tithe.errors import DataError

SUFFIXES: dict[str, Container] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst")
_FIELDS = {"instruction", "prompt", "messages", *OUTPUTS, *INPUTS, *COMPLETIONS, *CONVERSATIONS}
_OTHERS = {
    b"PK\x03\x04": "a zip archive (or an Excel sheet)",
    b"\xfd7zXZ": "packed with xz",
    b"BZh": "packed with bzip2",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
    b"SQLite": "a database",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x04\x22\x4d\x18": "packed with LZ4",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_TAR = 257  # where a tar archive has its mark
_HEAD = 1 << 16
_DUMP = re.compile(r"[\[{,:]\s*$")


def container_suffix(path: Path) -> str:
    """`.jsonl` of `a.jsonl.gz`; empty where no known one is."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES else ""


def sniff(path: Path) -> DataFile:
    """The file with its kind: by its first bytes, where they leave a doubt by its suffix.

    Raises:
        DataError: it is empty, not readable, or of a kind that holds no records for us.
    """
    with reading(path), unpacked(path) as stream:
        if not path.stat().st_size:
            raise DataError(f"`{path}` is empty")
        head = stream.peek(_HEAD)[:_HEAD]
        if head.startswith(b"PAR1"):
            return DataFile(path, "parquet")
        other = next((words for magic, words in _OTHERS.items() if head.startswith(magic)), None)
        if head[_TAR:].startswith(b"ustar"):
            other = "a tar archive"
        if other:
            hint = "convert it to UTF-8 JSONL, JSON, CSV or Parquet (`.gz` and `.zst` are read as they are)"
            raise DataError(f"`{path}` is {other}, its records cannot be read", hint=hint)
        begin = skip_space(stream)
        if not begin:
            raise DataError(f"`{path}` holds no records, only whitespace")
        if begin == b"[":
            return DataFile(path, "json")
        line = stream.readline(MOST_LINE)
        after = begin == b"{" and _next_text(stream)
    first = line.decode("utf-8", "replace").strip()
    if begin != b"{":
        return _text(path, first)
    if len(line) == MOST_LINE and (name := _list_in(path)) not in (None, *_FIELDS):
        return DataFile(path, "json", wrapper=name)  # one line with all records in it
    if _is_line(first, bool(after)):
        return DataFile(path, "jsonl")
    return DataFile(path, "json", wrapper=_wrapper(path))


def _next_text(stream: io.BufferedReader) -> bytes:
    return next((line for line in iter(lambda: stream.readline(_HEAD), b"") if not line.isspace()), b"")


def _is_line(first: str, more: bool) -> bool:
    """Whether a first line that opens an object is a record (JSONL) and not the beginning of a larger value."""
    try:
        value = json.loads(first)
    except json.JSONDecodeError as error:
        # A printed object breaks its first line after `{`, `[`, `,` or `:`; a damaged record elsewhere.
        cut = error.pos >= len(first) - 1 and not error.msg.startswith("Unterminated")
        return not (cut and more and _DUMP.search(first))
    except Exception:  # whatever else a parser says of a damaged record, its row will say again
        return True
    if more or any(name in value for name in _FIELDS):
        return True
    return not any(isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values())


def _wrapper(path: Path) -> str | None:
    with reading(path), unpacked(path) as stream:
        walk = JsonStream(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        try:
            return walk.find_wrapper(_FIELDS)
        except JsonFault as fault:
            raise DataError(f"{path}:{fault.line}:{fault.column}: invalid JSON: {fault}") from None


def _list_in(path: Path) -> str | None:
    """The name of the list of records in an object, if there is one."""
    with suppress(DataError):
        return _wrapper(path)
    return None


def _text(path: Path, first: str) -> DataFile:
    """CSV if it says so or has a header of ours; else JSONL, whose lines will say what is wrong with them."""
    suffix = container_suffix(path)
    usual = "\t" if suffix == ".tsv" else ","
    counts = {delimiter: len(_FIELDS & set(_cells(first, delimiter))) for delimiter in (usual, ",", "\t", ";")}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    if SUFFIXES.get(suffix) == "csv" or counts[best] > 1:
        return DataFile(path, "csv", delimiter=best if counts[best] else usual)
    return DataFile(path, "jsonl")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


BESIDE = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # describe data, hold none
UNREAD = {
    ".xz": "packed with xz",
    ".bz2": "packed with bzip2",
    ".lz4": "packed with LZ4",
    ".lzma": "packed with LZMA",
    ".br": "packed with Brotli",
    ".sz": "packed with Snappy",
    ".7z": "a 7z archive",
    ".rar": "a RAR archive",
    ".zip": "a zip archive",
    ".tar": "a tar archive",
    ".tgz": "a tar archive",
    ".arrow": "an Arrow file",
    ".feather": "an Arrow file",
    ".avro": "an Avro file",
    ".orc": "an ORC file",
    ".xlsx": "an Excel sheet",
    ".xls": "an Excel sheet",
}  # by suffix; a single file is told by what is in it
RUN = {"run.json", "scores.parquet"}  # a folder with both is a run's own; its tables are no records to choose from
_SHOWN = 5


def data_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of a folder that are read, by name, and words about what is passed over.

    Raises:
        DataError: no data file, a link that leads nowhere, data of a kind that cannot be read, or a run folder.
    """
    with reading(folder):
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    if {entry.name for entry in entries} >= RUN:
        hint = f"what was kept lies beside it; what was dropped is in `{folder / 'dropped.jsonl'}`"
        raise DataError(f"`{folder}` is the folder of a run and no data set", hint=hint)
    files: list[Path] = []
    passed: dict[str, list[str]] = {}
    for entry in entries:
        why = _why_passed(entry)
        if why is None:
            files.append(entry)
        else:
            passed.setdefault(why, []).append(entry.name)
    if not files:
        known = f"read are {', '.join(SUFFIXES)}, also as .gz or .zst"
        inside = [entry for entry in entries if entry.is_dir() and _holds_data(entry)]
        hint = f"name its folder `{inside[0]}`" if inside else known
        raise DataError(f"the folder `{folder}` holds no data file", hint=hint)
    return files, [_words(why, names) for why, names in passed.items()]


def _why_passed(entry: Path) -> str | None:
    """Return why an entry is not read, None if it is.

    Raises:
        DataError: it seems to hold records, and cannot be read.
    """
    name, hidden = entry.name, entry.name.startswith(".")
    with reading(entry):
        if entry.is_symlink() and not hidden and not _leads_somewhere(entry):
            hint = "remove the link, or put its target back"
            raise DataError(f"`{entry}` is a link that leads nowhere", hint=hint)
        if hidden:
            return "hidden"
        if entry.is_dir():
            return "sub-folder"
        if not entry.is_file():
            return "no regular file"
    other = UNREAD.get(entry.suffix.lower()) or ("a tar archive" if ".tar" in entry.suffixes else None)
    if other:
        hint = "unpack or convert it to JSONL, JSON, CSV or Parquet, or move it out; `.gz` and `.zst` are read"
        raise DataError(f"`{entry}` is {other}, its records cannot be read", hint=hint)
    if name in BESIDE:
        return "description of the data set"
    return None if container_suffix(entry) else "other kind of file"


def _leads_somewhere(link: Path) -> bool:
    try:
        return link.exists()
    except (OSError, RuntimeError):  # a loop of links
        return False


def _holds_data(folder: Path) -> bool:
    with reading(folder):
        return any(container_suffix(entry) for entry in folder.iterdir())


def _words(why: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name[:60]}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    plural = _PLURALS[why] if len(names) > 1 else why
    return f"{len(names)} {plural}: {shown}{more}"


_PLURALS: Mapping[str, str] = {
    "hidden": "hidden",
    "sub-folder": "sub-folders",
    "no regular file": "no regular files",
    "description of the data set": "descriptions of the data set",
    "other kind of file": "other kinds of file",
}
