"""Read a YAML file of settings, and refuse what a file may not switch on alone.

Words and numbers are read as in YAML 1.2: `no`, `1:30` and a date are text. The size is limited, also after aliases
are expanded. A file cannot send a key or run code unless the command line asks for it, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tithe.errors import SettingsError
from tithe.foreign import cut, foreign, read_small

MOST_BYTES = 1 << 18
MOST_EXPANDED = 1 << 20  # characters and entries after aliases are expanded
DEEPEST = 40
TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
KEY_ENV = "TITHE_API_KEY"  # default environment variable with the key of an endpoint
NAME = re.compile(r"[A-Z_][A-Z0-9_]*")  # of an environment variable
CODE = ("trust_remote_code", "allow_code_execution")
ADDRESSES = ("endpoint", "judge")
OFF = ("", "0", "f", "false", "n", "no", "none", "null", "off")
TRUST = "or remove it from the file, which somebody else may have written"
FORMS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    # `010` is eight in YAML 1.1 and ten in 1.2: here it is text.
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,400})"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
    "merge": re.compile(r"<<"),
}


class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Loader that finds the types of plain words and constructs nothing."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # as PyYAML has it


for _name, _form in FORMS.items():
    PlainLoader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_form.pattern})\Z"), None)


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file; dashes in its top-level keys become underscores.

    Raises:
        SettingsError: the file is missing, not YAML, not a mapping, too large, or has a key twice.
    """
    raw = read_small(path, SettingsError, MOST_BYTES, piped=True)
    with foreign(SettingsError, f"`{path}` is not YAML"):
        text = raw.decode("utf-8-sig")
    try:
        with foreign(SettingsError, f"`{path}` is not YAML"):
            node = parsed(text)
    except SettingsError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        if mark is None:
            raise
        said = getattr(error.__cause__, "problem", None) or "it cannot be read"
        hint = "indent with spaces" if "\\t" in said else None
        raise SettingsError(f"`{path}:{mark.line + 1}:{mark.column + 1}` is not YAML: {said}", hint=hint) from error
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(f"`{path}` holds no `key: value` lines")
    return underscored(Values(path).of(node), f"`{path}`")


def parsed(text: str) -> yaml.Node | None:
    """Parse a YAML text into nodes."""
    loader = PlainLoader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def underscored(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Replace the dashes in the names of settings.

    Raises:
        SettingsError: a name is given with a dash and with an underscore.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in found:
            raise SettingsError(f"{where} has `{name}` twice, with a dash and with an underscore", hint="leave one out")
        found[name] = value
    return found


class Values:
    """Converter from a tree of YAML nodes to values.

    Args:
        path: the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.left = path, MOST_EXPANDED

    def of(self, node: yaml.Node, depth: int = 0) -> Any:
        """Return a node's value with its aliases expanded."""
        self.left -= 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.left < 0:
            self.fault(node, "its aliases expand to more than a file of settings can hold")
        if depth > DEEPEST:
            self.fault(node, "it is nested too deeply, or in itself")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self.of(one, depth + 1) for one in node.value]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        self.fault(node, f"the tag `{short(node.tag)}` is not read here")

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        """Return a mapping's entries; its own take precedence over those merged by `<<`."""
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                for one in self.merged(value, depth):
                    merged = {**one, **merged}
                continue
            name = self.of(key, depth + 1)
            if not isinstance(name, str):
                self.fault(key, "a key is no text", "put it in quotes")
            if name in own:
                self.fault(key, f"the key `{cut(name)}` is given twice", "leave one out")
            own[name] = self.of(value, depth + 1)
        return {**merged, **own}

    def merged(self, node: yaml.Node, depth: int) -> Iterator[dict[str, Any]]:
        """Yield the mappings after `<<`."""
        several = isinstance(node, yaml.SequenceNode)
        for one in node.value if several else [node]:
            if not isinstance(one, yaml.MappingNode):
                self.fault(one, "`<<` takes `key: value` lines")
            yield self.of(one, depth + 1)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """Return the value of a word: text, a number, true, false or None."""
        kind, text = node.tag.removeprefix(TAG), str(node.value)
        if kind in ("str", "merge"):
            return text
        if kind not in FORMS:
            self.fault(node, f"the tag `{short(node.tag)}` is not read here", "write it as plain text")
        if not FORMS[kind].fullmatch(text):
            self.fault(node, f"`{cut(text)}` is no `{short(node.tag)}`")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text.replace("_", ""))
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def fault(self, node: yaml.Node, said: str, hint: str | None = None) -> NoReturn:
        """Raise an error with file, line and column."""
        mark = node.start_mark
        raise SettingsError(f"`{self.path}:{mark.line + 1}:{mark.column + 1}`: {said}", hint=hint)


def short(tag: str) -> str:
    """Return a tag as a user writes it."""
    return cut(tag.replace(TAG, "!!"))


def is_name(text: str) -> bool:
    """Tell whether a text looks like the name of an environment variable; otherwise it may be the key itself."""
    return NAME.fullmatch(text) is not None


def check_powers(values: Mapping[str, Any], flags: Mapping[str, Any], path: Path) -> None:
    """Refuse to run code or send a key because a file says so, unless the command line asks for the same.

    Args:
        values: values of the file, which may be nested.
        flags: flags of the command line, None for omitted ones.
        path: the file, for messages.

    Raises:
        SettingsError: the file sets such a setting alone; names the flag to add.
    """
    for where, name, value in settings_within(values):
        given = flags.get(name)
        if given is not None and (where == name or given == value):  # the flag takes precedence over the file
            continue
        flag = f"--{name.replace('_', '-')}"
        if name in CODE and str(value).strip().lower() not in OFF:
            raise SettingsError(
                f"`{path}` sets `{where}`, which a file cannot switch on alone",
                hint=f"add `{flag}` to the command, {TRUST}",
            )
        if name == "api_key_env" and value not in (None, KEY_ENV):
            variable = f" {value}" if is_name(str(value)) else ""  # do not print it if it may be the key itself
            raise SettingsError(
                f"`{path}` sets `{where}`, but a file alone cannot choose which key is sent",
                hint=f"add `{flag}{variable}` to the command, {TRUST}",
            )
        sends = name in ADDRESSES and "://" in str(value) and os.environ.get(KEY_ENV, "").strip()
        if sends and flags.get("api_key_env") is None:
            raise SettingsError(
                f"`{path}` would send the key in `{KEY_ENV}` to `{value}`, which a file cannot do alone",
                hint=f"add `--api-key-env {KEY_ENV}` to the command, {TRUST}",
            )


def settings_within(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the place (`judge.endpoint`), name and value of each plain setting, nested ones too."""
    waiting: list[tuple[str, Any]] = [("", values)]
    seen = set[int]()
    while waiting:
        where, one = waiting.pop()
        if id(one) in seen:  # a YAML alias: the same node again, perhaps within itself
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
