"""Run one half of a program inside a sandbox: the solution, or the tests that judge it.

`sandbox.py` starts this file twice, each time in its own sandbox, and relays the messages between the two. The half
with the tests calls the solution's functions and gets plain values back, so the solution never sees the tests, the
values they expect, or where the verdict is decided. This file imports nothing from tithe.

A message is one letter, the length of the body in four bytes, and the body. Nothing that the solution sends is
trusted: values are rebuilt from JSON as plain Python values, and the worst they can do is end this one program.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import resource
import struct
import sys
import types
from collections import abc, deque
from collections.abc import Callable
from itertools import islice
from typing import Any

HEAD = struct.Struct(">cI")
JOB, READY, LOADED, CALL, REPLY, PASSED, FAILED = (bytes([letter]) for letter in b"jrlcaPF")
WORDS = 200  # characters kept of an error
SMALL = 1 << 64  # larger integers go in base 16: converting them to decimal takes quadratic time
MOST_ITEMS = 1 << 20  # taken from an iterator, which may be endless


class Channel:
    """Exchange messages with the process that started this one."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")

    def send(self, kind: bytes, body: bytes = b"") -> None:
        self.writes.write(HEAD.pack(kind, len(body)) + body)
        self.writes.flush()

    def receive(self) -> tuple[bytes, bytes]:
        kind, size = HEAD.unpack(self.reads.read(HEAD.size))
        return kind, self.reads.read(size)

    def ask(self, question: dict[str, Any]) -> Any:
        """Send a question to the solution's half and return its answer."""
        self.send(CALL, json.dumps(question).encode())
        return json.loads(self.receive()[1])


class Opaque:
    """Represent a value that cannot be sent; it equals only itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


# Name in a message -> type, function that takes a value apart, function that rebuilds it. The first type that fits is
# taken, so a value of a subclass arrives as its base.
KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "float": (float, lambda value: float.__float__(value), float),
    "text": (str, lambda value: str.__str__(value), str),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "tuple": (tuple, list, tuple),
    "set": (set, list, set),
    "frozenset": (frozenset, list, frozenset),
    "dict": (dict, lambda value: [[key, one] for key, one in value.items()], dict),
    "list": (list, list, list),
    "deque": (deque, list, deque),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    "keys": (abc.KeysView, list, lambda parts: dict.fromkeys(parts).keys()),
    "items": (abc.ItemsView, list, lambda parts: dict(parts).items()),
    "values": (abc.ValuesView, list, lambda parts: dict(enumerate(parts)).values()),
    "iterator": (abc.Iterator, lambda value: list(islice(value, MOST_ITEMS)), iter),
}


def pack(value: Any) -> Any:
    """Return a value as JSON: plain values unchanged, others as `{kind: parts}`."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and -SMALL < value < SMALL):
        return value
    if kind is list:
        return [pack(one) for one in value]
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and not getattr(value, "shape", None):
        return pack(value.item())
    if kind.__module__ in ("fractions", "decimal") and kind.__name__ in ("Fraction", "Decimal"):
        return {kind.__name__: str(value)}
    for name, (base, parts, _) in KINDS.items():
        if isinstance(value, base):
            made = parts(value)
            return {name: pack(made) if type(made) is list else made}
    return {"opaque": kind.__name__}


def unpack(value: Any) -> Any:
    """Rebuild a value from what `pack` returned."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    ((name, parts),) = value.items()
    if name == "opaque":
        return Opaque(str(parts))
    if name == "Fraction":
        from fractions import Fraction

        return Fraction(parts)
    if name == "Decimal":
        from decimal import Decimal

        return Decimal(parts)
    return KINDS[name][2](unpack(parts))


class EndedError(BaseException):
    """The solution tried to exit. A `BaseException`, so that no `except Exception` in the tests catches it."""


class SolutionError(Exception):
    """The solution raised an error that is not one of Python's own."""


