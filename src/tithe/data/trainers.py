"""Settings that make LLaMA-Factory, axolotl and TRL read our output, and notes on what they would not read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tithe.data.formats import COMPLETIONS, CONVERSATIONS, INPUTS, OUTPUTS
from tithe.data.loss_marks import WEIGHTS
from tithe.data.outfile import atomic, demand_file, writing
from tithe.data.sniff import PACKED_SUFFIXES, container_suffix
from tithe.data.survey import CONTENT_KEYS, REASONING, ROLE_KEYS, Survey, Trait
from tithe.data.turns import ROLES
from tithe.errors import OutputError, SettingsError

MEDIA = ("images", "videos", "audios")
TOOLS = ("tools", "functions")
MAX_LENGTH = 2048  # tokens; the length to which scoring cuts by default
# LLaMA-Factory's own role names, used for roles that do not occur in the file.
_TAGS = {
    "messages": {"user": "user", "assistant": "assistant", "tool": "tool", "function_call": "function_call"},
    "sharegpt": {"user": "human", "assistant": "gpt", "tool": "observation", "function_call": "function_call"},
}
_ALPACA_FORMAT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Response:\n"


def llamafactory_entry(path: str | Path, found: Survey) -> dict[str, Any]:
    """Return the file's entry for LLaMA-Factory's `dataset_info.json`.

    Args:
        path: the file; the entry holds this path as given.
        found: counts of its records. Only columns that some record has are named: LLaMA-Factory fails if a named
            column is missing, and ignores columns that are not named.

    Raises:
        SettingsError: LLaMA-Factory does not read this kind of file or shape.
    """
    if container_suffix(Path(path)) == ".tsv" or Path(path).suffix.lower() in PACKED_SUFFIXES:
        raise SettingsError(f"LLaMA-Factory does not read `{path}`", hint="write .jsonl, .json, .csv or .parquet")
    extra = {name: found.own(name) for name in ("system", *MEDIA) if found.columns[name]}
    if any(found.columns[name] for name in TOOLS):
        extra["tools"] = found.own(found.field(TOOLS))
    entry: dict[str, Any] = {"file_name": str(path)}
    if found.shape in ("messages", "sharegpt"):
        # `openai` and `sharegpt` are LLaMA-Factory's two readers for chats; both take any field names, given in `tags`.
        entry["formatting"] = "openai" if reads_as_openai(found) else "sharegpt"
        entry["columns"] = {"messages": found.own(_messages_field(found)), **extra}
        entry["tags"] = llamafactory_tags(found)
        return entry
    if found.shape == "prompt-completion":
        _strings_only(found, "LLaMA-Factory")
        names = {"prompt": found.own("prompt"), "response": found.own(found.field(COMPLETIONS))}
    else:
        names = {"prompt": found.own("instruction"), "response": found.own(found.field(OUTPUTS))}
        names |= {"query": found.own(found.field(INPUTS))} if any(found.columns[name] for name in INPUTS) else {}
        names |= {"history": "history"} if found.traits["history"] else {}
    return entry | {"formatting": "alpaca", "columns": names | extra}


def reads_as_openai(found: Survey) -> bool:
    """Tell whether the `openai` reader is needed: LLaMA-Factory's `sharegpt` ignores `tool_calls` and tool objects."""
    return bool(found.traits["calls"] or found.traits["tools as objects"])


def llamafactory_tags(found: Survey) -> dict[str, str]:
    """Return the most frequent spelling of each field and role; LLaMA-Factory accepts only one of each."""
    roles = {role: (found.names_of(role) or [name])[0] for role, name in _TAGS[found.shape].items()}
    return {
        "role_tag": found.own(found.key(ROLE_KEYS)),
        "content_tag": found.own(found.key(CONTENT_KEYS)),
        "user_tag": found.own(roles["user"]),
        "assistant_tag": found.own(roles["assistant"]),
        "observation_tag": roles["tool"],
        "function_tag": roles["function_call"],
        "system_tag": (found.names_of("system") or ["system"])[0],
    }


