"""What a trainer must be told to read our output: LLaMA-Factory, axolotl, TRL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import OutputError, SettingsError
from .formats import CONVERSATIONS, INPUTS, OUTPUTS, Shape
from .outfile import atomic, writing
from .sniff import PACKED, container_suffix

_PLAIN: Mapping[Shape, Mapping[str, Any]] = {
    "alpaca": {"instruction": "", "input": "", "output": ""},
    "prompt-completion": {"prompt": "", "completion": ""},
    "messages": {"messages": []},
    "sharegpt": {"conversations": []},
}
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ALPACA_FORMAT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Response:\n"


def llamafactory_entry(path: str | Path, shape: Shape, sample: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The file's entry for LLaMA-Factory's `dataset_info.json`.

    Args:
        path: the file; the entry holds its name as given.
        shape: its records' shape.
        sample: a record of the file. Only columns that it has are named: LLaMA-Factory fails on a named column
            that is not there, and reads nothing from one that is not named.

    Raises:
        SettingsError: a file or shape that LLaMA-Factory does not read.
    """
    record = sample or _PLAIN[shape]
    if container_suffix(Path(path)) == ".tsv" or Path(path).suffix.lower() in PACKED:
        raise SettingsError(f"LLaMA-Factory does not read `{path}`", hint="write .jsonl, .json, .csv or .parquet")
    extra = {name: name for name in ("system", "tools") if name in record}
    entry: dict[str, Any] = {"file_name": str(path)}
    if shape in ("messages", "sharegpt"):
        field = _field(record, ("messages",) if shape == "messages" else CONVERSATIONS)
        # Its `sharegpt` reader does not see `tool_calls`; its `openai` reader does.
        entry["formatting"] = "openai" if shape == "messages" and "tools" in record else "sharegpt"
        entry["columns"] = {"messages": field, **extra}
        entry["tags"] = dict(_OPENAI_TAGS if shape == "messages" else _SHAREGPT_TAGS)
        return entry
    if shape == "prompt-completion":
        _strings_only(record, "LLaMA-Factory")
        names = {"prompt": "prompt", "response": _field(record, ("completion", "response"))}
    else:
        names = {"prompt": "instruction", "response": _field(record, OUTPUTS)}
        names |= {"query": _field(record, INPUTS)} if any(name in record for name in INPUTS) else {}
        names |= {"history": "history"} if "history" in record else {}
    return entry | {"formatting": "alpaca", "columns": names | extra}


