"""Data that Python holds: a list of dicts, a `datasets.Dataset`, a DataFrame of pandas or polars, an Arrow table.

Settings name a data set by a text. Held data gets such a text here, by which everything in this process opens it, for
as long as somebody holds it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any
from weakref import WeakValueDictionary

from tithe.data.containers import ArrowConverter, Row, without_nulls
from tithe.data.hub import json_columns, plain_record
from tithe.errors import DataError, SettingsError
from tithe.foreign import foreign

BATCH = 512  # records converted at once
Record = tuple[Any, tuple[str, ...]]  # and notes on it

_HELD: WeakValueDictionary[str, HeldRows] = WeakValueDictionary()
_MEDIA = {"Image", "Audio", "Video", "Pdf"}  # features of `datasets` that reading would decode


@dataclass(frozen=True, eq=False)
class HeldRows:
    """The records of an object that Python holds, converted one batch at a time.

    Args:
        name: by which settings refer to it, such as `<DataFrame of 300 rows>`.
        data: the object.
        records: yields its records as plain Python values, with notes on them.
        take: returns the same kind of object with only these rows; None if it has no such way.
        mutable: whether it can change while a run reads it.
    """

    name: str
    data: Any = field(repr=False)
    records: Callable[[], Iterator[Record]] = field(repr=False)
    take: Callable[[Sequence[int]], Any] | None = field(default=None, repr=False)
    mutable: bool = True

    def rows(self) -> Iterator[Row]:
        """Yield all records in order.

        Raises:
            DataError: a value cannot be converted.
        """
        with foreign(DataError, f"{self.name} cannot be read"):
            for number, (record, notes) in enumerate(self.records(), 1):
                yield Row(f"{self.name}: record {number}", record, notes=notes)

    def digest(self) -> str:
        """Return a hash of all records, the same whatever object holds them."""
        state = hashlib.blake2b(digest_size=16)
        for row in self.rows():
            state.update(json.dumps(row.record, default=str).encode() + b"\n")
        return state.hexdigest()


def hold(data: object) -> HeldRows:
    """Give data a name, and let this process open it by that name while the result is held.

    Raises:
        SettingsError: no data, or an object of another kind; the message has its type, not its content.
    """
    same = next((held for held in _HELD.values() if held.data is data), None)
    if same is not None:
        return same
    found = read_object(data)
    name, number = found.name, 2
    while name in _HELD:
        name, number = f"{found.name[:-1]}, {number}>", number + 1
    held = HeldRows(name, data, found.records, found.take, found.mutable)
    _HELD[name] = held
    return held


def find_held(name: str) -> HeldRows | None:
    """Return the held data of this name.

    Raises:
        DataError: it looks like such a name, and nobody holds that data here.
    """
    if (held := _HELD.get(name)) is not None or not (name.startswith("<") and name.endswith(">")):
        return held
    raise DataError(f"`{name[1:-1]}` was held by Python, and is not on disk", hint="give the data again, from Python")


def is_name(data: object) -> bool:
    """Tell whether this names data, instead of being it: a path, or several of them."""
    several = isinstance(data, list | tuple) and len(data) > 0 and all(isinstance(one, str | PathLike) for one in data)
    return several or isinstance(data, str | PathLike)


def read_object(data: object) -> HeldRows:
    """Return how to read an object; packages are looked up among those that are imported, as the object's must be."""
    kinds = (("datasets", _from_datasets), ("pandas", _from_pandas), ("polars", _from_polars))
    for package, reader in kinds:
        module = sys.modules.get(package)
        if module is not None and (found := reader(module, data)) is not None:
            return found
    if hasattr(data, "__arrow_c_stream__"):
        import pyarrow as pa

        table = pa.table(data)
        return HeldRows(_named("Table", len(table)), data, partial(_arrow, table), table.take, mutable=False)
    if isinstance(data, list | tuple):
        return HeldRows(
            _named(type(data).__name__, len(data), "record"), data, partial(_plain, data), partial(_pick, data)
        )
    raise _refusal(data)