def write_llamafactory(
    name: str,
    path: str | Path,
    found: Survey,
    *,
    info: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Add the file to a `dataset_info.json`, creating it if needed; other entries stay.

    Args:
        name: the entry's name.
        path: the file.
        found: counts of its records.
        info: the `dataset_info.json`; beside the file by default.
        overwrite: replace a different entry of that name.

    Raises:
        OutputError: a different entry of that name exists, or the file is not a `dataset_info.json`.
    """
    path = Path(path)
    info = Path(info) if info is not None else path.with_name("dataset_info.json")
    # LLaMA-Factory resolves a relative `file_name` against the folder of `dataset_info.json`.
    near = path.name if path.resolve().parent == info.resolve().parent else str(path.resolve())
    entry = llamafactory_entry(near, found)
    known = _read_info(info)
    if known.get(name, entry) != entry and not overwrite:
        hint = "--overwrite replaces it, or choose another name"
        raise OutputError(f"`{info}` has another entry `{name}`", hint=hint)
    with atomic(info, overwrite=True) as stream:
        text = json.dumps(known | {name: entry}, ensure_ascii=False, indent=2)
        stream.write(text.encode(errors="backslashreplace") + b"\n")
    return info


def _read_info(info: Path) -> dict[str, Any]:
    demand_file(info)
    try:
        with writing(info):
            known = json.loads(info.read_text(encoding="utf-8")) if info.exists() else {}
    except (ValueError, RecursionError) as error:
        raise OutputError(f"`{info}` is not JSON and was left as it is: {error}") from None
    if not isinstance(known, dict):
        raise OutputError(f"`{info}` is not a JSON object and was left as it is")
    return known


def axolotl_snippet(path: str | Path, found: Survey) -> str:
    """Return the `datasets:` part of an axolotl configuration, as YAML.

    Args:
        path: the file.
        found: counts of its records.

    Raises:
        SettingsError: axolotl does not read this kind of file or shape.
    """
    data: dict[str, Any] = {"path": str(path), "ds_type": _loader(Path(path), "axolotl")}
    if found.shape in ("messages", "sharegpt"):
        data |= _axolotl_chat(found)
    else:
        data["type"] = "alpaca" if _plain_alpaca(found) else _axolotl_fields(found)
    return str(yaml.safe_dump({"datasets": [data]}, sort_keys=False, allow_unicode=True))


def _plain_alpaca(found: Survey) -> bool:
    """Tell whether axolotl's own `alpaca` type reads the columns; it has no system message."""
    others = ("response", "context", "system")
    return found.shape == "alpaca" and not found.names and not any(found.columns[name] for name in others)


def _axolotl_chat(found: Survey) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "chat_template", "field_messages": found.own(_messages_field(found))}
    mappings = {"role": found.own(found.key(ROLE_KEYS)), "content": found.own(found.key(CONTENT_KEYS))}
    if found.traits["reasoning"]:
        mappings["reasoning_content"] = found.key(REASONING)
    data["message_property_mappings"] = mappings
    roles: dict[str, list[str]] = {role: [] for role in ("user", "assistant", "system", "tool")}
    for written in found.roles:
        role = ROLES[written.strip().lower()]
        roles["assistant" if role == "function_call" else role].append(found.own(written))
    if any(names not in ([], [role]) for role, names in roles.items()):
        data["roles"] = {role: names or [role] for role, names in roles.items()}
    if found.traits["weight 0"]:
        data["message_field_training"] = found.key(WEIGHTS)
    if any(found.columns[name] for name in TOOLS):
        data["field_tools"] = found.own(found.field(TOOLS))
    return data


def _axolotl_fields(found: Survey) -> dict[str, str]:
    if found.shape == "alpaca":
        system = (
            {"field_system": found.own("system"), "system_format": "{system}\n\n"} if found.columns["system"] else {}
        )
        return {
            "field_instruction": found.own("instruction"),
            "field_input": found.own(found.field(INPUTS)),
            "field_output": found.own(found.field(OUTPUTS)),
            **system,
            "format": _ALPACA_FORMAT,
            "no_input_format": _ALPACA_SHORT,
        }
    _strings_only(found, "axolotl")
    # Both formats are the bare prompt; axolotl's defaults need not be.
    both = {"format": "{instruction}", "no_input_format": "{instruction}"}
    asked, answered = found.own("prompt"), found.own(found.field(COMPLETIONS))
    return {"field_instruction": asked, "field_output": answered, **both}


