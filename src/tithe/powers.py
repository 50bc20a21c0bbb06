"""What a file of settings cannot do alone: send a key somewhere, or run somebody's code. The command line must ask."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tithe.errors import SettingsError

KEY_ENV = "TITHE_API_KEY"  # holds the key of an endpoint where no other name is given
NAME = re.compile(r"[A-Z_][A-Z0-9_]*")  # of a variable, as people write them
CODE = ("trust_remote_code", "allow_code_execution")
ADDRESSES = ("endpoint", "judge")
OFF = ("", "0", "f", "false", "n", "no", "none", "null", "off")
TRUST = "or take it out of the file: whoever wrote that may not be you"


def is_name(text: str) -> bool:
    """Whether it is written as people write names of variables; what is not may be the key itself."""
    return NAME.fullmatch(text) is not None


def check_powers(values: Mapping[str, Any], flags: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of a file that reach beyond it, unless the command line asks for the same.

    Args:
        values: of the file, nested ones too.
        flags: of the command line, those left out as None.
        path: of the file, for messages.

    Raises:
        SettingsError: names the setting and the flag.
    """
    for where, name, value in settings_within(values):
        given = flags.get(name)
        if given is not None and (where == name or given == value):  # a flag goes before the same setting of the file
            continue
        flag = f"--{name.replace('_', '-')}"
        if name in CODE and str(value).strip().lower() not in OFF:
            raise SettingsError(
                f"`{path}` sets `{where}`, and a file cannot switch that on alone",
                hint=f"add `{flag}` to the command, {TRUST}",
            )
        if name == "api_key_env" and value not in (None, KEY_ENV):
            variable = f" {value}" if is_name(str(value)) else ""  # it may be the key itself, which is not repeated
            raise SettingsError(
                f"`{path}` sets `{where}`, and a file cannot choose alone which key is sent",
                hint=f"add `{flag}{variable}` to the command, {TRUST}",
            )
        sends = name in ADDRESSES and "://" in str(value) and os.environ.get(KEY_ENV, "").strip()
        if sends and flags.get("api_key_env") is None:
            raise SettingsError(
                f"`{path}` would send the key in `{KEY_ENV}` to `{value}`, and a file cannot do that alone",
                hint=f"add `--api-key-env {KEY_ENV}` to the command, {TRUST}",
            )


def settings_within(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each plain setting, nested ones too: where it stands (`judge.endpoint`), its name, its value."""
    waiting: list[tuple[str, Any]] = [("", values)]
    seen = set[int]()
    while waiting:
        where, one = waiting.pop()
        if id(one) in seen:  # YAML's aliases: the same thing in several places, or within itself
            continue
        seen.add(id(one))
        named = one.items() if isinstance(one, Mapping) else (("", part) for part in one)
        for key, value in named:
            name = str(key).replace("-", "_")
            place = f"{where}.{name}".strip(".")
            if isinstance(value, Mapping | list | tuple):
                waiting.append((place, value))
            else:
                yield place, name, value
