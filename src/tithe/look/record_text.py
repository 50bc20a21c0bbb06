"""Print one record as the model reads it: a margin says what each line is to the model, colours what a token costs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from rich.console import Console
from rich.style import Style
from rich.table import Table as Grid
from rich.text import Text

from tithe.errors import brief
from tithe.look.shown_record import Part, ShownPass, ShownScore, Token, finite
from tithe.printable import counted, printable
from tithe.report.terminal import SafeConsole

Colouring: TypeAlias = Literal["difference", "given", "alone"]
COLOURINGS: tuple[str, ...] = get_args(Colouring)
NEWLINE = "↵"  # at the end of a line that ends in the text too; other lines are only wrapped
SPECIAL = ("⟦", "⟧")
STRONGEST = 10
WIDTH = 100  # of a text that is not printed to a terminal
SHORTEST = 20  # columns for a record's text, however narrow the terminal
LABEL = 9
LABELS = {"shot": "example", "tail": "after it"}
BARS = {"scored": "┃", "cut": "╎", "unscored": "╎"}
STYLES = {"scored": "bold", "cut": "dim strike", "after it": "dim", "lead": "dim"}
SATURATED: dict[str, float] = {"difference": 4.0, "given": 8.0, "alone": 8.0}  # nats of the full colour
FAINTEST = 0.06  # of the full colour; less is left white
HARDER, EASIER = (230, 120, 60), (95, 160, 235)
LEGENDS = {
    "difference": "orange: the prompt makes the token harder; blue: easier",
    "given": "the darker, the less expected after the prompt",
    "alone": "the darker, the less expected without the prompt",
}


def print_record(
    record: ShownRecord,
    out: Console,
    *,
    colour: str = "difference",
    strongest: int = STRONGEST,
    every_token: bool = False,
) -> None:
    """Print a record.

    Args:
        record: the record.
        out: where to.
        colour: which loss the tokens are coloured by; see `COLOURINGS`.
        strongest: how many tokens to list, those whose loss the prompt changes most.
        every_token: list all scored tokens instead.
    """
    for sentence in heading(record):
        say(out, sentence)
    out.print()
    print_tokens(out, record.tokens, colour, record.tokenised and record.problem is None)
    for one in record.passes:
        if one.texts:
            say(out, "")
            say(out, f"pass `{one.kind}`, for {', '.join(one.asked_by)}: {pass_size(one)}")
            print_tokens(out, one.texts, colour, scored=True)
    if record.has_losses:
        out.print()
        say(out, f"colours: {LEGENDS[colour]}")
        print_losses(out, record, strongest, every_token)
    for score in record.scores:
        out.print()
        print_score(out, score)


def plain_text(record: ShownRecord, width: int = WIDTH) -> str:
    """Return what `print_record` prints, without colours."""
    out = SafeConsole(file=io.StringIO(), width=width, color_system=None, highlight=False)
    print_record(record, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().rstrip("\n")


def say(out: Console, sentence: str) -> None:
    """Print a sentence literally and without wrapping it."""
    out.print(Text(printable(sentence)), soft_wrap=True)


def heading(record: ShownRecord) -> Iterator[str]:
    """Yield the sentences above the text: what it is, how it is rendered, what is counted, cut and left out."""
    several = f" of {', '.join(map(str, record.turns))}" if len(record.turns) > 1 else ""
    yield f"record {record.row}, turn {record.turn}{several}, id {record.id}; {record.where or record.source}"
    if record.model is not None:
        dtype = f" in {record.model['dtype']}" if "dtype" in record.model else ", its tokenizer only"
        yield f"model {record.model['name']}{dtype}"
    if record.template:
        yield f"template {', '.join(rendering(record))}"
    if record.problem is not None:
        yield f"dropped, the model cannot read it: {record.problem}"
    if record.tokenised:
        yield f"tokens: {counts(record)}"
    for score in record.scores:
        if score.problem is not None and score.problem != record.problem:
            yield f"dropped if {score.name} ranks: {score.problem}"
        if score.dropped is not None:
            yield f"dropped by `tithe select` if {score.name} ranks, unless `--drop` says otherwise: {score.dropped}"
    for note in record.notes:
        yield f"note: {note}"


def rendering(record: ShownRecord) -> Iterator[str]:
    """Yield the template's name and the settings that decide about tokens."""
    t = record.template
    yield str(t.get("template"))
    if "max_length" in t:
        yield f"max length {t['max_length']:,}"
        yield (
            f"if longer, cut the {t['truncation']}"
            if t["truncation"] in ("prompt", "response")
            else ("longer ones are dropped" if t["truncation"] == "problem" else f"cut as `{t['truncation']}` does")
        )
        yield "the end of the response is scored" if t.get("eos") else "the end of the response is not scored"
    if t.get("alone_header"):
        yield f"without the prompt after {t['alone_header']!r}"


