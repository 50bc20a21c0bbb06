"""The run folder: one process at a time, every file whole or not there."""

from __future__ import annotations

import glob
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tithe.data.outfile import atomic, check_writable, demand_file, part_stem, target, try_to_write
from tithe.data.sniff import container_suffix
from tithe.errors import OutputError, SettingsError, StoreError
from tithe.foreign import read_json

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".tithe"
SCORES, TOKENS, DROPPED, RECORD = "scores.parquet", "tokens.parquet", "dropped.jsonl", "run.json"
LOCK = ".lock"
READ = ("model", "shot_pool", "target", "head", "template", "drop_contaminated")  # settings
LEARNED = ("neighbours.parquet", "probes.parquet", "anchors.parquet")  # what our scorers keep besides


def default_folder(output: Path) -> Path:
    """`kept.jsonl` -> `kept.tithe`, beside it."""
    name = output.name
    if not name:  # no file: whoever writes there says so
        return output
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return output.with_name(Path(name).stem + SUFFIX)


def check_places(
    output: Path | None,
    overwrite: bool,
    dataset: str,
    folder: Path | None,
    inputs: Iterable[str] = (),
    *,
    scores: bool = False,
) -> None:
    """Check that the results may go there; called before anything is read.

    Args:
        output: the file of results, if there is one.
        overwrite: whether it may replace a file.
        dataset: what is read.
        folder: the run folder.
        inputs: files and folders that are read besides; names of other things may be among them.
        scores: whether the output is the table of scores, which the run folder may hold.

    Raises:
        OutputError: the output exists, cannot be written, or would replace or join what is read.
    """
    source = Path(dataset).expanduser()
    if folder is not None and source.is_dir() and folder.resolve() == source.resolve():
        raise OutputError(
            f"the run folder `{folder}` is the data set itself", hint="its files would be read as data the next time"
        )
    if output is None:
        return
    demand_file(output)
    place = target(output)
    if source.is_file() and (place == source.resolve() or (output.exists() and output.samefile(source))):
        raise OutputError(f"the output `{output}` is the data set itself", hint="name another file with `-o`")
    if source.is_dir() and place.parent == source.resolve() and container_suffix(output):
        raise OutputError(
            f"the output `{output}` lies in the data set's folder", hint="it would be read as data the next time"
        )
    own = (TOKENS, DROPPED, RECORD, *LEARNED, *(() if scores else (SCORES,)))
    if folder is not None and place.parent == folder.resolve() and output.name in own:
        raise OutputError(f"the run folder has its own `{output.name}`", hint="name another file with `-o`")
    for other in (Path(name).expanduser() for name in inputs):
        if (output.exists() and other.exists() and output.samefile(other)) or place.parent == target(other):
            raise OutputError(f"the output `{output}` would change `{other}`, which is read", hint="name another file")
    another = is_run(place.parent) and (folder is None or place.parent != target(folder))
    if another and place.exists() and place.name in (SCORES, TOKENS, DROPPED, RECORD, *LEARNED):
        raise OutputError(
            f"the output `{output}` belongs to the run in `{output.parent}`", hint="name another file with `-o`"
        )
    check_writable(output, overwrite)


def is_run(folder: Path) -> bool:
    """Whether a run has worked in this folder."""
    return (folder / LOCK).exists() or (folder / "answers").is_dir()


def inputs_of(settings: Any) -> list[str]:
    """Return what a run reads besides its data set, by the names given: files, folders, hub ids."""
    given = [getattr(settings, name, None) for name in READ]
    return [name for one in given if one for name in ((one,) if isinstance(one, str) else one)]


def check_scores_file(path: Path) -> None:
    """Scores have one layout, and a name that says so.

    Raises:
        SettingsError: the name promises another.
    """
    if path.suffix != ".parquet":
        raise SettingsError(f"scores are written as parquet, not to `{path}`", hint=f"name it `{path.stem}.parquet`")


def demand_unused(path: Path, flag: str) -> None:
    """Refuse a folder that holds somebody else's files by the names of ours, which a run would replace.

    Raises:
        OutputError: naming the first of them.
    """
    if flag != "--run-dir" or is_run(path) or says_tithe(path / RECORD):
        return
    for name in (SCORES, TOKENS, DROPPED, RECORD):
        if (path / name).exists():
            raise OutputError(
                f"`{path / name}` is of no run, and a run would replace it", hint=f"name another folder with `{flag}`"
            )


def says_tithe(record: Path) -> bool:
    """Whether a run of ours has written this record."""
    try:
        found = read_json(record, StoreError, "")
    except StoreError:
        return False
    return isinstance(found.get("versions"), dict) and "tithe" in found["versions"]


@contextmanager
def run_folder(path: Path | None, flag: str = "--run-dir") -> Iterator[Path]:
    """The folder, made and locked for this process; a temporary one where None is given.

    Args:
        path: the folder.
        flag: of the command line that names it.

    Raises:
        StoreError: another process has it.
        OutputError: it cannot be made or written to.
    """
    if path is None:
        with tempfile.TemporaryDirectory(prefix="tithe-") as scratch:
            yield Path(scratch)
        return
    try:
        if path.exists() and not path.is_dir():
            raise OutputError(f"the run folder `{path}` is a file", hint=f"name another with `{flag}`")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the run folder `{path}` cannot be made: {error.strerror or error}", hint=f"name another with `{flag}`"
        ) from None
    try:
        try_to_write(path)
    except PermissionError:
        raise OutputError(
            f"no permission to write in the run folder `{path}`", hint=f"name another with `{flag}`"
        ) from None
    except OSError as error:
        why = "its file system takes no files" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise OutputError(
            f"the run folder `{path}` cannot be written to: {why}", hint=f"name another with `{flag}`"
        ) from None
    demand_unused(path, flag)
    lock = FileLock(path / LOCK)  # the operating system lets go of it when a process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:  # an `OSError`, too
        raise StoreError(
            f"another process is working in the run folder `{path}`", hint=f"wait for it, or name another with `{flag}`"
        ) from None
    except OSError as error:
        raise OutputError(
            f"the run folder `{path}` cannot be locked: {error.strerror or error}", hint=f"name another with `{flag}`"
        ) from None
    try:
        for name in (SCORES, TOKENS, DROPPED, RECORD):
            sweep(path / name)
        yield path
    finally:
        lock.release()


def sweep(path: Path) -> None:
    """Remove what a killed process had begun to write under this name."""
    real = target(path)
    for scrap in real.parent.glob(f"{glob.escape(part_stem(real))}.????????.part"):
        with suppress(OSError):
            scrap.unlink()


def write_table(path: Path, table: pa.Table | Iterable[pa.Table]) -> None:
    """A parquet file, whole or not at all; the same table gives the same bytes.

    Args:
        path: where.
        table: the whole, or its parts one after the other, at least one: a row group each. Then no dictionaries are
            made: those of numbers that hardly repeat would be in every part, and files a fifth larger.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = isinstance(table, pa.Table)
    parts: Iterator[Any] = iter([table] if whole else table)
    part = next(parts)
    with (
        atomic(path, overwrite=True) as stream,
        pq.ParquetWriter(stream, part.schema, compression="zstd", use_dictionary=whole) as writer,
    ):
        while part is not None:
            writer.write_table(part)
            part = next(parts, None)


def write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic(path, overwrite=True) as stream:
        # A path may hold bytes that are no UTF-8: they are escaped as JSON has it, and read back as they were.
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        stream.write(text.encode(errors="backslashreplace") + b"\n")
