"""The run folder: locked for one process, files written atomically, and a run record however the run ends."""

from __future__ import annotations

import glob
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tithe.data.locating import local_paths, matches
from tithe.data.outfile import atomic, check_writable, demand_file, link_target, part_stem, try_to_write
from tithe.data.sniff import container_suffix
from tithe.errors import OutputError, StoreError, TitheError
from tithe.foreign import read_json
from tithe.report.reporter import Reporter

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".tithe"
SCORES, TOKENS, DROPPED, RECORD = "scores.parquet", "tokens.parquet", "dropped.jsonl", "run.json"
LOCK = ".lock"
READ = ("model", "shot_pool", "target", "head", "template", "drop_contaminated")  # settings that name files
LEARNED = ("neighbours.parquet", "probes.parquet", "anchors.parquet")  # tables of built-in scorers
OUTCOME, BEFORE = "outcome", "last_finished"
FINISHED, INTERRUPTED, FAILED, RUNNING = "finished", "interrupted", "failed", "running"


def default_folder(output: Path) -> Path:
    """Return the run folder for an output: `kept.tithe` beside `kept.jsonl`."""
    name = output.name
    if not name:  # not a file name: the check of the output reports it
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
    """Check where the results go, before anything is read.

    Args:
        output: the file of results, or None.
        overwrite: whether `output` may replace a file.
        dataset: path or hub id of the data set.
        folder: the run folder.
        inputs: other files and folders that the run reads; hub ids may be among them.
        scores: whether `output` is the score table, which may have its usual place in the run folder.

    Raises:
        OutputError: the output exists, cannot be written, or would change an input.
    """
    sources = local_paths(dataset)
    for source in sources:
        if folder is not None and source.is_dir() and folder.resolve() == source.resolve():
            raise OutputError(
                f"the run folder `{folder}` is the data set itself", hint="its files would be read as data next time"
            )
    if output is None:
        return
    demand_file(output)
    place = link_target(output)
    for source in sources:
        if source.is_file() and (place == source.resolve() or (output.exists() and output.samefile(source))):
            raise OutputError(f"the output `{output}` is the data set itself", hint="name another file with `-o`")
        if source.is_dir() and place.parent == source.resolve() and container_suffix(output):
            raise OutputError(
                f"the output `{output}` lies in the data set's folder", hint="it would be read as data the next time"
            )
    if matches(dataset, place) or matches(dataset, output):
        raise OutputError(
            f"the output `{output}` matches the pattern `{dataset}`", hint="it would be read as data the next time"
        )
    own = (TOKENS, DROPPED, RECORD, *LEARNED, *(() if scores else (SCORES,)))
    if folder is not None and place.parent == folder.resolve() and output.name in own:
        raise OutputError(f"the run folder has its own `{output.name}`", hint="name another file with `-o`")
    for other in (Path(name).expanduser() for name in inputs):
        if (output.exists() and other.exists() and output.samefile(other)) or place.parent == link_target(other):
            raise OutputError(f"the output `{output}` would change `{other}`, which is read", hint="name another file")
    another = is_run(place.parent) and (folder is None or place.parent != link_target(folder))
    if another and place.exists() and place.name in (SCORES, TOKENS, DROPPED, RECORD, *LEARNED):
        raise OutputError(
            f"the output `{output}` belongs to the run in `{output.parent}`", hint="name another file with `-o`"
        )
    check_writable(output, overwrite)


def is_run(folder: Path) -> bool:
    """Tell whether a run has used this folder."""
    return (folder / LOCK).exists() or (folder / "answers").is_dir()


def inputs_of(settings: Any) -> list[str]:
    """Return the files, folders and hub ids that a run reads besides its data set."""
    given = [getattr(settings, name, None) for name in READ]
    return [name for one in given if one for name in ((one,) if isinstance(one, str) else one)]


def demand_unused(path: Path, flag: str) -> None:
    """Refuse a folder with files that a run would replace although no run wrote them.

    Raises:
        OutputError: there is such a file; names the first one.
    """
    if flag != "--run-dir" or is_run(path) or has_our_record(path / RECORD):
        return
    for name in (SCORES, TOKENS, DROPPED, RECORD):
        if (path / name).exists():
            raise OutputError(
                f"`{path / name}` was not written by a run, and a run would replace it",
                hint=f"name another folder with `{flag}`",
            )


def has_our_record(record: Path) -> bool:
    """Tell whether a file is a run record of tithe's."""
    try:
        found = read_json(record, StoreError, "")
    except StoreError:
        return False
    return isinstance(found.get("versions"), dict) and "tithe" in found["versions"]


@contextmanager
def run_folder(path: Path | None, flag: str = "--run-dir") -> Iterator[Path]:
    """Make the run folder and lock it for this process; for None, use a temporary folder.

    Args:
        path: the folder.
        flag: command line option that names it, for hints.

    Raises:
        StoreError: another process uses the folder.
        OutputError: the folder cannot be made or written to.
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
    lock = FileLock(path / LOCK)  # the operating system releases it when a process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:  # a subclass of `OSError`, so it comes first
        raise StoreError(
            f"another process is working in the run folder `{path}`", hint=f"wait for it, or name another with `{flag}`"
        ) from None
    except OSError as error:
        raise OutputError(
            f"the run folder `{path}` cannot be locked: {error.strerror or error}", hint=f"name another with `{flag}`"
        ) from None
    try:
        for name in (SCORES, TOKENS, DROPPED, RECORD):
            remove_partial_files(path / name)
        yield path
    finally:
        lock.release()


def remove_partial_files(path: Path) -> None:
    """Delete partial files that a killed process left for this name."""
    real = link_target(path)
    for scrap in real.parent.glob(f"{glob.escape(part_stem(real))}.????????.part"):
        with suppress(OSError):
            scrap.unlink()


def write_table(path: Path, table: pa.Table | Iterable[pa.Table]) -> None:
    """Write a Parquet file atomically; equal tables give equal bytes.

    Args:
        path: of the file.
        table: the whole table, or at least one part; each part becomes a row group. Parts are written without
            dictionaries: numbers that hardly repeat would need one in every part, and files get a fifth larger.
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
    """Write a JSON file atomically."""
    with atomic(path, overwrite=True) as stream:
        # A path may have bytes that are not UTF-8: they become JSON escapes, and are read back unchanged.
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        stream.write(text.encode(errors="backslashreplace") + b"\n")


