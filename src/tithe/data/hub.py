"""Stream a data set from the Hugging Face hub; needs the extra `tithe[hub]`."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.data.containers import RENDERED_FIELDS, Row, null_note, without_nulls
from tithe.errors import DataError, MissingExtraError
from tithe.extras import install_hint

DATA_SUFFIXES = (".parquet", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".gz", ".zst", ".arrow")


def _import_datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError(
            "reading a data set from the hub needs the package `datasets`", hint=install_hint("hub")
        ) from None


@dataclass(frozen=True)
class HubData:
    """One split of a data set on the hub.

    Args:
        name: `owner/name`.
        split: which part of it.
        revision: the commit that is read; None if the hub did not report it.
    """

    name: str
    split: str
    revision: str | None

    def rows(self) -> Iterator[Row]:
        """Yield all records in order.

        Raises:
            DataError: the data set cannot be loaded from the hub.
        """
        datasets = _import_datasets()
        try:
            stream = datasets.load_dataset(self.name, split=self.split, streaming=True, revision=self.revision)
            exact = json_columns(stream)
            for number, record in enumerate(stream, 1):
                plain, notes = plain_record(record, exact)
                yield Row(f"{self.name}[{self.split}]: record {number}", plain, notes=notes)
        except GeneratorExit:  # the caller stopped reading early, e.g. at a limit
            raise
        except Exception as error:  # `datasets` and what it calls raise dozens of unrelated classes
            raise _load_error(self.name, self.split, error) from error

    def digest(self) -> str:
        """Return a hash of name, commit and split; the records are hashed too if the commit is unknown."""
        state = hashlib.blake2b(digest_size=16)
        state.update(json.dumps([self.name, self.revision, self.split]).encode())
        if self.revision is None:
            for row in self.rows():
                state.update(json.dumps(row.record, sort_keys=True, default=str).encode())
        return state.hexdigest()

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of its data files: those with the split in their names, or all if none has it.

        Return nothing if the hub does not report them, e.g. without a connection.
        """
        try:
            hub = importlib.import_module("huggingface_hub").HfApi()
            info = hub.dataset_info(self.name, revision=self.revision, timeout=20, files_metadata=True)
        except Exception:  # offline, or any library error: the sizes serve only an estimate
            return {}
        files = {one.rfilename: one.size for one in info.siblings or () if one.size}
        data = {name: size for name, size in files.items() if Path(name).suffix in DATA_SUFFIXES}
        return {name: size for name, size in data.items() if self.split in name} or data


def plain_record(record: dict[str, Any], exact: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a record of `datasets` without nulls in its structs, and notes about nulls that were dropped.

    Args:
        record: as `datasets` gives it.
        exact: columns where a null is a real null.
    """
    plain = {name: value if value is None or name in exact else without_nulls(value) for name, value in record.items()}
    return plain, _null_notes(record, plain)


def json_columns(stream: Any) -> frozenset[str]:
    """Return the columns that `datasets` stores as JSON, where a null is a real null."""
    features = getattr(stream, "features", None) or {}
    return frozenset(name for name, feature in features.items() if "Json(" in repr(feature))


def _null_notes(record: dict[str, Any], plain: dict[str, Any]) -> tuple[str, ...]:
    """Return notes about nulls dropped from fields that templates render verbatim, such as tool arguments."""
    before, after = list(_rendered_in(record)), list(_rendered_in(plain))
    if before == after:
        return ()
    names = {name for (name, one), (_, other) in zip(before, after, strict=False) if one != other}
    return tuple(map(null_note, sorted(names)))


def _rendered_in(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the fields that templates render verbatim; nulls are skipped."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name in RENDERED_FIELDS and one is not None:
                yield name, one
            else:
                yield from _rendered_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _rendered_in(one)


def open_hub(name: str, split: str) -> HubData:
    """Return the data set pinned to its current commit, so that a later pass reads the same records."""
    _import_datasets()
    try:
        info = importlib.import_module("huggingface_hub").HfApi().dataset_info(name, timeout=20)
    except Exception:  # offline, perhaps with a cached copy: `rows` reports the problem if there is one
        return HubData(name, split, None)
    return HubData(name, split, info.sha)


def _load_error(name: str, split: str, error: Exception) -> DataError:
    words = next(iter(str(error).splitlines()), "") or type(error).__name__
    message = f"no file `{name}` here, and its split `{split}` could not be read from the hub: {words[:300]}"
    hint = "check the spelling, the split, your connection and, if it is gated, `hf auth login`"
    return DataError(message, hint=hint)