def trl_snippet(path: str | Path, found: Survey) -> str:
    """Return a Python program that fine-tunes on the file with TRL's `SFTTrainer`; the user fills in the model's name.

    The program reads the records with tithe, so that it trains on the prompts and responses that were scored, however
    the file spells them. The loss covers the responses only.

    Args:
        path: the file, or a data set on the hub.
        found: counts of its records.
    """
    which = "each response" if found.turns == "all" else "the last response"
    tools = (
        '        "tools": json.dumps(one.tools) if one.tools else None,\n'
        if any(found.columns[name] for name in TOOLS)
        else ""
    )
    given = [json.dumps(str(path)), f'format="{found.shape}"', f'turns="{found.turns}"']
    given += [f"columns={json.dumps(dict(found.names.given))}"] if found.names else []
    return (
        f"# Trains on {which} of a record, as tithe scores it. The model's tokenizer needs a chat template.\n"
        + ("import json\n\n" if tools else "")
        + "import tithe\n"
        "from datasets import Dataset\n"
        "from tithe.records import Example\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        f"read = tithe.load({', '.join(given)})\n"
        "rows = [\n"
        "    {\n"
        '        "prompt": [message.as_dict() for message in one.prompt],\n'
        '        "completion": [one.response.as_dict()],\n'
        f"{tools}"
        "    }\n"
        "    for one in read\n"
        "    if isinstance(one, Example)\n"
        "]\n"
        'data = Dataset.from_list(rows, on_mixed_types="use_json")\n\n'
        f'args = SFTConfig(output_dir="out", completion_only_loss=True, max_length={MAX_LENGTH})\n'
        'trainer = SFTTrainer(model="MODEL", train_dataset=data, args=args)\n'
        "trainer.train()\n"
    )


def _messages_field(found: Survey) -> str:
    return "messages" if found.shape == "messages" else found.field(CONVERSATIONS)


def _loader(path: Path, who: str) -> str:
    suffix = container_suffix(path)
    if suffix == ".tsv" or not suffix:
        raise SettingsError(f"{who} cannot tell the kind of `{path}`", hint="write .jsonl, .json, .csv or .parquet")
    return suffix[1:] if suffix in (".csv", ".parquet") else "json"


def _strings_only(found: Survey, who: str) -> None:
    if found.traits["message lists"]:
        raise SettingsError(f"{who} does not read prompts that are lists of messages", hint="write `messages`")


_TRAIT_WORDS: Mapping[Trait, str] = {
    "parts": "content in parts",
    "text beside calls": "text beside tool calls",
    "call turns": "turns that are nothing but a tool call",
    "reasoning": "reasoning beside the content",
    "weight 0": "assistant turns with weight 0",
    "further responses": "several responses",
    "after the response": "messages after the last response that is learnt",
    "not alternating": "turns that do not alternate between user (or tool) and assistant up to a final response",
    "tools as objects": "tools that are not JSON text",
    "history": "`history`",
    "system beside": "`system` beside the messages",
    "messages as text": "messages as JSON text",
}
# What each trainer does with records that have the trait.
_LLAMAFACTORY: Mapping[Trait, str] = {
    "parts": "LLaMA-Factory reads text alone and fails on them",
    "messages as text": "LLaMA-Factory fails on them",
    "text beside calls": "LLaMA-Factory takes the calls and leaves the text out",
    "reasoning": "LLaMA-Factory leaves the reasoning out",
    "weight 0": "LLaMA-Factory trains on them too",
    "not alternating": "LLaMA-Factory leaves these records out",
}
_AXOLOTL: Mapping[Trait, str] = {
    "call turns": "axolotl reads the call as plain text",
    "history": "axolotl does not read it",
}
_LLAMAFACTORY_TURNS = "LLaMA-Factory learns all of them; with `mask_history: true` the last alone, as tithe scores"
_AXOLOTL_TURNS = "axolotl learns all of them, tithe scores the last"
_TRL_TURNS = "the last is learnt, as tithe scores, the others are context; `--turns all` makes a row of each"
# Traits that are gone once the records are rewritten as plain `messages`.
_CURED_BY_REWRITING: Mapping[str, Sequence[Trait]] = {
    "llamafactory": ("parts", "messages as text"),
    "axolotl": ("parts", "call turns", "history", "system beside"),
    "trl": (),
}


def trainer_notes(to: str, found: Survey) -> list[str]:
    """Return what the trainer `to` leaves out or reads differently from tithe, most general first."""
    return [*_unread(to, found), *_BY_TRAINER[to](found)]


def rewriting_helps(to: str, found: Survey) -> bool:
    """Tell whether rewriting the records as plain `messages` removes any of the trainer's problems."""
    odd = [*_spellings(found), *_roles(found)] if to != "trl" else []
    return bool(odd) or any(found.traits[trait] for trait in _CURED_BY_REWRITING[to])


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
            yield f"{found.traits[trait]:,} of {found.records:,} records have {_TRAIT_WORDS[trait]}: {then}"


def _several(found: Survey, then: str) -> Iterator[str]:
    if found.turns == "last":
        yield from _having(found, {"further responses": then})


def _spellings(found: Survey) -> Iterator[str]:
    """Yield a note for each column or field that has more than one spelling in the file."""
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
                yield f"{counts[name]:,} {what} have `{name}`, which is not read: others have `{there[0]}`"


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
        yield from _having(found, {"tools as objects": "LLaMA-Factory expects JSON text there and fails"})
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
