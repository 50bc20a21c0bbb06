"""Readouts: what is read from a forward pass while its activations are there, and how it is stored.

A readout is one class in one file, behind the entry point group `tithe.readouts`: what it stores (`version`, `fields`),
how it is read (`read`, `answer`; of hidden states also `layers`, `span`, `reader`), how a run makes it of its name
(`make`), and how it is made up where no model is there (`made_up`). The engine hands it one sequence at a time as a
`View`; what it does not touch is never computed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from tithe.data.render import Renderer
from tithe.errors import SettingsError
from tithe.records import Answer, Count, Nll, Pass, Problem

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase


class RunFacts(Protocol):
    """What a readout may know of the run that it is made for."""

    @property
    def model_name(self) -> str:
        """As the user named it."""

    @property
    def fingerprint(self) -> str:
        """Of the model's weights and tokenizer."""

    @property
    def dtype(self) -> str:
        """`fp32`, `bf16`, `fp16` or `fp8`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def renderer(self) -> Renderer: ...

    @property
    def weights(self) -> bool:
        """Whether the model will be loaded; a plan loads none."""

    def note(self, sentence: str) -> None:
        """Say something odd that does not stop the run."""


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

    @classmethod
    def make(cls, argument: str, run: RunFacts) -> Self:
        """Make the readout that a scorer asks for as `name` or `name:argument`.

        Args:
            argument: what stands after the colon; empty where there is none.
            run: what may be known of the run.

        Raises:
            SettingsError: there is an argument, and this readout takes none.
        """
        if argument:
            raise SettingsError(f"the readout `{cls.name}` takes no argument, and is given `{argument}`")
        return cls()

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        """Return an answer out of nothing: for plans, and for the contract of scorers.

        Args:
            argument: as of `make`.
            tokens: of the response.
            mean: nats per token; higher is less likely.
            first: whether the first token is scored; it is not where nothing stands before it.
        """
        raise NotImplementedError(f"{cls.__name__} says nothing of how its answers are made up")

    @abstractmethod
    def read(self, view: View) -> dict[str, Any] | Problem:
        """Return the row that is stored, without its key; or why there is none, which is not stored."""

    @abstractmethod
    def answer(self, row: Mapping[str, Any]) -> Answer:
        """Return a stored row as scorers read it."""

    def describe(self) -> dict[str, Any]:
        """Return what its numbers depend on besides the model, for the run record."""
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

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        return replace(nll_of(tokens, mean, first), per_token=None)


class NllTokensReadout(NllReadout):
    """As `nll`, with every token's NLL kept: about 4 bytes a response token on disk."""

    name = "nll_tokens"
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {**NllReadout.fields, "per_token": "list<float32>"}

    def read(self, view: View) -> dict[str, Any]:
        return {**super().read(view), "per_token": view.nll}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        tokens = np.asarray(row["per_token"], dtype=np.float32)
        return Nll(float(row["total"]), int(row["tokens"]), float(row["first"]), tokens)

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        return nll_of(tokens, mean, first)


def nll_of(tokens: int, mean: float, first: bool) -> Nll:
    """Return likelihoods as the engine gives them: without context one token fewer is scored than there are."""
    per_token = np.full(tokens, mean, dtype=np.float32)
    per_token[::2] *= np.float32(0.5)
    scored = per_token if first else per_token[1:]
    opening = float(per_token[0]) if first and tokens else math.nan
    return Nll(float(scored.sum(dtype=np.float64)), len(scored), opening, scored)


class CountReadout(Readout):
    """Token counts, answered from the ids alone, so no model is loaded for it."""

    name = "count"
    version = 1
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {}
    needs_model = False
    reads_nll = False

    def read(self, view: View) -> dict[str, Any]:
        return {}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        raise AssertionError("counts are never stored")

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        return Count(prompt=12, response=tokens)

    @staticmethod
    def count(pass_: Pass) -> Count:
        return Count(prompt=pass_.start, response=pass_.response_tokens)


# What nearly every run reads; the others are made when a scorer asks for them.
READOUTS: dict[str, Readout] = {r.name: r for r in (NllReadout(), NllTokensReadout(), CountReadout())}