def _named(kind: str, n: int, unit: str = "row") -> str:
    return f"<{kind} of {n:,} {unit}{'s' * (n != 1)}>"


def _refusal(data: object) -> SettingsError:
    kind = type(data).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    hint = "records are a list of dicts, a `datasets.Dataset`, a DataFrame or an Arrow table"
    if isinstance(data, Mapping):
        hint = "a list of records; of columns: `datasets.Dataset.from_dict(...)`"
    elif isinstance(data, Iterator):
        hint = "it is read more than once: give `list(...)` of it"
    return SettingsError(f"a data set is a path, a hub id or records, not {article} {kind}", hint=hint)


def _from_datasets(datasets: Any, data: Any) -> HeldRows | None:
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise SettingsError(
            f"a `{type(data).__name__}` has several splits: {', '.join(f'`{name}`' for name in data)}",
            hint="give one of them: `data['train']`",
        )
    if isinstance(data, datasets.IterableDataset):
        raise SettingsError(
            "an `IterableDataset` is not held but streamed, and it is read more than once",
            hint="give its hub id or its files, which are streamed, or a `datasets.Dataset`",
        )
    if not isinstance(data, datasets.Dataset):
        return None
    if data.format["type"] == "custom":
        raise SettingsError(
            "this `Dataset` has a transform, which would be left out", hint="apply it with `data.map(...)`"
        )
    return HeldRows(_named("Dataset", len(data)), data, partial(_hub_rows, data), data.select, mutable=False)


def _hub_rows(data: Any) -> Iterator[Record]:
    plain = data.with_format(None)
    for name, feature in data.features.items():
        if type(feature).__name__ in _MEDIA:  # no scorer reads pictures; decoding them takes packages and time
            plain = plain.cast_column(name, type(feature)(decode=False))
    exact = json_columns(plain)
    return (plain_record(record, exact) for record in plain)


def _from_pandas(pandas: Any, data: Any) -> HeldRows | None:
    if not isinstance(data, pandas.DataFrame):
        return None
    twice = data.columns[data.columns.duplicated()]
    if len(twice):
        raise DataError(
            f"the DataFrame has two columns named `{str(twice[0])[:40]}`", hint="rename or remove one of them"
        )
    return HeldRows(
        _named("DataFrame", len(data)), data, partial(_pandas_rows, data, pandas), partial(_pandas_take, data)
    )


def _pandas_rows(data: Any, pandas: Any) -> Iterator[Record]:
    import numpy as np

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):  # from Parquet: its structs have a null for every absent field
            return [without_nulls(plain(one)) for one in value]
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        value = value.item() if isinstance(value, np.generic) else value
        return None if value is pandas.NA or value is pandas.NaT or value != value else value  # NaN is pandas' null

    names = [str(name) for name in data.columns]
    for begin in range(0, len(data), BATCH):
        for row in data.iloc[begin : begin + BATCH].itertuples(index=False, name=None):
            yield dict(zip(names, map(plain, row), strict=True)), ()


def _pandas_take(data: Any, rows: Sequence[int]) -> Any:
    return data.iloc[list(rows)]


def _from_polars(polars: Any, data: Any) -> HeldRows | None:
    if isinstance(data, polars.LazyFrame):
        raise SettingsError("a `LazyFrame` is not computed yet, and it is read more than once", hint="`data.collect()`")
    if not isinstance(data, polars.DataFrame):
        return None
    name = _named("DataFrame", len(data))
    return HeldRows(name, data, partial(_arrow, data.to_arrow()), lambda rows: data[list(rows)], mutable=False)


def _arrow(table: Any) -> Iterator[Record]:
    convert = ArrowConverter(table.schema, "the table")
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from map(convert.record, batch.to_pylist())


def _plain(data: Sequence[Any]) -> Iterator[Record]:
    return ((record, ()) for record in data)


def _pick(data: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [data[row] for row in rows]
