"""Find what the name of a data set stands for.

It is a file, a folder, several names with commas between, a pattern such as `data/*.parquet`, `-` for the standard
input, an address such as `https://...` or `s3://...`, a hub id, or the name of data that Python holds.
"""

from __future__ import annotations

import difflib
import glob
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from shutil import copyfileobj

from tithe.data import remote
from tithe.data.containers import DataFile
from tithe.data.hub import open_hub
from tithe.data.in_memory import find_held
from tithe.data.lines import reading
from tithe.data.row_sources import CopiedFiles, CopyPlace, DataFiles, RowSource, named_as_given
from tithe.data.sniff import OTHER_KIND, container_suffix, list_data_files, skip_description, sniff, why_skipped
from tithe.data.turns import quoted_names
from tithe.errors import DataError, SettingsError
from tithe.foreign import foreign

STDIN = "standard input"
STREAMS = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
SEPARATOR = ","
_PATTERN = re.compile(r"[*?\[]")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/?")


def locate(name: str, split: str | None) -> RowSource:
    """Find the rows that a name stands for.

    Raises:
        DataError: there is nothing of that name, or it cannot be read.
        SettingsError: a split of something that has none, or an address that is not accepted.
        MissingExtraError: a package is needed to read it.
    """
    if whole := _HUB_ADDRESS.fullmatch(name):
        name = whole[1]
        return open_hub(name, split or "train")
    if split is not None and (_is_elsewhere(name) or local_paths(name)):
        raise SettingsError(f"`{name}` is no data set of the hub and has no splits", hint="leave out the split")
    if (found := _elsewhere(name) or _on_disk(name)) is not None:
        return found
    # A name that also looks like a path (`data/train.jsonl`, `existing-folder/x`) is a missing file, not a hub id.
    path = Path(name)
    if _HUB_ID.fullmatch(name) and not container_suffix(path) and not path.parent.is_dir():
        return open_hub(name, split or "train")
    raise DataError(f"no file or folder `{name}`", hint=_suggest_names(path))


def _is_elsewhere(name: str) -> bool:
    return name in STREAMS or remote.is_address(name) or find_held(name) is not None


def _elsewhere(name: str) -> RowSource | None:
    """Return rows that are not on this disk: in memory, on standard input, or at an address."""
    if (held := find_held(name)) is not None:
        return held
    if name in STREAMS:
        return read_stdin()
    if remote.is_address(name):
        return _fetched(name)
    return None


def _on_disk(name: str) -> DataFile | DataFiles | None:
    path = existing(name)
    if path is not None:
        return _folder(path) if path.is_dir() else sniff(path)
    parts = name.split(SEPARATOR)
    if len(parts) > 1 and (any(map(is_local, parts)) or any(map(_PATTERN.search, parts))):
        return _several(name, parts)
    return _matching(name) if _PATTERN.search(name) else None


def existing(name: str) -> Path | None:
    """Return the path of a name if something is there."""
    path = Path(name)
    with reading(path), suppress(RuntimeError):  # no such user
        path = path.expanduser()
    with reading(path):
        return path if path.exists() else None


def is_local(name: str) -> bool:
    return existing(name) is not None


def local_paths(name: str) -> list[Path]:
    """Return the existing files and folders that a name stands for; none if it is not on this disk."""
    if name in STREAMS or remote.is_address(name):
        return []
    if (path := existing(name)) is not None:
        return [path]
    parts = name.split(SEPARATOR)
    if len(parts) > 1:
        return [path for part in parts for path in local_paths(part)]
    return _matches(name) if _PATTERN.search(name) else []


def matches(name: str, path: Path) -> bool:
    """Tell whether a pattern, or one in a list of names, would match a file that is not there yet."""
    if is_local(name) or remote.is_address(name):
        return False
    place = Path.cwd() / path
    patterns = [Path.cwd() / Path(part).expanduser() for part in name.split(SEPARATOR) if _PATTERN.search(part)]
    # In `fnmatch` a star also crosses folders, as only `**` may: elsewhere the folders are compared one by one.
    return any(
        fnmatch(str(place), str(one).replace("**/", "*"))
        if "**" in one.parts
        else len(one.parts) == len(place.parts) and all(map(fnmatch, place.parts, one.parts))
        for one in patterns
    )


