"""Readouts: what is read from a forward pass while its activations are there, and how it is stored.

A readout is a name, a version of its numerics, a parquet schema, and two small functions. The engine hands it one
sequence at a time as a `View`; what it does not touch is never computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tithe.records import Answer, Count, Nll, Pass, Problem

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class View:
    """One sequence after its forward pass.

    Args:
        pass_: the token ids and the response span.
        nll: (scored,) float32, -log p of each response token that has context, in nats.
        found: of a readout of hidden states, what its reader has made of them.
    """

    pass_: Pass
    nll: npt.NDArray[np.float32]
    found: Any = None


class Readout(ABC):
    """How one kind of answer is read, stored and given back."""

    name: str
    version: ClassVar[int]
    fields: ClassVar[Mapping[str, str | pa.DataType]]
    needs_model: ClassVar[bool] = True
    reads_nll: ClassVar[bool] = True
    travels: ClassVar[bool] = True  # to a process on another device and its answers back; else it is read in this one

    @abstractmethod
    def read(self, view: View) -> dict[str, Any] | Problem:
        """The row that is stored, without its key; or why there is none, which is not stored."""

    @abstractmethod
    def answer(self, row: Mapping[str, Any]) -> Answer:
        """A stored row as scorers read it."""

    def describe(self) -> dict[str, Any]:
        """What its numbers depend on besides the model, for the run record."""
        return {}

    def schema(self) -> pa.Schema:
        from tithe.engine.store.arrow import schema

        return schema(self.fields)


class NllReadout(Readout):
    """Summed response NLL, its first token's share, and how many tokens were scored."""

    name = "nll"
    version = 1
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {
        "total": "float64",
        "tokens": "int32",
        "first": "float32",
    }

    def read(self, view: View) -> dict[str, Any]:
        scored = view.pass_.start > 0 and len(view.nll) > 0
        return {
            "total": float(view.nll.sum(dtype=np.float64)),
            "tokens": len(view.nll),
            "first": float(view.nll[0]) if scored else float("nan"),
        }

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Nll(float(row["total"]), int(row["tokens"]), float(row["first"]))


class NllTokensReadout(NllReadout):
    """The same with every token's NLL kept: about 4 bytes a response token on disk."""

    name = "nll_tokens"
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {**NllReadout.fields, "per_token": "list<float32>"}

    def read(self, view: View) -> dict[str, Any]:
        return {**super().read(view), "per_token": view.nll}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        tokens = np.asarray(row["per_token"], dtype=np.float32)
        return Nll(float(row["total"]), int(row["tokens"]), float(row["first"]), tokens)


class CountReadout(Readout):
    """Token counts; answered from the ids alone, so no model is loaded for it."""

    name = "count"
    version = 1
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {}
    needs_model = False
    reads_nll = False

    def read(self, view: View) -> dict[str, Any]:
        return {}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        raise AssertionError("counts are never stored")

    @staticmethod
    def count(pass_: Pass) -> Count:
        return Count(prompt=pass_.start, response=pass_.response_tokens)


READOUTS: dict[str, Readout] = {r.name: r for r in (NllReadout(), NllTokensReadout(), CountReadout())}
