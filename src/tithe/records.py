"""The data types that flow from a file to a selection: frozen, checked, and without torch.

file -> `Example` -> `Ask` (a `PassSpec` and a readout) -> `Pass` (token ids) -> `Answer` -> `Scores` -> `Selection`
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import brief

SHOWN = 50  # characters of a text
NUMBER = re.compile(r" \([\d.]+(?: like [0-9a-f]{16}(?:-\d+)?)?\)$")  # and the example that it compares with
PassKind: TypeAlias = Literal["given", "alone", "shown", "rated"]
IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue, in OpenAI's terms.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: the text; may be empty beside tool calls.
        reasoning: the thinking before the content, if the record has it separately.
        tool_calls: each `{"type": "function", "function": {"name": str, "arguments": object}}`.
        name: in a tool's result, the function that gave it.
        tool_call_id: in a tool's result, the call that it answers.
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def __repr__(self) -> str:
        more = [name for name in ("reasoning", "tool_calls") if getattr(self, name)]
        return f"Message({self.role}: {brief(self.content, SHOWN)!r}{''.join(f', with {name}' for name in more)})"

    def as_dict(self) -> dict[str, Any]:
        """Return the message as chat templates read it, without keys that do not apply."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.name is not None:
            out["name"] = self.name
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        return out

    @property
    def plain(self) -> bool:
        """Whether it has only a role and a content."""
        return self.reasoning is None and not self.tool_calls and self.name is None and self.tool_call_id is None


@dataclass(frozen=True, slots=True)
class Example:
    """One response to be scored, with everything before it.

    Args:
        id: hash of the content, with `-1`, `-2`, ... for later occurrences of the same content; so it stays the same
            when the file is reordered.
        row: zero-based index of the input record; with `--turns all`, several examples share one.
        turn: index of the response among the record's messages.
        prompt: all messages before the response, a system message first if there is one.
        response: the assistant message that is scored.
        instruction: the record's instruction if it has the instruction/input/output shape, else None.
        input: the record's input in that shape; `""` or None without one.
        tools: schemas of the functions that the dialogue may call.
        columns: the record's other columns, for filters and strata.
        where: file and line, for messages.
        notes: parts of the record that are not read, or perhaps not as meant; a run counts and prints them.
    """

    id: str
    row: int
    turn: int
    prompt: tuple[Message, ...]
    response: Message
    instruction: str | None = None
    input: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        last = self.prompt[-1].content if self.prompt else ""
        texts = f"{brief(last, SHOWN)!r} -> {brief(self.response.content, SHOWN)!r}"
        return f"<Example {self.id}: {texts}, {len(self.prompt)} prompt message{'s' * (len(self.prompt) != 1)}>"


