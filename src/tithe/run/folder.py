"""The run folder: one process at a time, every file whole or not there, and a record however the run ended."""

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

from tithe.data.outfile import atomic, check_writable, demand_file, link_target, part_stem, try_to_write
from tithe.data.sniff import container_suffix
from tithe.errors import OutputError, SettingsError, StoreError, TitheError
from tithe.foreign import read_json
from tithe.report.reporter import Reporter

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".tithe"
SCORES, TOKENS, DROPPED, RECORD = "scores.parquet", "tokens.parquet", "dropped.jsonl", "run.json"
LOCK = ".lock"
READ = ("model", "shot_pool", "target", "head", "template", "drop_contaminated")  # settings
LEARNED = ("neighbours.parquet", "probes.parquet", "anchors.parquet")  # what our scorers keep besides
OUTCOME, BEFORE = "outcome", "last_finished"
FINISHED, INTERRUPTED, FAILED, RUNNING = "finished", "interrupted", "failed", "running"


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
    place = link_target(output)
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
        if (output.exists() and other.exists() and output.samefile(other)) or place.parent == link_target(other):
            raise OutputError(f"the output `{output}` would change `{other}`, which is read", hint="name another file")
    another = is_run(place.parent) and (folder is None or place.parent != link_target(folder))
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
    real = link_target(path)
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


@dataclass
class Account:
    """Of one run.

    Args:
        folder: where the record is; None keeps none, and may be replaced once the run has made the folder its own.
        reporter: who listens; it knows whether it could be heard.
        record: makes the record of what was done so far; replaced as more is known.
        name: of the record's file.
        stores: what the run keeps to go on from, in the plural; None where it keeps nothing.
        before: the record of the last run that finished here.
        stored: counts what is stored.
    """

    folder: Path | None
    reporter: Reporter
    record: Callable[[], dict[str, Any]]
    name: str = RECORD
    stores: str | None = "answers"
    before: dict[str, Any] | None = None
    stored: Callable[[], int] = field(default=lambda: 0)

    def begin(self, folder: Path) -> None:
        """Keep the record in a folder from now on, which the run has found to be its own."""
        self.folder, self.before = folder, last_finished(folder / self.name)

    def finished(self) -> dict[str, Any]:
        """Return the entry of a run that came to its end."""
        return {OUTCOME: {"status": FINISHED} | self.unheard()}

    def running(self) -> dict[str, Any]:
        """Return the entry of a run that has not ended; it stays where the process is killed."""
        return {OUTCOME: {"status": RUNNING}}

    def unheard(self) -> dict[str, Any]:
        return {} if self.reporter.trouble is None else {"log": self.reporter.trouble}

    def broken_off(self, error: BaseException) -> dict[str, Any]:
        """Return what is to be said of a run that did not come to its end, and of all that it did."""
        try:
            made = self.record()
        except Exception as wrong:  # the run's own error is what counts, and is raised after this
            made = {"record_incomplete": f"{type(wrong).__name__}: {wrong}"}
        unexpected = {} if isinstance(error, TitheError | KeyboardInterrupt) else {"unexpected": type(error).__name__}
        why: dict[str, Any]
        if isinstance(error, KeyboardInterrupt):
            why = {"status": INTERRUPTED, "by": str(error) or "KeyboardInterrupt"}
        else:
            why = {"status": FAILED, "error": str(error), "hint": getattr(error, "hint", None)} | unexpected
        stored = {} if self.stores is None else {f"{self.stores}_stored": self.stored()}
        return made | {OUTCOME: why | stored | self.unheard()}

    def write_broken_off(self, error: BaseException) -> None:
        """Write the record of a run that did not come to its end, and say what it keeps if it was interrupted.

        The record of the last run that finished here stays in it: results of that run may still be in the folder.
        """
        if self.folder is None:
            return
        made = self.broken_off(error)
        if isinstance(error, KeyboardInterrupt) and self.stores and (n := made[OUTCOME][f"{self.stores}_stored"]):
            what = f"1 {self.stores.removesuffix('s')} is" if n == 1 else f"{n:,} {self.stores} are"
            self.reporter.say(f"{what} stored in `{self.folder}`: run the same command again to go on")
        try:
            write_json(self.folder / self.name, made | ({} if self.before is None else {BEFORE: self.before}))
        except TitheError as full:  # a full disk, perhaps the very reason
            self.reporter.say(f"note: {full}")


@contextmanager
def account(
    folder: Path | None,
    reporter: Reporter,
    record: Callable[[], dict[str, Any]],
    *,
    name: str = RECORD,
    stores: str | None = "answers",
) -> Iterator[Account]:
    """Write the record of a run that is interrupted or fails; the run itself writes that of one which finishes.

    Args:
        folder: where the record goes, open; None keeps no record.
        reporter: is told what is stored, where the run is interrupted.
        record: see `Account`.
        name: of the record's file.
        stores: see `Account`.
    """
    told = Account(None, reporter, record, name, stores)
    if folder is not None:
        told.begin(folder)
    try:
        yield told
    except BaseException as error:
        told.write_broken_off(error)
        raise


def has_finished(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of a run that came to its end; those of before there were outcomes all are."""
    outcome = record.get(OUTCOME)
    return not isinstance(outcome, Mapping) or outcome.get("status") == FINISHED


def last_finished(path: Path) -> dict[str, Any] | None:
    """Return the record of the last run that came to its end, or None."""
    try:
        found: Any = read_json(path, StoreError, "it is written anew")
    except StoreError:  # none, or what a foreign hand made of it
        return None
    if not has_finished(found):
        found = found.get(BEFORE)
    return found if isinstance(found, dict) else None


def is_broken_off(path: Path) -> bool:
    """Return whether a file is the record of a run that did not come to its end, and of none that did."""
    try:
        found = read_json(path, StoreError, "")
    except StoreError:
        return False
    return not has_finished(found) and not isinstance(found.get(BEFORE), dict)
