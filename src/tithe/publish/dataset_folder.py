"""Write a finished selection as a folder that `datasets.load_dataset` opens: a card, and records under `data/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tithe.data.export import write_records
from tithe.data.outfile import atomic, writing
from tithe.errors import OutputError, SettingsError, StoreError
from tithe.look.finished_run import DROPPED_COLUMN, FinishedRun
from tithe.publish.card import CARD, DROPPED_FILE, KEPT_FILE, TAG, CardFacts, check_license, hub_source, write_card
from tithe.report.reporter import Reporter
from tithe.run.folder import DROPPED, RECORD, is_run
from tithe.settings import SelectSettings


@dataclass(frozen=True)
class DatasetFolder:
    """A folder with a card and records.

    Args:
        path: the folder.
        facts: what its card says besides the run's record.
        card: text of the card.
    """

    path: Path
    facts: CardFacts
    card: str

    def __str__(self) -> str:
        dropped = f", {self.facts.dropped:,} dropped" if self.facts.dropped is not None else ""
        return f"{self.path} ({self.facts.kept:,} kept records{dropped}, {CARD})"


def open_selection(folder: Path) -> FinishedRun:
    """Open a finished run that selected.

    Raises:
        TitheError: there is none in the folder.
    """
    run = FinishedRun.open(folder)
    if not run.selects or not isinstance(run.record.get("selection"), dict):
        raise StoreError(f"the run in `{folder}` only scored: there is no selection", hint="`tithe select` makes one")
    return run


def write_folder(
    run: FinishedRun,
    folder: Path,
    *,
    with_dropped: bool = False,
    license: str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> DatasetFolder:
    """Write kept records, dropped ones if asked for, and the card last.

    Args:
        run: a selection; its data set must be where it was.
        folder: where to write; a new or an empty folder, or with `overwrite` one that this function wrote.
        with_dropped: write the dropped records too, each with its reason.
        license: of the source; by default that on the card of a source on the hub.
        overwrite: replace card and records.
        reporter: gets notes.

    Raises:
        TitheError: the data set has changed, or the folder cannot be written.
    """
    check_folder(folder, run, overwrite)
    settings = run.settings
    assert isinstance(settings, SelectSettings)
    known = find_license(run, license, reporter or Reporter())
    with writing(folder):
        (folder / "data").mkdir(parents=True, exist_ok=True)
    kept = write_records(
        run.source.dataset, kept_rows(run), folder / KEPT_FILE, shape=settings.shape, overwrite=overwrite
    ).records
    with writing(folder):
        (folder / DROPPED_FILE).unlink(missing_ok=True)
    dropped = copy_dropped(run.folder / DROPPED, folder / DROPPED_FILE) if with_dropped else None
    facts = CardFacts(kept, dropped, known, hub_source(run.record["settings"], run.record["dataset"]))
    text = write_card(run.record, facts)
    with atomic(folder / CARD, overwrite) as stream:
        stream.write(text.encode(errors="backslashreplace"))
    return DatasetFolder(folder, facts, text)


def card_of(run: FinishedRun, *, license: str | None = None, reporter: Reporter | None = None) -> str:
    """Return the card of a run without writing anything; its counts are those of the run."""
    known = find_license(run, license, reporter or Reporter())
    source = hub_source(run.record["settings"], run.record["dataset"])
    return write_card(run.record, CardFacts(run.record["selection"]["kept_records"], None, known, source))


def check_folder(folder: Path, run: FinishedRun, overwrite: bool) -> None:
    """Refuse a folder whose files a data set folder would replace or mix with.

    Raises:
        OutputError: it is a file, a run folder or the data set, or has files that are not ours.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"`{folder}` is a file", hint="name a folder with `-o`")
    if is_run(folder) or folder.resolve() == run.folder.resolve() or (folder / RECORD).exists():
        raise OutputError(f"`{folder}` is a run folder, whose files would be read as data", hint="name another folder")
    source = Path(run.settings.dataset).expanduser()
    if source.exists() and source.resolve() in (folder.resolve(), *folder.resolve().parents) and source.is_dir():
        raise OutputError(f"`{folder}` lies in the data set's folder", hint="it would be read as data the next time")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not has_our_card(folder / CARD):
        raise OutputError(f"`{folder}` has files that are no data set of tithe's", hint="name a new folder")
    if not overwrite:
        raise OutputError(f"the output `{folder}` exists", hint="--overwrite replaces it")


def has_our_card(path: Path) -> bool:
    """Tell whether a file is a card that a run wrote."""
    try:
        _, head, _ = path.read_text(encoding="utf-8").split("---\n", 2)
        return TAG in (yaml.safe_load(head) or {}).get("tags", ())
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return False


def kept_rows(run: FinishedRun) -> dict[int, set[int]]:
    """Return row -> kept turns."""
    rows: dict[int, set[int]] = {}
    columns = [run.table.column(name).to_pylist() for name in ("id", "row", "turn", DROPPED_COLUMN)]
    for id_, row, turn, why in zip(*columns, strict=True):
        if id_ is not None and why is None:
            rows.setdefault(row, set()).add(turn)
    return rows


def copy_dropped(source: Path, to: Path) -> int:
    """Copy the dropped records, with one text as the reason of a record; return their number.

    A record with several responses has a list of reasons, and `datasets` wants one type in a column.

    Raises:
        StoreError: the run has no such file.
    """
    if not source.is_file():
        raise StoreError(f"`{source}` is missing", hint="run the same command again: stored answers are used")
    n = 0
    with source.open("rb") as lines, atomic(to, overwrite=True) as stream:
        for n, line in enumerate(lines, 1):  # noqa: B007
            stream.write(one_reason(line))
    if not n:
        with writing(to):
            to.unlink()  # an empty file has no columns, and `datasets` would not open it
    return n


def one_reason(line: bytes) -> bytes:
    """Return a line of `dropped.jsonl` with one text as its reason."""
    record: Any = json.loads(line)
    why = record.get("tithe_reason") if isinstance(record, dict) else None
    if not isinstance(why, list):
        return line
    record["tithe_reason"] = "; ".join(dict.fromkeys(map(str, why)))
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def find_license(run: FinishedRun, given: str | None, reporter: Reporter) -> str | None:
    """Return the licence that was given, or that the source's card on the hub names; say it if there is none."""
    if given is not None:
        return check_license(given)
    source = hub_source(run.record["settings"], run.record["dataset"])
    found = None if source is None else license_on_hub(source, run.record["dataset"].get("revision"))
    if found is None:
        where = "its card on the hub names none" if source else "a file does not say"
        reporter.say(f"note: the licence of the source is not known ({where}); `--license` names it")
    return found


def license_on_hub(name: str, revision: str | None) -> str | None:
    """Return the licence on the card of a data set on the hub; None if there is none, or the hub does not answer."""
    import importlib

    try:
        info = importlib.import_module("huggingface_hub").HfApi().dataset_info(name, revision=revision, timeout=20)
    except Exception:  # offline, or any error of the library: the licence is then left out, which is said
        return None
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data is not None else {}
    license = card.get("license")
    try:
        return check_license(license) if isinstance(license, str) else None
    except SettingsError:
        return None