class ResponseNote(str):
    """A note on a record that matters only if its responses are trained on or scored."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that could not become an example, kept with the reason."""

    row: int
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why something has no value."""

    reason: str


@dataclass(frozen=True, slots=True)
class PassSpec:
    """A forward pass before tokenisation: which example it reads, and what comes before the response.

    Args:
        kind: what the pass contains: `given` prompt and response, the response `alone`, worked examples `shown` first,
            or a question by which the example is `rated`.
        example: the example whose response is read; in a `rated` pass, the one that the question is about.
        shots: worked examples of a `shown` pass.
        question: in a `rated` pass, the whole user message.
        options: in a `rated` pass, the possible replies; the first one is the response of the pass.
    """

    kind: PassKind
    example: Example
    shots: tuple[Example, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()

    @property
    def dialogue(self) -> Example:
        """The example whose tokens are in the pass; for a `rated` pass, one made of the question and a reply."""
        if self.kind != "rated":
            return self.example
        # Its id must differ for each question about an example, as encodings are kept by id.
        text = f"{self.question}\0{self.options[0]}"
        name = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        turns = (Message("user", self.question),)
        return Example(f"{self.example.id}?{name}", self.example.row, 1, turns, Message("assistant", self.options[0]))


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass in token ids. The response is `ids[start:]`.

    Args:
        ids: (tokens,) int32, the whole input of the model.
        start: index in `ids` of the first response token; 0 means that no context predicts it.
        cut_prompt: prompt tokens left out to fit the maximal length.
        cut_response: response tokens left out to fit the maximal length.
        cut_shots: tokens of worked examples left out to fit the maximal length.
        shots: length of the prefix up to the end of the worked examples; other passes may share this prefix.
    """

    ids: IntArray
    start: int
    cut_prompt: int = 0
    cut_response: int = 0
    cut_shots: int = 0
    shots: int = 0

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1 and self.ids.dtype == np.int32, self.ids.dtype
        assert 0 <= self.start < len(self.ids), f"start {self.start} of {len(self.ids)} tokens"
        assert 0 <= self.shots <= self.start, f"shots of {self.shots} tokens before {self.start}"

    @property
    def key(self) -> bytes:
        """Hash of the token ids and the response span, 16 bytes."""
        return hashlib.blake2b(self.ids.tobytes(), digest_size=16, key=self.start.to_bytes(8, "little")).digest()

    @property
    def response_tokens(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Ask:
    """A scorer's request: one readout of one pass."""

    spec: PassSpec
    readout: str


@dataclass(frozen=True, slots=True)
class Nll:
    """Negative log-likelihood of a response in one pass, in nats.

    Args:
        total: sum over the scored response tokens.
        tokens: number of scored tokens; one less than the response has if nothing comes before its first token.
        first: NLL of the first response token; NaN if that token was not scored.
        per_token: (tokens,) float32, if asked for.
    """

    total: float
    tokens: int
    first: float
    per_token: npt.NDArray[np.float32] | None = None

    @property
    def mean(self) -> float:
        """Nats per scored token."""
        return self.total / self.tokens if self.tokens else float("nan")

    def without_first(self) -> Nll:
        """Return the NLL without the first response token, to compare with a pass that could not score it."""
        if np.isnan(self.first):
            return self
        rest = None if self.per_token is None else self.per_token[1:]
        return Nll(self.total - self.first, self.tokens - 1, float("nan"), rest)


@dataclass(frozen=True, slots=True)
class Count:
    """Token counts of one pass; needs only a tokenizer."""

    prompt: int
    response: int


@dataclass(frozen=True, slots=True)
class Margin:
    """A head's verdict on a response's hidden states: the logit of `high` minus the logit of `low`.

    Args:
        value: any number; 0 is undecided. Unlike the probability, it does not saturate in float32.
    """

    value: float

    @property
    def probability(self) -> float:
        """Probability of `high`, between 0 and 1."""
        return 1 / (1 + math.exp(-self.value)) if self.value > -700 else 0.0  # exp overflows beyond 709


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector that represents a whole sequence.

    Args:
        values: (dim,) float32.
    """

    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Options:
    """The likelihood of each of several replies.

    Args:
        log_probs: (options,) float32, natural logarithms of probabilities over the whole vocabulary. A
            sum of probabilities far below 1 means that the model would rather reply something else.
    """

    log_probs: npt.NDArray[np.float32]

    @property
    def shares(self) -> FloatArray:
        """Probabilities renormalised over the options, (options,); they sum to 1."""
        values = self.log_probs.astype(np.float64)
        weights = np.exp(values - values.max())  # softmax; subtracting the maximum avoids underflow
        return np.asarray(weights / weights.sum())


@dataclass(frozen=True, slots=True)
class States:
    """Mean hidden states of parts of a pass.

    Args:
        values: (layers, parts, dim) float32.
    """

    values: npt.NDArray[np.float32]


Answer: TypeAlias = Nll | Count | Margin | Vector | Options | States


@dataclass(frozen=True)
class Scores:
    """One number per example under one scorer, in input order; higher is more valuable.

    Args:
        ids: distinct example ids.
        values: (examples,) float64; NaN for no score.
        problems: index -> reason, for exactly the NaN entries.
        columns: further columns for filters, strata and token budgets, e.g. `response_tokens`.
        by: name of the scorer.
        vectors: (examples, dim) float32 of length 1, for selectors that compare examples; else None.
    """

    ids: Sequence[str]
    values: FloatArray
    problems: Mapping[int, str] = field(default_factory=dict)
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    by: str = "score"
    vectors: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.values):
            raise ValueError(f"{len(self.ids)} ids but {len(self.values)} values of `{self.by}`")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"ids of `{self.by}` are not distinct")
        # No silent gaps: every NaN has a reason, and every reason a NaN.
        holes = set(np.flatnonzero(np.isnan(self.values)).tolist())
        if holes != set(self.problems):
            odd = sorted(holes ^ set(self.problems))[:5]
            raise ValueError(f"`{self.by}`: NaN and problems must be at the same indices, they differ at {odd}")
        for name, column in self.columns.items():
            if len(column) != len(self.ids):
                raise ValueError(f"column `{name}` has {len(column)} entries for {len(self.ids)} examples")
        if self.vectors is not None and (self.vectors.ndim != 2 or len(self.vectors) != len(self.ids)):
            raise ValueError(f"vectors of shape {self.vectors.shape} for {len(self.ids)} examples")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        there = self.values[~np.isnan(self.values)]
        span = f", {there.min():.4g} to {there.max():.4g}, median {np.median(there):.4g}" if len(there) else ""
        return f"<Scores: {self.by} of {len(self):,} examples{span}, {len(self.problems):,} without>"

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return zip(self.ids, self.values.tolist(), strict=True)


@dataclass(frozen=True)
class Selection:
    """A selection: every example is kept, or dropped for a reason.

    Args:
        kept: ids in input order.
        dropped: id -> reason, in input order.
        by: what chose, for messages.
    """

    kept: Sequence[str]
    dropped: Mapping[str, str]
    by: str = ""

    def __post_init__(self) -> None:
        both = set(self.kept) & set(self.dropped)
        if both:
            raise ValueError(f"{len(both)} examples both kept and dropped, e.g. `{next(iter(both))}`")

    def __repr__(self) -> str:
        by = f" by {brief(self.by, SHOWN)}" if self.by else ""
        return f"<Selection: {len(self.kept):,} kept, {len(self.dropped):,} dropped{by}>"

    def reasons(self) -> dict[str, int]:
        """Return reason -> number of dropped examples, most frequent first; a number at its end does not count."""
        counts: dict[str, int] = {}
        for reason in map(without_number, self.dropped.values()):
            counts[reason] = counts.get(reason, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def without_number(reason: str) -> str:
    """Return a reason without a number in brackets at its end, such as a probability, or a similarity to an example.

    >>> without_number("looks like cut (0.97)")
    'looks like cut'
    >>> without_number("near-duplicate (0.93 like 00c0ffee00c0ffee-1)")
    'near-duplicate'
    """
    return NUMBER.sub("", reason)