class RemoteFunction:
    """Call a function of the solution, which runs in the other sandbox."""

    def __init__(self, channel: Channel, name: str) -> None:
        self.channel, self.__name__ = channel, name

    def __call__(self, *args: Any, **named: Any) -> Any:
        answer = self.channel.ask({"call": self.__name__, "args": pack(args), "named": pack(named)})
        if "raised" not in answer:
            return unpack(answer["value"])
        name, text, ordinary = answer["raised"]
        if not ordinary:
            raise EndedError(f"{name}: {text}")
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # `UnicodeDecodeError` and others take more than a message
                raise kind(text)
        raise SolutionError(f"{name}: {text}")


class Names(dict[str, Any]):
    """Look up names for the tests: first their own, then Python's, then the solution's."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(__name__="tests")
        self.channel = channel

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        answer = self.channel.ask({"name": name})
        if "value" in answer:
            self[name] = unpack(answer["value"])
        elif answer.get("callable"):
            self[name] = RemoteFunction(self.channel, name)
        else:
            raise KeyError(name)
        return self[name]


def judge(channel: Channel, job: dict[str, Any]) -> None:
    """Run the tests and report the result; `PASSED` is sent only after their last line."""
    names = Names(channel)
    try:
        with contextlib.suppress(
            SyntaxError
        ):  # the prompt alone is often not a complete program: then only the solution has it
            given = compile(job["given"], "given.py", "exec")
            exec(given, names)
            names.pop(job["entry_point"], None)
        exec(compile(job["code"], "tests.py", "exec"), names)
    except BaseException as error:
        channel.send(FAILED, describe_error(error))
    else:
        channel.send(PASSED)


def serve(channel: Channel, job: dict[str, Any]) -> None:
    """Load the solution and answer the tests' questions one by one."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(job["code"], "solution.py", "exec"), module.__dict__)
    except BaseException as error:  # including `SystemExit`
        channel.send(FAILED, describe_error(error))
        return
    channel.send(LOADED)
    while True:
        question = json.loads(channel.receive()[1])
        channel.send(REPLY, json.dumps(answer_question(module, question)).encode())


def answer_question(module: types.ModuleType, question: dict[str, Any]) -> dict[str, Any]:
    """Look up a name or call a function of the solution."""
    if "name" in question:
        if not hasattr(module, question["name"]):
            return {}
        value = getattr(module, question["name"])
        return {"callable": True} if callable(value) else {"value": pack(value)}
    try:
        called = getattr(module, question["call"])
        return {"value": pack(called(*unpack(question["args"]), **unpack(question["named"])))}
    except BaseException as error:
        name, _, text = describe_error(error).decode().partition(": ")
        return {"raised": [name, text, isinstance(error, Exception)]}


def describe_error(error: BaseException) -> bytes:
    """Describe an error briefly."""
    try:
        text = str(error)
    except Exception:  # the program may define a `__str__` that raises
        text = ""
    name = str(error) if isinstance(error, EndedError | SolutionError) else f"{type(error).__name__}: {text}"
    return name[:WORDS].encode("utf-8", "replace")


def limit(limits: dict[str, Any]) -> None:
    """Set this process's resource limits; hard limits, so the program cannot raise them again."""
    seconds = limits["cpu_seconds"]
    wanted = {
        "RLIMIT_AS": (limits["memory_bytes"],) * 2,
        "RLIMIT_CPU": (seconds, seconds + 1),
        "RLIMIT_FSIZE": (limits["file_bytes"],) * 2,
        "RLIMIT_NOFILE": (limits["open_files"],) * 2,
        "RLIMIT_NPROC": (limits["threads"],) * 2,
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
        "RLIMIT_CORE": (1, 1),  # not 0: Linux still pipes a core to the host's handler at 0, but not at 1
    }
    for name, values in wanted.items():
        resource.setrlimit(getattr(resource, name), values)


def main() -> None:
    """Read the job, confine this process, and run the job's half."""
    channel = Channel(os.dup(0), os.dup(1))
    for place in (0, 1):
        os.dup2(2, place)  # /dev/null: the program can neither read nor print messages
    sys.argv = ["program.py"]
    os.environ.pop("PWD", None)
    job = json.loads(channel.receive()[1])
    limit(job["limits"])
    channel.send(READY)
    (serve if job["role"] == "solution" else judge)(channel, job)
    os._exit(0)


if __name__ == "__main__":
    main()