def absolute_name(name: str) -> str | None:
    """Return a name that stands for the same data from any folder; None if it is not on this disk."""
    if not local_paths(name):
        return None
    if is_local(name):
        return str(Path(name).expanduser().resolve())
    return SEPARATOR.join(str(Path.cwd() / Path(part).expanduser()) for part in name.split(SEPARATOR))


def _folder(path: Path) -> DataFiles:
    files, passed = list_data_files(path)
    return DataFiles(tuple(sniff(entry) for entry in files), tuple(passed))


def _several(name: str, parts: Sequence[str]) -> DataFiles:
    """Return the files of several names, in the order given."""
    files, passed = list[DataFile](), list[str]()
    for part in parts:
        if not part.strip():
            raise DataError(f"the list of files `{name}` has an empty name in it")
        one = _on_disk(part)
        if one is None:
            raise DataError(f"no file or folder `{part}`", hint=_suggest_names(Path(part)))
        files += one.files if isinstance(one, DataFiles) else (one,)
        passed += one.passed_over if isinstance(one, DataFiles) else ()
    seen = set[Path]()
    for file in files:
        if (place := file.path.resolve()) in seen:
            raise DataError(f"`{file.path}` is named twice: its records would count twice", hint="name it once")
        seen.add(place)
    return DataFiles(tuple(files), tuple(passed))


def _matches(pattern: str) -> list[Path]:
    return [Path(found) for found in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]  # noqa: PTH207


def _matching(pattern: str) -> DataFiles:
    """Return the data files that a pattern matches, sorted by name."""
    found = _matches(pattern)
    skipped: dict[str, list[str]] = {}
    files = list[Path]()
    for path in found:
        why = why_skipped(path)
        if why is None:
            files.append(path)
        else:
            skipped.setdefault(why, []).append(path.name)
    if not files and not skipped.keys() - {OTHER_KIND}:  # named on purpose, as `part-*` without a suffix
        files, skipped = found, {}
    if not files:
        what = "nothing" if not found else "no data file"
        raise DataError(f"the pattern `{pattern}` matches {what}", hint="`**` also looks into sub-folders")
    passed = tuple(skip_description(why, names) for why, names in skipped.items())
    return DataFiles(tuple(sniff(path) for path in files), passed)


@cache  # its bytes come only once, and a command opens its data several times
def read_stdin() -> CopiedFiles:
    """Copy the standard input to a file, and return that.

    Raises:
        DataError: it is a terminal, closed, or empty.
    """
    stream = sys.stdin
    if stream is None or stream.closed:
        raise DataError("the standard input is closed", hint="pipe records into it, or name a file")
    if stream.isatty():
        raise DataError("the standard input is a terminal", hint="pipe records into it: `zcat data.gz | tithe ... -`")
    place = CopyPlace()
    copy = place.path / "stdin"
    with foreign(DataError, "the standard input cannot be read"), copy.open("wb") as out:
        copyfileobj(stream.buffer, out)
    if not copy.stat().st_size:
        raise DataError("the standard input is empty: no records came", hint="what should have written to it?")
    with named_as_given(copy, STDIN):
        return CopiedFiles(sniff(copy), (STDIN,), place, lasting=False)


def _fetched(name: str) -> CopiedFiles:
    place = CopyPlace()
    files, names = list[DataFile](), list[str]()
    for copy, origin in remote.fetch(name, place.path):
        with named_as_given(copy, origin):
            files.append(sniff(copy))
        names.append(origin)
    copies = files[0] if len(files) == 1 else DataFiles(tuple(files))
    return CopiedFiles(copies, tuple(names), place)


def _suggest_names(path: Path) -> str:
    """Return a hint for a missing path: similar names in its folder, or that the folder is missing too."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder `{folder}` either"
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return f"the folder `{folder}` cannot be listed"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    hub = "a hub id looks like `owner/name`"
    return (
        f"in `{folder}` there is {quoted_names(near)}" if near else f"nothing in `{folder}` has a name like that; {hub}"
    )
