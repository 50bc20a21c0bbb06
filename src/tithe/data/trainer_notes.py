"""What a trainer does not take of a file's records, in sentences with counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tithe.data.formats import COMPLETIONS, CONVERSATIONS, INPUTS, OUTPUTS
from tithe.data.marks import WEIGHTS
from tithe.data.survey import CONTENT_KEYS, REASONING, ROLE_KEYS, Survey, Trait
from tithe.data.trainers import TOOLS, reads_as_openai

_HAVE: Mapping[Trait, str] = {
    "parts": "content in parts",
    "text beside calls": "text beside tool calls",
    "call turns": "turns that are nothing but a tool call",
    "reasoning": "reasoning beside the content",
    "weight 0": "assistant turns with weight 0",
    "further responses": "several responses",
    "after the response": "messages after the last response that is learnt",
    "not alternating": "turns that do not alternate between a user or tool and the assistant, to its last word",
    "tools as objects": "tools that are no text",
    "history": "`history`",
    "system beside": "`system` beside the messages",
    "messages as text": "messages as JSON text",
}
_LLAMAFACTORY: Mapping[Trait, str] = {
    "parts": "LLaMA-Factory reads text alone and fails on them",
    "messages as text": "LLaMA-Factory fails on them",
    "text beside calls": "LLaMA-Factory takes the calls and leaves the text out",
    "reasoning": "LLaMA-Factory leaves the reasoning out",
    "weight 0": "LLaMA-Factory learns them, too",
    "not alternating": "LLaMA-Factory leaves these records out",
}
_AXOLOTL: Mapping[Trait, str] = {
    "call turns": "axolotl reads the call as plain text",
    "history": "axolotl does not read it",
}
_LLAMAFACTORY_TURNS = "LLaMA-Factory learns all of them; with `mask_history: true` the last alone, as tithe scores"
_AXOLOTL_TURNS = "axolotl learns all of them, tithe scores the last"
_TRL_TURNS = "the last is learnt, as tithe scores, the others are context; `--turns all` makes a row of each"
_CURED: Mapping[str, Sequence[Trait]] = {
    "llamafactory": ("parts", "messages as text"),
    "axolotl": ("parts", "call turns", "history", "system beside"),
    "trl": (),
}


def notes(to: str, found: Survey) -> list[str]:
    """Return what the trainer `to` leaves out or reads otherwise than tithe, most general first."""
    return [*_unread(to, found), *_BY_TRAINER[to](found)]


def rewriting_helps(to: str, found: Survey) -> bool:
    """Whether a trainer's difficulty goes away once the records are written as plain `messages`."""
    odd = [*_spellings(found), *_roles(found)] if to != "trl" else []
    return bool(odd) or any(found.traits[trait] for trait in _CURED[to])


def _unread(to: str, found: Survey) -> Iterator[str]:
    then = "left out" if to == "trl" else "they are in the file all the same"
    for reason, n in found.left_out.most_common(3):
        yield f"tithe cannot read {n:,} of {found.records:,} records ({reason}): {then}"
    rest = found.left_out.total() - sum(n for _, n in found.left_out.most_common(3))
    if rest:
        yield f"nor {rest:,} others, for other reasons: {then}"


def _having(found: Survey, takes: Mapping[Trait, str]) -> Iterator[str]:
    for trait, then in takes.items():
        if found.traits[trait]:
            yield f"{found.traits[trait]:,} of {found.records:,} records have {_HAVE[trait]}: {then}"


def _several(found: Survey, then: str) -> Iterator[str]:
    if found.turns == "last":
        yield from _having(found, {"further responses": then})


def _spellings(found: Survey) -> Iterator[str]:
    """Columns, fields and roles that are not written alike throughout."""
    columns: Sequence[Sequence[str]] = {
        "alpaca": (OUTPUTS, INPUTS, TOOLS),
        "prompt-completion": (COMPLETIONS, TOOLS),
        "messages": (TOOLS,),
        "sharegpt": (CONVERSATIONS, TOOLS),
    }[found.shape]
    for counts, groups, what in (
        (found.columns, columns, "records"),
        (found.keys, (ROLE_KEYS, CONTENT_KEYS, REASONING, WEIGHTS), "messages"),
    ):
        for names in groups:
            there = sorted((name for name in names if counts[name]), key=lambda name: -counts[name])
            for name in there[1:]:
                yield f"{counts[name]:,} {what} have `{name}`, of which nothing is read: others have `{there[0]}`"


def _roles(found: Survey) -> Iterator[str]:
    for role in ("system", "user", "assistant", "tool", "function_call"):
        names = found.names_of(role)
        for name in names[1:]:
            yield (
                f"{found.roles[name]:,} messages have the role `{name}`, others `{names[0]}`: LLaMA-Factory knows "
                "one name of a role and leaves these records out"
            )


def _llamafactory(found: Survey) -> Iterator[str]:
    yield from _having(found, _LLAMAFACTORY)
    yield from _several(found, _LLAMAFACTORY_TURNS)
    if found.shape not in ("messages", "sharegpt"):
        yield from _having(found, {"tools as objects": "LLaMA-Factory wants JSON text there and fails"})
    elif reads_as_openai(found):
        yield (
            "read as `openai`, for tool calls: LLaMA-Factory adds `detailed thinking off` to the system message where "
            "a record has no tools"
        )
    yield from _roles(found)
    yield from _spellings(found)


def _axolotl(found: Survey) -> Iterator[str]:
    yield from _having(found, _AXOLOTL)
    yield from _several(found, _AXOLOTL_TURNS)
    n, tools = found.columns["system"], max(found.columns[name] for name in TOOLS)
    if found.shape in ("messages", "sharegpt"):
        if found.traits["parts"]:
            yield from _having(found, {"parts": "if others have text, the file cannot be loaded"})
        if 0 < n < found.records:
            yield f"{found.records - n:,} of {found.records:,} records have no `system`: axolotl writes `None` there"
    elif tools:
        yield f"{tools:,} of {found.records:,} records have tools: axolotl does not read them in this shape"
    if n and found.shape == "prompt-completion":
        yield f"{n:,} of {found.records:,} records have `system`: axolotl does not read it in this shape"
    yield from _spellings(found)


def _trl(found: Survey) -> Iterator[str]:
    yield from _several(found, _TRL_TURNS)
    yield from _having(found, {"after the response": "they are left out"})


_BY_TRAINER = {"llamafactory": _llamafactory, "axolotl": _axolotl, "trl": _trl}
