"""Readouts: what is computed from a forward pass while its activations are in memory, and how it is stored.

A readout is one class in one file, registered in the entry point group `tithe.readouts`: what it stores (`version`,
`fields`), how it reads (`read`, `answer`; for hidden states also `layers`, `span`, `reader`), how a run makes it from
its name (`make`), and how to fabricate an answer without a model (`made_up`). The engine gives it one sequence at a
time as a `View`; what no readout needs is never computed.
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
    """What a readout may know about the run it is made for."""

    @property
    def model_name(self) -> str:
        """Return the model's name as the user wrote it."""

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the model's weights and tokenizer."""

    @property
    def dtype(self) -> str:
        """Return `fp32`, `bf16`, `fp16` or `fp8`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def renderer(self) -> Renderer: ...

    @property
    def weights(self) -> bool:
        """Tell whether the model will be loaded; a plan loads none."""

    def note(self, sentence: str) -> None:
        """Report something unusual that does not stop the run."""


@dataclass(frozen=True, slots=True)
class View:
    """One sequence after its forward pass.

    Args:
        pass_: the token ids and the response span.
        nll: (scored,) float32, -log p of each response token that has context, in nats.
        found: for a readout of hidden states, its reader's result.
    """

    pass_: Pass
    nll: npt.NDArray[np.float32]
    found: Any = None


class Readout(ABC):
    """A kind of answer: how it is computed, stored and returned."""

    name: str
    version: ClassVar[int]
    fields: ClassVar[Mapping[str, str | pa.DataType]]
    needs_model: ClassVar[bool] = True
    reads_nll: ClassVar[bool] = True
    travels: ClassVar[bool] = True  # whether it, and its answers, can be sent between processes

    @classmethod
    def make(cls, argument: str, run: RunFacts) -> Self:
        """Make the readout that a scorer requests as `name` or `name:argument`.

        Args:
            argument: the text after the colon; empty if there is none.
            run: facts about the run.

        Raises:
            SettingsError: an argument is given, and this readout takes none.
        """
        if argument:
            raise SettingsError(f"the readout `{cls.name}` takes no argument, but got `{argument}`")
        return cls()

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        """Return a fabricated answer, for plans and for testing scorers.

        Args:
            argument: as for `make`.
            tokens: of the response.
            mean: nats per token; higher is less likely.
            first: whether the first token is scored; it is not if nothing comes before it.
        """
        raise NotImplementedError(f"{cls.__name__} does not define `made_up`")

    @abstractmethod
    def read(self, view: View) -> dict[str, Any] | Problem:
        """Return the row to store, without its key, or the reason why there is none; reasons are not stored."""

    @abstractmethod
    def answer(self, row: Mapping[str, Any]) -> Answer:
        """Turn a stored row into the answer that scorers get."""

    def describe(self) -> dict[str, Any]:
        """Return what its numbers depend on besides the model, for the run record."""
        return {}

    def schema(self) -> pa.Schema:
        """Return the columns of its stored rows, the key included."""
        from tithe.engine.store.arrow import schema

        return schema(self.fields)


class NllReadout(Readout):
    """The summed NLL of a response, its first token's NLL, and the number of scored tokens."""

    name = "nll"
    version = 1
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {
        "total": "float64",
        "tokens": "int32",
        "first": "float32",
    }

    def read(self, view: View) -> dict[str, Any]:
        # Without a prompt the first response token has no context: the first NLL is then the second token's.
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
    """The readout `nll` with the NLL of every token: about 4 bytes per response token on disk."""

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
    """Return fabricated likelihoods as the engine gives them: without context the first token is not scored."""
    per_token = np.full(tokens, mean, dtype=np.float32)
    per_token[::2] *= np.float32(0.5)  # so that tokens differ, as in real answers
    scored = per_token if first else per_token[1:]
    opening = float(per_token[0]) if first and tokens else math.nan
    return Nll(float(scored.sum(dtype=np.float64)), len(scored), opening, scored)


class CountReadout(Readout):
    """The token counts of a pass, computed from its ids, so that no model is loaded."""

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


# The readouts that nearly every run uses; others are made when a scorer requests them.
READOUTS: dict[str, Readout] = {r.name: r for r in (NllReadout(), NllTokensReadout(), CountReadout())}
