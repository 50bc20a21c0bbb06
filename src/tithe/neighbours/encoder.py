"""Define an encoder, and which text of an example it embeds."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine

Vectors: TypeAlias = npt.NDArray[np.float32]
Which: TypeAlias = Literal["last-user", "dialogue"]
FILE = "file:"


def prompt_text(example: Example, which: Which = "last-user") -> str:
    """Return the text of an example that is embedded: never the response, nor a template that all prompts share.

    A record with its own instruction and input gives the instruction, a newline, the input.

    Args:
        example: the example.
        which: `last-user` is the last user turn, or if there is none, the last message that is not the assistant's;
            `dialogue` is all messages before the response, a system message included, with blank lines between.

    Returns:
        The text; empty if the example has no prompt.
    """
    if example.instruction is None:
        last = own_words(example)
    else:
        last = f"{example.instruction}\n{example.input}" if example.input else example.instruction
    if which == "last-user":
        return last
    before = example.prompt[:-1] if example.instruction is not None else example.prompt
    texts = [message.content for message in before] + ([last] if example.instruction is not None else [])
    return "\n\n".join(text for text in texts if text)


def own_words(example: Example) -> str:
    """Return the last user turn, or else the last message that is not the assistant's."""
    asked = [message for message in example.prompt if message.role == "user"]
    asked = asked or [message for message in example.prompt if message.role != "assistant"]
    return asked[-1].content if asked else ""


@dataclass(frozen=True)
class TextSettings:
    """Settings of every text encoder.

    Args:
        text: which part of a dialogue to embed, see `prompt_text`.
    """

    text: Which = "last-user"


@dataclass(frozen=True)
class TextVectors:
    """The vectors of some texts.

    Args:
        index: the texts' positions in the list given to the encoder.
        vectors: (texts, dim) float32, not yet of length 1; zeros where the encoder knows nothing about a text.
        cut: (texts,) tokens that were cut to fit the maximal length.
    """

    index: Sequence[int]
    vectors: Vectors
    cut: Sequence[int]


class Encoder(ABC):
    """Makes vectors of examples.

    Args:
        name: the spec, as the user wrote it.
    """

    libraries: ClassVar[Sequence[str]] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything besides the text that a vector depends on by more than rounding."""

    def describe(self) -> dict[str, Any]:
        """Return what the run record says: the identity, other settings, and library versions."""
        return {
            "encoder": self.name,
            "normalize": "unit length",
            **self.identity(),
            "versions": {name: version(name) for name in self.libraries},
        }


class TextEncoder(Encoder):
    """Encodes each text by itself."""

    settings: TextSettings

    @cached_property
    def key(self) -> str:
        """Hash the identity to 16 hex digits: vectors under the same key may be mixed."""
        facts = json.dumps(self.identity(), sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def describe(self) -> dict[str, Any]:
        return asdict(self.settings) | super().describe()

    def text(self, example: Example) -> str:
        return prompt_text(example, self.settings.text)

    @abstractmethod
    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[TextVectors]:
        """Yield the vectors of texts, batch by batch.

        Batches are formed from all texts before those already stored are left out, so an interrupted run goes on with
        exactly the batches that it would have had.

        Args:
            texts: none of them empty, longest first.
            have: which of them are stored already and to be left out.
        """


class PlacedEncoder(Encoder):
    """Looks up vectors by example, not by text."""

    @abstractmethod
    def look_up(self, examples: Sequence[Example]) -> Vectors:
        """Return the examples' vectors: (examples, dim) float32, not yet of length 1."""


class ScoringModel(Protocol):
    """The scoring model, which the encoder `self` reads with; loaded on first use."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def window(self) -> int | None: ...
