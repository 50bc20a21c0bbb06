"""Run the command in this process, as the shell would, and look at what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.forked import Forked
from tithe import cli


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def hints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("hint: ")]


@dataclass(frozen=True)
class Command:
    """`tithe(...)` runs the command; arguments are made to text."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Done:
        self.capture.readouterr()
        self.patch.setattr(sys, "argv", ["tithe", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = self.capture.readouterr()
        return Done(code, captured.out, captured.err)

    def ok(self, *arguments: object) -> Done:
        """The same, and it must work."""
        done = self(*arguments)
        assert done.code == 0, done.err
        return done

    def fails(self, *arguments: object, code: int = 1) -> Done:
        """The same, and it must stop with one sentence and at most one hint."""
        done = self(*arguments)
        assert done.code == code, f"exit {done.code}: {done.err or done.out}"
        assert len(done.errors) == 1, done.err
        assert len(done.hints) <= 1, done.err
        assert done.err.splitlines()[-1].startswith(("error: ", "hint: ")), done.err
        assert "Traceback" not in done.err and "fault in tithe" not in done.err, done.err
        return done


def child(
    script: str, *arguments: object, env: Mapping[str, str] | None = None, fresh: bool = False, session: bool = False
) -> subprocess.Popen[str]:
    """Start a Python process of its own that runs `script` with the arguments in `sys.argv`.

    It is a fork of one that has imported all of tithe, unless a `fresh` interpreter is asked for.
    """
    texts = list(map(str, arguments))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
    if sys.platform == "linux" and not fresh:
        return cast("subprocess.Popen[str]", Forked(script, texts, environment, session))
    return subprocess.Popen(
        [sys.executable, "-c", script, *texts],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records(n: int) -> list[dict[str, Any]]:
    """Alpaca records, all different, of many lengths, with columns besides."""
    words = ["red", "green", "blue", "answer", "letter", "weather", "friend", "book", "rainbow", "thank", "sum"]
    made = []
    for i in range(n):
        text = [words[(i * 7 + j * j * 3 + j * i) % len(words)] for j in range(1 + (i * 13) % 37)]
        made.append(
            {
                "instruction": f"Write about {words[i % len(words)]} in {1 + i % 37} words, number {i}.",
                "input": "" if i % 3 else f"Begin with {words[(i + 5) % len(words)]}.",
                "output": " ".join(text),
                "category": ["letters", "sums", "colours"][i % 3],
                "n": i,
            }
        )
    return made


def alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not waited for counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