@dataclass
class RecordWriter:
    """Writer of the run record of a run that is interrupted or fails.

    Args:
        folder: folder of the record; None keeps no record until `begin` names one.
        reporter: prints notes; its `trouble` tells whether they could be printed.
        record: returns the record so far; replaced as more is known.
        name: file name of the record.
        stores: plural noun for the results that a rerun reuses ("answers"); None if the run stores none.
        before: record of the last run that finished in this folder.
        stored: returns how many such results are stored.
    """

    folder: Path | None
    reporter: Reporter
    record: Callable[[], dict[str, Any]]
    name: str = RECORD
    stores: str | None = "answers"
    before: dict[str, Any] | None = None
    stored: Callable[[], int] = field(default=lambda: 0)

    def begin(self, folder: Path) -> None:
        """Keep the record in this folder from now on, once the run has checked and locked it."""
        self.folder, self.before = folder, last_finished(folder / self.name)

    def finished(self) -> dict[str, Any]:
        """Return the outcome of a run that finished."""
        return {OUTCOME: {"status": FINISHED} | self.log_trouble()}

    def running(self) -> dict[str, Any]:
        """Return the outcome of a run in progress; it stays in the record if the process is killed."""
        return {OUTCOME: {"status": RUNNING}}

    def log_trouble(self) -> dict[str, Any]:
        """Return the failure of the terminal or log, if some messages could not be printed."""
        return {} if self.reporter.trouble is None else {"log": self.reporter.trouble}

    def unfinished_record(self, error: BaseException) -> dict[str, Any]:
        """Return the record of a run that did not finish: what it did, and why it ended."""
        try:
            made = self.record()
        except Exception as wrong:  # the run's own error matters more, and is raised after this
            made = {"record_incomplete": f"{type(wrong).__name__}: {wrong}"}
        unexpected = {} if isinstance(error, TitheError | KeyboardInterrupt) else {"unexpected": type(error).__name__}
        why: dict[str, Any]
        if isinstance(error, KeyboardInterrupt):
            why = {"status": INTERRUPTED, "by": str(error) or "KeyboardInterrupt"}
        else:
            why = {"status": FAILED, "error": str(error), "hint": getattr(error, "hint", None)} | unexpected
        stored = {} if self.stores is None else {f"{self.stores}_stored": self.stored()}
        return made | {OUTCOME: why | stored | self.log_trouble()}

    def write_broken_off(self, error: BaseException) -> None:
        """Write the record of a run that did not finish; if it was interrupted, print how much is stored.

        The record of the last finished run stays inside it: that run's results may still be in the folder.
        """
        if self.folder is None:
            return
        made = self.unfinished_record(error)
        if isinstance(error, KeyboardInterrupt) and self.stores and (n := made[OUTCOME][f"{self.stores}_stored"]):
            what = f"1 {self.stores.removesuffix('s')} is" if n == 1 else f"{n:,} {self.stores} are"
            self.reporter.say(f"{what} stored in `{self.folder}`: run the same command again to go on")
        try:
            write_json(self.folder / self.name, made | ({} if self.before is None else {BEFORE: self.before}))
        except TitheError as full:  # a full disk may be why the run failed
            self.reporter.say(f"note: {full}")


@contextmanager
def recorded_run(
    folder: Path | None,
    reporter: Reporter,
    record: Callable[[], dict[str, Any]],
    *,
    name: str = RECORD,
    stores: str | None = "answers",
) -> Iterator[RecordWriter]:
    """Write a run record if the body is interrupted or fails; a run that finishes writes its own.

    Args:
        folder: locked run folder of the record; None keeps no record.
        reporter: prints how much is stored if the run is interrupted.
        record: see `RecordWriter`.
        name: file name of the record.
        stores: see `RecordWriter`.
    """
    writer = RecordWriter(None, reporter, record, name, stores)
    if folder is not None:
        writer.begin(folder)
    try:
        yield writer
    except BaseException as error:
        writer.write_broken_off(error)
        raise


def has_finished(record: Mapping[str, Any]) -> bool:
    """Tell whether a record is of a finished run; records without an outcome, of early versions, always are."""
    outcome = record.get(OUTCOME)
    return not isinstance(outcome, Mapping) or outcome.get("status") == FINISHED


def last_finished(path: Path) -> dict[str, Any] | None:
    """Return the record of the last run that finished, or None."""
    try:
        found: Any = read_json(path, StoreError, "it is written anew")
    except StoreError:  # there is none, or it is not a record
        return None
    if not has_finished(found):
        found = found.get(BEFORE)
    return found if isinstance(found, dict) else None


def is_broken_off(path: Path) -> bool:
    """Tell whether a file is the record of an unfinished run, and holds no record of a finished one."""
    try:
        found = read_json(path, StoreError, "")
    except StoreError:
        return False
    return not has_finished(found) and not isinstance(found.get(BEFORE), dict)
