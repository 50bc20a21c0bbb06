"""The probability of each of several replies, from the one hidden state that predicts the token where they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from tithe.data.render import EncodedExample, Renderer
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.forward.states import PendingStates, ReaderContext, StateReader, StateReadout
from tithe.engine.host import start_fetch, to_device
from tithe.engine.readouts.base import RunFacts, View
from tithe.errors import ModelError, SettingsError
from tithe.records import Answer, Example, IntArray, Message, Options, Pass, PassSpec, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 64  # of logits at a time
QUESTION = "How many?"  # any question will do: a reply's tokens do not depend on it


@dataclass(frozen=True)
class Replies:
    """Replies as the run's tokenizer and template write them; they differ in exactly one token.

    Args:
        first: token ids of the first reply, as in a pass.
        at: index of the token in which the replies differ.
        ids: that token of each reply, in order.
    """

    first: IntArray
    at: int
    ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return a name for the folder of answers, which depends on the tokenizer and the template."""
        text = f"{self.first[: self.at].tolist()} {list(self.ids)}"
        return f"options-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def find_replies(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Replies:
    """Encode the replies and find the token in which they differ.

    Raises:
        SettingsError: they do not differ in exactly one token, or the template or preset cannot ask questions.
    """
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise SettingsError(f"replies to choose from must be two or more, and all different, not {quoted(texts)}")
    encoded = [encode(renderer, text) for text in texts]
    ids = [one.response for one in encoded]
    same_length = len({len(one) for one in ids}) == 1
    # Tokens in which any two replies differ; ptp is the maximum minus the minimum over replies.
    differing = np.flatnonzero(np.ptp(np.stack(ids), axis=0)).tolist() if same_length else []
    if len(differing) != 1 or len({int(one[differing[0]]) for one in ids}) < len(ids):
        pieces = [" ".join(f"`{piece}`" for piece in tokenizer.convert_ids_to_tokens(one.tolist())) for one in ids]
        raise SettingsError(
            f"the replies {quoted(texts)} must differ in one token, but this tokenizer splits them into: "
            f"{'; '.join(pieces)}",
            hint="another model or `--template`; the scorer cannot read its replies with this one",
        )
    (at,) = differing
    return Replies(ids[0], at, tuple(int(one[at]) for one in ids))


def encode(renderer: Renderer, text: str) -> EncodedExample:
    """Encode one reply after a sample question."""
    about = Example("", 0, 1, (), Message("assistant", text))
    (encoded,) = renderer.encode([PassSpec("rated", about, question=QUESTION, options=(text,)).dialogue])
    if isinstance(encoded, Problem):
        raise SettingsError(f"the reply `{text}` cannot be written in this template: {encoded.reason}")
    renderer.build("rated", encoded)  # raises if the preset has no such passes
    return encoded


def quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


class OptionsReadout(StateReadout):
    """The log-probability of each reply's token, normalised over the whole vocabulary.

    Args:
        replies: the encoded replies.
    """

    version = 1
    fields: ClassVar[Mapping[str, Any]] = {"log_probs": "list<float32>"}

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.name = replies.name

    def layers(self, count: int) -> Sequence[int]:
        return (count - 1,)

    def span(self, pass_: Pass) -> range:
        """Return the token before the one that differs, as its state predicts that one."""
        first = self.replies.first
        assert np.array_equal(pass_.ids[pass_.start : pass_.start + len(first)], first), "not a pass with these replies"
        differs = pass_.start + self.replies.at
        return range(differs - 1, differs)

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        if model.head is None:
            raise ModelError(
                "the likelihood of single replies cannot be read from this model: "
                "its output head cannot be run apart from the rest",
                hint="take another model, or a scorer that reads likelihoods of responses, such as `ifd`",
            )
        return OptionsReader(model.head, to_device(np.array(self.replies.ids), model.device))

    def read(self, view: View) -> dict[str, Any] | Problem:
        return view.found if isinstance(view.found, Problem) else {"log_probs": view.found}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Options(np.asarray(row["log_probs"], dtype=np.float32))

    @classmethod
    def make(cls, argument: str, run: RunFacts) -> Self:
        """Make the readout from comma-separated replies, with the run's tokenizer and template."""
        return cls(find_replies(run.renderer, run.tokenizer, argument.split(",")))

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        """Return fabricated log-probabilities that rise from reply to reply, or are equal if `mean` is 0."""
        return Options(np.log(np.linspace(0.01, 0.01 + mean / 400, argument.count(",") + 1)).astype(np.float32))


class OptionsReader:
    """A reader that computes the log-probabilities of the replies' tokens."""

    def __init__(self, head: OutputHead, ids: torch.Tensor) -> None:
        self.head = head
        self.ids = ids

    def take(self, layer: int, rows: torch.Tensor) -> None:
        # rows: (passes, dim), one state per pass
        self.found = torch.cat([self.log_probs(some) for some in torch.split(rows, ROWS)])

    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities in float32: (rows, dim) -> (rows, options)."""
        # Always the same number of rows, as a product of another shape may be summed in another order.
        logits = self.head.logits(torch.nn.functional.pad(states, (0, 0, 0, ROWS - len(states))))
        return logits[: len(states)].float().log_softmax(dim=1).index_select(1, self.ids.to(logits.device))

    def results(self) -> PendingStates:
        values = start_fetch(self.found)
        return lambda: list(values())
