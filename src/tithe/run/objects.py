"""Give records of a selection as Python objects: a list, a `datasets.Dataset`, a DataFrame, an Arrow table.

Data that came from Python goes back as the same kind of object by that object's own way to take rows, so that types and
index stay and nothing is copied to disk.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tithe.data.dataset import Dataset
from tithe.data.in_memory import HeldRows
from tithe.data.writers import REASON, Reason, infer_tables, record_or_raw
from tithe.errors import MissingExtraError, OutputError
from tithe.extras import install_hint

if TYPE_CHECKING:
    import pyarrow as pa

Part: TypeAlias = Literal["kept", "dropped"]
RAW = "tithe_raw"


@dataclass(frozen=True)
class ChosenRecords:
    """Records of a data set, unchanged, or with the reasons for which they were dropped.

    Args:
        dataset: the data set.
        rows: their rows.
        reasons: row -> why it was dropped; None for kept records.
    """

    dataset: Dataset
    rows: Collection[int]
    reasons: Mapping[int, Reason] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records in input order; a dropped one with `tithe_reason`, and one that is no record as text."""
        if self.reasons is None:
            return (record for row, record in self.dataset.records() if row in self.rows)
        said = {row: why if isinstance(why, str) else "; ".join(why) for row, why in self.reasons.items()}
        return (
            record_or_raw(row) | {REASON: said[number]} for number, row in self.dataset.rows() if number in self.rows
        )

    def own_kind(self, package: str) -> Any:
        """Return these rows of the object that the data came from; None if it is of another package."""
        origin = self.dataset.origin
        if self.reasons is not None or not isinstance(origin, HeldRows) or origin.take is None:
            return None
        return origin.take(sorted(self.rows)) if type(origin.data).__module__.partition(".")[0] == package else None

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table.

        Raises:
            OutputError: the records do not fit one schema.
        """
        import pyarrow as pa

        if (own := self.own_kind("pyarrow")) is not None:
            return own
        records = [record | {RAW: raw_text(record[RAW])} if RAW in record else record for record in self]
        try:
            return pa.concat_tables(infer_tables(lambda: iter(records), pa))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            words = next(iter(str(error).splitlines()), "")
            raise OutputError(
                f"the records do not fit the columns of a table: {words}", hint="`to_list()` gives them as they are"
            ) from None

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame."""
        pandas = load_package("pandas")
        own = self.own_kind("pandas")
        return pandas.DataFrame(list(self)) if own is None else own

    def to_polars(self) -> Any:
        """Return a polars DataFrame."""
        polars = load_package("polars")
        own = self.own_kind("polars")
        return polars.from_arrow(self.to_arrow()) if own is None else own

    def to_dataset(self) -> Any:
        """Return a `datasets.Dataset`, in memory."""
        datasets = load_package("datasets", install_hint("hub"))
        own = self.own_kind("datasets")
        return datasets.Dataset(self.to_arrow()) if own is None else own


def raw_text(value: Any) -> str:
    """Return a row that is no record as text, since a column of a table holds one type."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def load_package(name: str, hint: str | None = None) -> Any:
    """Import the package of an object that was asked for.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"this needs the package `{name}`", hint=hint or f"pip install {name}") from None
