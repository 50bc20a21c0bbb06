"""From examples to vectors: what is embedded, and what an encoder is."""

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
    """What of an example is embedded: never the response, never a template, which would make all prompts alike.

    Args:
        example: with the record's own instruction and input, these: the instruction, a newline, the input.
        which: else `last-user` is the last user turn's text, or where there is none the last message's that is no
            assistant's; `dialogue` is all messages before the response, a system message too, blank lines between.

    Returns:
        The text; empty where the example has no prompt.
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
    """The last user turn, or what stands in its place."""
    asked = [message for message in example.prompt if message.role == "user"]
    asked = asked or [message for message in example.prompt if message.role != "assistant"]
    return asked[-1].content if asked else ""


@dataclass(frozen=True)
class TextSettings:
    """What every encoder of texts can be told.

    Args:
        text: what of a dialogue is embedded, see `prompt_text`.
    """

    text: Which = "last-user"


@dataclass(frozen=True)
class Encoded:
    """Some texts' vectors.

    Args:
        index: which, in the list that was handed over.
        vectors: (texts, dim) float32, not yet of length 1; zeros where the encoder knows nothing of a text.
        cut: (texts,) tokens that were left out to fit the maximal length.
    """

    index: Sequence[int]
    vectors: Vectors
    cut: Sequence[int]


class Encoder(ABC):
    """Something that gives examples vectors.

    Args:
        name: the spec, as the user wrote it.
    """

    libraries: ClassVar[Sequence[str]] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything besides the text that a vector depends on by more than rounding."""

    def describe(self) -> dict[str, Any]:
        """For the run record: the identity, the other settings, the versions of the libraries that compute."""
        return {
            "encoder": self.name,
            "normalize": "unit length",
            **self.identity(),
            "versions": {name: version(name) for name in self.libraries},
        }


class TextEncoder(Encoder):
    """An encoder of texts, each by itself: the same text has the same vector in every data set."""

    settings: TextSettings

    @cached_property
    def key(self) -> str:
        """16 hex digits that name this encoder with its settings: vectors under the same key may be mixed."""
        facts = json.dumps(self.identity(), sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def describe(self) -> dict[str, Any]:
        return asdict(self.settings) | super().describe()

    def text(self, example: Example) -> str:
        return prompt_text(example, self.settings.text)

    @abstractmethod
    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[Encoded]:
        """The vectors of texts, some at a time.

        Batches are cut from all texts and only then those that are there already are left out: a run that was
        stopped between two batches goes on with exactly the batches that it would have run.

        Args:
            texts: none of them empty, longest first.
            have: which of them are not wanted.
        """


class PlacedEncoder(Encoder):
    """Vectors that belong to examples, not to texts."""

    @abstractmethod
    def look_up(self, examples: Sequence[Example]) -> Vectors:
        """(examples, dim) float32, not yet of length 1."""


class OwnModel(Protocol):
    """What `self` reads with: the scoring model, loaded when it is first asked for."""

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