def write_llamafactory(
    name: str,
    path: str | Path,
    shape: Shape,
    *,
    info: str | Path | None = None,
    sample: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Add the file to a `dataset_info.json`, which is made if it is not there; other entries stay.

    Args:
        name: what the data set is called there.
        path: the file.
        shape: its records' shape.
        info: the `dataset_info.json`; beside the file by default.
        sample: see `llamafactory_entry`.
        overwrite: replace another entry of that name.

    Raises:
        OutputError: an entry of that name is there, or the file is not ours to change.
    """
    path = Path(path)
    info = Path(info) if info is not None else path.with_name("dataset_info.json")
    near = path.name if path.resolve().parent == info.resolve().parent else str(path.resolve())
    entry = llamafactory_entry(near, shape, sample)
    known = _read_info(info)
    if known.get(name, entry) != entry and not overwrite:
        hint = "--overwrite replaces it, or choose another name"
        raise OutputError(f"`{info}` has another entry `{name}`", hint=hint)
    with atomic(info, overwrite=True) as stream:
        text = json.dumps(known | {name: entry}, ensure_ascii=False, indent=2)
        stream.write(text.encode(errors="backslashreplace") + b"\n")
    return info


def _read_info(info: Path) -> dict[str, Any]:
    try:
        with writing(info):
            known = json.loads(info.read_text(encoding="utf-8")) if info.exists() else {}
    except (ValueError, RecursionError) as error:
        raise OutputError(f"`{info}` is not JSON and was left as it is: {error}") from None
    if not isinstance(known, dict):
        raise OutputError(f"`{info}` is not a JSON object and was left as it is")
    return known


def axolotl_snippet(path: str | Path, shape: Shape, sample: Mapping[str, Any] | None = None) -> str:
    """The `datasets:` part of an axolotl configuration, as YAML.

    Args:
        path: the file.
        shape: its records' shape.
        sample: a record of the file, for the names of its columns.

    Raises:
        SettingsError: a shape that axolotl does not read.
    """
    record = sample or _PLAIN[shape]
    data: dict[str, Any] = {"path": str(path), "ds_type": _loader(Path(path), "axolotl")}
    if shape in ("messages", "sharegpt"):
        own = shape == "messages"
        data["type"] = "chat_template"
        data["field_messages"] = _field(record, ("messages",) if own else CONVERSATIONS)
        role, content = ("role", "content") if own else ("from", "value")
        data["message_property_mappings"] = {"role": role, "content": content}
        if not own:
            data["roles"] = {
                "user": ["human", "user"],
                "assistant": ["gpt", "assistant", "function_call"],
                "system": ["system"],
                "tool": ["tool", "observation"],
            }
        if "tools" in record:
            data["field_tools"] = "tools"
    elif shape == "alpaca" and "output" in record and "context" not in record:
        data["type"] = "alpaca"
    else:
        data["type"] = _axolotl_fields(record, shape)
    note = "# axolotl does not read `history`: write `messages` instead\n" if record.get("history") else ""
    return note + str(yaml.safe_dump({"datasets": [data]}, sort_keys=False, allow_unicode=True))


def _axolotl_fields(record: Mapping[str, Any], shape: Shape) -> dict[str, str]:
    if shape == "alpaca":
        return {
            "field_instruction": "instruction",
            "field_input": _field(record, INPUTS),
            "field_output": _field(record, OUTPUTS),
            "format": _ALPACA_FORMAT,
            "no_input_format": _ALPACA_SHORT,
        }
    _strings_only(record, "axolotl")
    answer = _field(record, ("completion", "response"))
    both = {"format": "{instruction}", "no_input_format": "{instruction}"}
    return {"field_instruction": "prompt", "field_output": answer, **both}


def trl_snippet(path: str | Path, shape: Shape, sample: Mapping[str, Any] | None = None) -> str:
    """A Python program that fine-tunes on the file with TRL's `SFTTrainer`; the model's name is left to fill in.

    Args:
        path: the file.
        shape: its records' shape.
        sample: a record of the file, for the names of its columns.
    """
    record = sample or _PLAIN[shape]
    loader = _loader(Path(path), "TRL")
    lines = [
        "from datasets import load_dataset",
        "from trl import SFTConfig, SFTTrainer",
        "",
        f'data = load_dataset("{loader}", data_files={json.dumps(str(path))}, split="train")',
        *_trl_mapping(record, shape),
        "",
        'args = SFTConfig(output_dir="out")' + _TRL_LOSS[shape],
        'trainer = SFTTrainer(model="MODEL", train_dataset=data, args=args)',
        "trainer.train()",
    ]
    return "\n".join(lines) + "\n"


_ALL_TOKENS = "  # loss on all tokens; assistant_only_loss=True where the chat template marks the responses"
_TRL_LOSS = {"alpaca": "", "prompt-completion": "", "messages": _ALL_TOKENS, "sharegpt": _ALL_TOKENS}


def _trl_mapping(record: Mapping[str, Any], shape: Shape) -> list[str]:
    if shape == "alpaca":
        part = next((name for name in INPUTS if name in record), None)
        asked = 'r["instruction"]' + (f' + ("\\n" + r["{part}"] if r["{part}"] else "")' if part else "")
        return [
            "data = data.map(",
            "    lambda r: {",
            f'        "prompt": [{{"role": "user", "content": {asked}}}],',
            f'        "completion": [{{"role": "assistant", "content": r["{_field(record, OUTPUTS)}"]}}],',
            "    },",
            "    remove_columns=data.column_names,",
            ")",
        ]
    if shape == "sharegpt":
        roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
        turns = f't["value"]}} for t in r["{_field(record, CONVERSATIONS)}"]'
        return [
            f"roles = {json.dumps(roles)}",
            "data = data.map(",
            f'    lambda r: {{"messages": [{{"role": roles.get(t["from"], t["from"]), "content": {turns}]}},',
            "    remove_columns=data.column_names,",
            ")",
        ]
    if shape == "prompt-completion" and "completion" not in record:
        return ['data = data.rename_column("response", "completion")']
    return []


def _field(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in record), names[0])


def _loader(path: Path, who: str) -> str:
    suffix = container_suffix(path)
    if suffix == ".tsv" or not suffix:
        raise SettingsError(f"{who} cannot tell the kind of `{path}`", hint="write .jsonl, .json, .csv or .parquet")
    return suffix[1:] if suffix in (".csv", ".parquet") else "json"


def _strings_only(record: Mapping[str, Any], who: str) -> None:
    if not isinstance(record.get("prompt"), str):
        raise SettingsError(f"{who} does not read prompts that are lists of messages", hint="write `messages`")