def counts(record: ShownRecord) -> str:
    """Return the token counts of the passes, and what is cut."""
    parts = []
    made = record.the_pass("given")
    if made is not None:
        lead = record.count("lead")
        prompt = record.count("prompt", cut=False)
        first = f"{lead:,} before it + " if lead else ""
        parts.append(f"given {made.tokens:,} = {first}{prompt:,} prompt + {made.tokens - made.context:,} response")
    else:
        whole = sum(record.count(part) for part in ("lead", "prompt", "response"))
        parts.append(f"{whole:,}, of which {record.count('prompt'):,} prompt and {record.count('response'):,} response")
    if (other := record.the_pass("alone")) is not None:
        parts.append(f"alone {other.tokens:,}")
    cut = {part: record.count(part, cut=True) for part in ("prompt", "response")}
    gone = [f"{counted(n, 'token')} of the {part} (of {record.count(part):,})" for part, n in cut.items() if n]
    if made is not None:
        parts.append(f"cut: {' and '.join(gone)}" if gone else "nothing is cut")
    return "; ".join(parts)


def pass_size(one: ShownPass) -> str:
    cut = "".join(f", {counted(n, 'token')} of the {what} cut" for what, n in one.cut.items())
    loss = "" if one.loss is None else f", mean loss {one.loss:.4f}"
    return f"{counted(one.tokens, 'token')}{cut}{loss}"


def label_of(token: Token, scored: bool, read: bool) -> str:
    """Return the word in the margin.

    Args:
        token: the token.
        scored: whether responses are scored; they are not where the record has a problem.
        read: whether losses were read.
    """
    if token.cut:
        return "cut"
    if token.part == "response" and scored:
        return "unscored" if read and token.given is None else "scored"
    # Of `assistant: thinking` the end says what it is.
    return LABELS.get(token.part, token.part.rpartition(": ")[2])


def print_tokens(out: Console, tokens: Sequence[Token], colour: str, scored: bool) -> None:
    """Print tokens as text, with the margin; a line of the text that changes its part is broken there."""
    width = max(SHORTEST, out.width - LABEL - 3)
    before = ""
    for label, line in lines_of(tokens, colour, scored):
        bar, style = BARS.get(label, "│"), STYLES.get(label, "")
        for i, part in enumerate(line.wrap(out, width, overflow="fold") or [line]):
            shown = "" if label == before or i else short(label)
            margin = Text(f"{shown:>{LABEL}} {bar} ", style=style if label == "scored" else "dim")
            part.end = "\n"
            out.print(margin + part, soft_wrap=True)
            before = label


def short(label: str) -> str:
    text = printable(label)
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"


def lines_of(tokens: Iterable[Token], colour: str, scored: bool) -> Iterator[tuple[str, Text]]:
    """Yield a label and a line of text; a line ends with the text's own line or where the label changes."""
    line, label, found = Text(), "", list(tokens)
    read = any(token.given is not None for token in found)
    for token in found:
        own = label_of(token, scored, read)
        if own != label and len(line):
            yield label, line
            line = Text()
        label = own
        style = style_of(token, label, colour)
        if token.special and not token.text.isspace():
            line.append(f"{SPECIAL[0]}{printable(token.text)}{SPECIAL[1]}", Style.parse("magenta") + style)
            continue
        first, *rest = token.text.split("\n")
        line.append(printable(first), style)
        for part in rest:
            line.append(NEWLINE, Style(dim=True))
            yield label, line
            line = Text(printable(part), style=style)
    if len(line):
        yield label, line


def style_of(token: Token, label: str, colour: str) -> Style:
    """Return the colour of a token: what it is to the model, or what it costs."""
    value = getattr(token, colour, None)
    if value is None or token.cut:
        return Style.parse(STYLES.get(label, "") if label != "scored" else "")
    depth = min(1.0, abs(value) / SATURATED[colour])
    if depth < FAINTEST:
        return Style()
    full = HARDER if value > 0 else EASIER
    red, green, blue = (round(255 + (one - 255) * depth) for one in full)
    return Style.parse(f"black on #{red:02x}{green:02x}{blue:02x}")


