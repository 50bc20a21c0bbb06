"""What a trainer must be told to read our output: LLaMA-Factory, axolotl, TRL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tithe.data.formats import COMPLETIONS, CONVERSATIONS, INPUTS, OUTPUTS
from tithe.data.marks import WEIGHTS
from tithe.data.outfile import atomic, demand_file, writing
from tithe.data.sniff import PACKED, container_suffix
from tithe.data.survey import CONTENT_KEYS, REASONING, ROLE_KEYS, Survey
from tithe.data.turns import ROLES
from tithe.errors import OutputError, SettingsError

MEDIA = ("images", "videos", "audios")
TOOLS = ("tools", "functions")
LENGTH = 2048  # tokens; as scoring cuts by default
# LLaMA-Factory's own names, of roles that do not occur.
_TAGS = {
    "messages": {"user": "user", "assistant": "assistant", "tool": "tool", "function_call": "function_call"},
    "sharegpt": {"user": "human", "assistant": "gpt", "tool": "observation", "function_call": "function_call"},
}
_ALPACA_FORMAT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Response:\n"


def llamafactory_entry(path: str | Path, found: Survey) -> dict[str, Any]:
    """Return the file's entry for LLaMA-Factory's `dataset_info.json`.

    Args:
        path: the file; the entry holds its name as given.
        found: what its records have. Only columns that some record has are named: LLaMA-Factory fails on a named
            column that is not there, and reads nothing from one that is not named.

    Raises:
        SettingsError: a file or shape that LLaMA-Factory does not read.
    """
    if container_suffix(Path(path)) == ".tsv" or Path(path).suffix.lower() in PACKED:
        raise SettingsError(f"LLaMA-Factory does not read `{path}`", hint="write .jsonl, .json, .csv or .parquet")
    extra = {name: name for name in ("system", *MEDIA) if found.columns[name]}
    if any(found.columns[name] for name in TOOLS):
        extra["tools"] = found.field(TOOLS)
    entry: dict[str, Any] = {"file_name": str(path)}
    if found.shape in ("messages", "sharegpt"):
        entry["formatting"] = "openai" if reads_as_openai(found) else "sharegpt"
        entry["columns"] = {"messages": _messages_field(found), **extra}
        entry["tags"] = llamafactory_tags(found)
        return entry
    if found.shape == "prompt-completion":
        _strings_only(found, "LLaMA-Factory")
        names = {"prompt": "prompt", "response": found.field(COMPLETIONS)}
    else:
        names = {"prompt": "instruction", "response": found.field(OUTPUTS)}
        names |= {"query": found.field(INPUTS)} if any(found.columns[name] for name in INPUTS) else {}
        names |= {"history": "history"} if found.traits["history"] else {}
    return entry | {"formatting": "alpaca", "columns": names | extra}


def reads_as_openai(found: Survey) -> bool:
    """Whether LLaMA-Factory's `openai` reader is needed: its `sharegpt` reader sees no `tool_calls` or tool objects."""
    return bool(found.traits["calls"] or found.traits["tools as objects"])


def llamafactory_tags(found: Survey) -> dict[str, str]:
    """Return the names of fields and roles as they are written most often; LLaMA-Factory takes one name of each."""
    roles = {role: (found.names_of(role) or [name])[0] for role, name in _TAGS[found.shape].items()}
    return {
        "role_tag": found.key(ROLE_KEYS),
        "content_tag": found.key(CONTENT_KEYS),
        "user_tag": roles["user"],
        "assistant_tag": roles["assistant"],
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
    """Add the file to a `dataset_info.json`, which is made if it is not there; other entries stay.

    Args:
        name: what the data set is called there.
        path: the file.
        found: what its records have.
        info: the `dataset_info.json`; beside the file by default.
        overwrite: replace another entry of that name.

    Raises:
        OutputError: an entry of that name is there, or the file is not ours to change.
    """
    path = Path(path)
    info = Path(info) if info is not None else path.with_name("dataset_info.json")
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
        found: what its records have.

    Raises:
        SettingsError: a file or shape that axolotl does not read.
    """
    data: dict[str, Any] = {"path": str(path), "ds_type": _loader(Path(path), "axolotl")}
    if found.shape in ("messages", "sharegpt"):
        data |= _axolotl_chat(found)
    else:
        data["type"] = "alpaca" if _plain_alpaca(found) else _axolotl_fields(found)
    return str(yaml.safe_dump({"datasets": [data]}, sort_keys=False, allow_unicode=True))


def _plain_alpaca(found: Survey) -> bool:
    """Whether axolotl's own `alpaca` reads the columns; it knows no system message."""
    others = ("response", "context", "system")
    return found.shape == "alpaca" and not any(found.columns[name] for name in others)


def _axolotl_chat(found: Survey) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "chat_template", "field_messages": _messages_field(found)}
    mappings = {"role": found.key(ROLE_KEYS), "content": found.key(CONTENT_KEYS)}
    if found.traits["reasoning"]:
        mappings["reasoning_content"] = found.key(REASONING)
    data["message_property_mappings"] = mappings
    roles: dict[str, list[str]] = {role: [] for role in ("user", "assistant", "system", "tool")}
    for written in found.roles:
        role = ROLES[written.strip().lower()]
        roles["assistant" if role == "function_call" else role].append(written)
    if any(names not in ([], [role]) for role, names in roles.items()):
        data["roles"] = {role: names or [role] for role, names in roles.items()}
    if found.traits["weight 0"]:
        data["message_field_training"] = found.key(WEIGHTS)
    if any(found.columns[name] for name in TOOLS):
        data["field_tools"] = found.field(TOOLS)
    return data


def _axolotl_fields(found: Survey) -> dict[str, str]:
    if found.shape == "alpaca":
        system = {"field_system": "system", "system_format": "{system}\n\n"} if found.columns["system"] else {}
        return {
            "field_instruction": "instruction",
            "field_input": found.field(INPUTS),
            "field_output": found.field(OUTPUTS),
            **system,
            "format": _ALPACA_FORMAT,
            "no_input_format": _ALPACA_SHORT,
        }
    _strings_only(found, "axolotl")
    both = {"format": "{instruction}", "no_input_format": "{instruction}"}
    return {"field_instruction": "prompt", "field_output": found.field(COMPLETIONS), **both}


def trl_snippet(path: str | Path, found: Survey) -> str:
    """Return a Python program that fine-tunes on the file with TRL's `SFTTrainer`; the model's name is left to fill in.

    The program reads the records with tithe, so that the prompts and responses are those that were scored, whatever
    spelling the file has; the loss is taken of the responses alone.

    Args:
        path: the file, or a data set on the hub.
        found: what its records have.
    """
    which = "each response" if found.turns == "all" else "the last response"
    tools = (
        '        "tools": json.dumps(one.tools) if one.tools else None,\n'
        if any(found.columns[name] for name in TOOLS)
        else ""
    )
    return (
        f"# Trains on {which} of a record, as tithe scores it. The model's tokenizer needs a chat template.\n"
        + ("import json\n\n" if tools else "")
        + "import tithe\n"
        "from datasets import Dataset\n"
        "from tithe.records import Example\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        f'read = tithe.load({json.dumps(str(path))}, format="{found.shape}", turns="{found.turns}")\n'
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
        f'args = SFTConfig(output_dir="out", completion_only_loss=True, max_length={LENGTH})\n'
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
