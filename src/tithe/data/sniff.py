"""Find the files of a data set and detect the kind of each from its content."""

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
PACKED_SUFFIXES = (".gz", ".zst")
_FIELDS = frozenset({"instruction", "prompt", "messages", *OUTPUTS, *INPUTS, *COMPLETIONS, *CONVERSATIONS})
_UNREADABLE_MAGIC = {
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
_TAR_OFFSET = 257  # where a tar archive has its magic number
_HEAD_BYTES = 1 << 16
_CUT_OBJECT = re.compile(r"[\[{,:]\s*$")


def container_suffix(path: Path) -> str:
    """Return a file's data suffix, e.g. `.jsonl` for `a.jsonl.gz`; empty if it is not a known one."""
    name = path.name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES else ""


def sniff(path: Path, named: frozenset[str] = frozenset()) -> DataFile:
    """Detect a file's kind from its first bytes, and from its suffix if they are ambiguous.

    Args:
        path: of the file.
        named: columns that the user has named, besides those of the known shapes.

    Raises:
        DataError: the file is empty, unreadable, or of a kind that is not supported.
    """
    with reading(path), unpacked(path) as stream:
        if not path.stat().st_size:
            raise DataError(f"`{path}` is empty")
        head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        if head.startswith(b"PAR1"):
            return DataFile(path, "parquet")
        other = next((words for magic, words in _UNREADABLE_MAGIC.items() if head.startswith(magic)), None)
        if head[_TAR_OFFSET:].startswith(b"ustar"):
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
    first, known = line.decode("utf-8", "replace").strip(), named | _FIELDS
    if begin != b"{":
        return _detect_text(path, first, known)
    if len(line) == MOST_LINE and (name := _list_in(path, known)) not in (None, *known):
        return DataFile(path, "json", wrapper=name)  # a single line that holds all records
    if _is_jsonl(first, bool(after), known):
        return DataFile(path, "jsonl")
    return DataFile(path, "json", wrapper=_wrapper(path, known))


def _next_text(stream: io.BufferedReader) -> bytes:
    return next((line for line in iter(lambda: stream.readline(_HEAD_BYTES), b"") if not line.isspace()), b"")


def _is_jsonl(first: str, more: bool, known: frozenset[str]) -> bool:
    """Tell whether the first line is a whole record (JSONL), and not the beginning of a larger JSON value."""
    try:
        value = json.loads(first)
    except json.JSONDecodeError as error:
        # Pretty-printed JSON breaks its first line after `{`, `[`, `,` or `:`. A damaged record breaks elsewhere.
        cut = error.pos >= len(first) - 1 and not error.msg.startswith("Unterminated")
        return not (cut and more and _CUT_OBJECT.search(first))
    except Exception:  # any other fault of this record is reported when its row is read
        return True
    if more or any(name in value for name in known):
        return True
    return not any(isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values())


def _wrapper(path: Path, known: frozenset[str]) -> str | None:
    with reading(path), unpacked(path) as stream:
        walk = JsonStream(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        try:
            return walk.find_wrapper(known)
        except JsonFault as fault:
            raise DataError(f"{path}:{fault.line}:{fault.column}: invalid JSON: {fault}") from None


def _list_in(path: Path, known: frozenset[str]) -> str | None:
    """Return the name of the list of records in an object, None if there is none."""
    with suppress(DataError):
        return _wrapper(path, known)
    return None


def _detect_text(path: Path, first: str, known: frozenset[str]) -> DataFile:
    """Return the file as CSV if its suffix or header says so; else as JSONL, whose rows will report what is wrong."""
    suffix = container_suffix(path)
    usual = "\t" if suffix == ".tsv" else ","
    counts = {delimiter: len(known & set(_cells(first, delimiter))) for delimiter in (usual, ",", "\t", ";")}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    if SUFFIXES.get(suffix) == "csv" or counts[best] > 1:
        return DataFile(path, "csv", delimiter=best if counts[best] else usual)
    return DataFile(path, "jsonl")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


METADATA_FILES = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # describe data, hold none
UNREADABLE_SUFFIXES = {
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
}  # for the files of a folder; a file given by name is judged by its content
# A folder with both is the run folder of an earlier run; its tables are not records to select from.
RUN_FILES = {"run.json", "scores.parquet"}
_SHOWN = 5
OTHER_KIND = "other kind of file"


def list_data_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the data files of a folder, sorted by name, and a description of what is skipped.

    Raises:
        DataError: there is no data file, a link is broken, data is of an unsupported kind, or it is a run folder.
    """
    with reading(folder):
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    if {entry.name for entry in entries} >= RUN_FILES:
        hint = f"the kept records are in the file beside it, the dropped ones in `{folder / 'dropped.jsonl'}`"
        raise DataError(f"`{folder}` is a run folder, not a data set", hint=hint)
    files: list[Path] = []
    passed: dict[str, list[str]] = {}
    for entry in entries:
        why = why_skipped(entry)
        if why is None:
            files.append(entry)
        else:
            passed.setdefault(why, []).append(entry.name)
    if not files:
        known = f"supported are {', '.join(SUFFIXES)}, also as .gz or .zst"
        inside = [entry for entry in entries if entry.is_dir() and _holds_data(entry)]
        hint = f"name its folder `{inside[0]}`" if inside else known
        raise DataError(f"the folder `{folder}` holds no data file", hint=hint)
    return files, [skip_description(why, names) for why, names in passed.items()]


def why_skipped(entry: Path) -> str | None:
    """Return why a folder's entry is not read; None if it is.

    Raises:
        DataError: the entry seems to hold records but cannot be read.
    """
    name, hidden = entry.name, entry.name.startswith(".")
    with reading(entry):
        if entry.is_symlink() and not hidden and not _leads_somewhere(entry):
            hint = "remove the link, or restore its target"
            raise DataError(f"`{entry}` is a broken link", hint=hint)
        if hidden:
            return "hidden"
        if entry.is_dir():
            return "sub-folder"
        if not entry.is_file():
            return "no regular file"
    other = UNREADABLE_SUFFIXES.get(entry.suffix.lower()) or ("a tar archive" if ".tar" in entry.suffixes else None)
    if other:
        hint = "unpack or convert it to JSONL, JSON, CSV or Parquet, or move it out; `.gz` and `.zst` are read"
        raise DataError(f"`{entry}` is {other}, its records cannot be read", hint=hint)
    if name in METADATA_FILES:
        return "description of the data set"
    return None if container_suffix(entry) else OTHER_KIND


def _leads_somewhere(link: Path) -> bool:
    try:
        return link.exists()
    except (OSError, RuntimeError):  # a loop of links
        return False


def _holds_data(folder: Path) -> bool:
    with reading(folder):
        return any(container_suffix(entry) for entry in folder.iterdir())


def skip_description(why: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name[:60]}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    plural = _PLURALS[why] if len(names) > 1 else why
    return f"{len(names)} {plural}: {shown}{more}"


_PLURALS: Mapping[str, str] = {
    "hidden": "hidden",
    "sub-folder": "sub-folders",
    "no regular file": "no regular files",
    "description of the data set": "descriptions of the data set",
    OTHER_KIND: "other kinds of file",
}