def print_losses(out: Console, record: ShownRecord, strongest: int, every_token: bool) -> None:
    """Print the mean losses, and single tokens with theirs."""
    for kind, words in (("given", "after the prompt"), ("alone", "without it")):
        one = record.the_pass(kind)
        if one is not None and one.loss is not None:
            say(out, f"mean loss {words} ({kind}): {one.loss:.4f} nats over {counted(one.scored or 0, 'token')}")
    chosen = [one for one in record.tokens if one.given is not None or one.alone is not None]
    there = len(chosen)
    if not every_token:
        chosen = record.strongest(strongest)
    if not chosen:
        return
    what = (
        "all scored tokens" if every_token else f"the tokens that the prompt changes most, {len(chosen)} of {there:,}"
    )
    say(out, f"{what}:")
    grid = Grid("token", "given", "alone", "difference", box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify = "right"
    for token in chosen:
        cells = [number(token.given), number(token.alone), number(token.difference, "+.2f")]
        grid.add_row(
            Text(f"`{printable(token.text)}`" if token.text else f"(a part of a character, id {token.id})"), *cells
        )
    out.print(grid)


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def print_score(out: Console, score: ShownScore) -> None:
    """Print a scorer's number, its formula and its parts."""
    if score.value is None:
        say(out, f"{score.name}: no score: {score.problem}")
    else:
        sum_of = f" = {score.arithmetic}" if score.arithmetic else ""
        say(out, f"{score.name} {score.value:.6g}{sum_of}")
    if score.formula and score.value is not None:
        say(out, f"  formula: {score.formula}")
    for ask, values in score.parts.items():
        words = ", ".join(f"{name} {in_words(value)}" for name, value in values.items())
        say(out, f"  {ask}: {words}")
    for name, value in score.more.items():
        say(out, f"  {name}: {in_words(value)}")


def in_words(value: Any) -> str:
    """Return a number, a list of them, or a word, as text."""
    if isinstance(value, list | tuple):
        return " ".join(map(in_words, value))
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


@dataclass(frozen=True, repr=False)
class ShownRecord:
    """One record as the model reads it.

    Args:
        id: of the example.
        row: index of the record.
        turn: index of the response among the record's messages.
        turns: all turns of the record that are read.
        where: file and line.
        source: the data set.
        tokens: prompt and response, with what is cut; pieces of text without a tokenizer.
        template: the settings of the rendering; empty without a tokenizer.
        model: name and dtype of the model; None without one.
        problem: why the model cannot read the record; None if it can.
        notes: what is unusual: parts that the template leaves out, text that is not read, and so on.
        passes: the forward passes.
        scores: the scorers' numbers.
    """

    id: str
    row: int
    turn: int
    turns: Sequence[int]
    where: str
    source: str
    tokens: Sequence[Token]
    template: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, str] | None = None
    problem: str | None = None
    notes: Sequence[str] = ()
    passes: Sequence[ShownPass] = ()
    scores: Sequence[ShownScore] = ()

    @property
    def tokenised(self) -> bool:
        """Whether its tokens are a tokenizer's, not pieces of text."""
        return self.model is not None and any(token.id is not None for token in self.tokens)

    @property
    def has_losses(self) -> bool:
        """Whether a model has read it."""
        return any(token.given is not None for token in self.tokens)

    def count(self, part: Part, *, cut: bool | None = None) -> int:
        """Count the tokens of a part."""
        return sum(one.part == part and cut in (None, one.cut) for one in self.tokens)

    def the_pass(self, kind: str) -> ShownPass | None:
        """Return the first pass of a kind, or None."""
        return next((one for one in self.passes if one.kind == kind), None)

    def strongest(self, most: int) -> list[Token]:
        """Return the response tokens whose loss the prompt changes most, from made harder to made easier.

        If a pass is missing, those with the highest loss.
        """
        differ = [one for one in self.tokens if one.difference is not None]
        if differ:
            first = sorted(differ, key=lambda one: -abs(one.difference or 0.0))[:most]
            return sorted(first, key=lambda one: -(one.difference or 0.0))
        return sorted((one for one in self.tokens if one.given is not None), key=lambda one: -(one.given or 0.0))[:most]

    @property
    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON; numbers that are not finite become null."""
        made: dict[str, Any] = finite({name: value for name, value in asdict(self).items() if name != "tokens"})
        made["tokens"] = [finite(asdict(one)) for one in self.tokens]
        for one, own in zip(made["passes"], self.passes, strict=True):
            one["texts"] = "".join(token.text for token in own.texts) or None
        return made

    def __repr__(self) -> str:
        numbers = [f"{one.name} {'none' if one.value is None else f'{one.value:.4g}'}" for one in self.scores]
        size = f"{self.count('prompt'):,} + {self.count('response'):,} tokens" if self.tokenised else "no tokens"
        what = [f"record {self.row}, turn {self.turn} of {brief(self.source, 60)}", size, *numbers[:6]]
        return f"<ShownRecord: {', '.join(what)}>"

    def __str__(self) -> str:
        return plain_text(self)
