"""The files of a folder: those that are read, and those that are passed over, which a run names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tithe.data.packed import reading
from tithe.data.sniff import SUFFIXES, container_suffix
from tithe.errors import DataError

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
