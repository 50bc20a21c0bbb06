"""The Dockerfile, read as Docker would: no image is built here, so that at least what it names is there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.test_project import PROJECT, pins

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8")
KNOWN = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "ENTRYPOINT", "CMD"}


@dataclass(frozen=True)
class Step:
    """One instruction and the number of its stage; -1 before the first `FROM`."""

    word: str
    rest: str
    stage: int


def steps(text: str) -> list[Step]:
    """Read the instructions: comments are left out, lines that end in a backslash are joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found, stage = list[Step](), -1
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Step(word, rest.strip(), stage))
    return found


def all_of(word: str, stage: int | None = None) -> list[str]:
    return [one.rest for one in steps(TEXT) if one.word == word and stage in (None, one.stage)]


def sources(copy: str) -> list[str]:
    """What a COPY takes from the checkout; nothing if it copies from a stage."""
    words = shlex.split(copy)
    return [] if any(word.startswith("--from=") for word in words) else words[:-1]


def sent(name: str) -> bool:
    """Whether a path at the top of the checkout goes to the builder: the last pattern that matches decides."""
    kept = True
    for line in IGNORED.splitlines():
        if line and not line.startswith("#") and fnmatch(name, line.lstrip("!")):
            kept = line.startswith("!")
    return kept


def test_every_instruction_is_known() -> None:
    assert {one.word for one in steps(TEXT)} == KNOWN


def test_what_is_copied_is_there_and_sent() -> None:
    copied = [name for copy in all_of("COPY") for name in sources(copy)]
    assert {"constraints.txt", "pyproject.toml", "src"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() and sent(name), name
    assert not any(sent(name) for name in (".git", ".venv", "tests", "docs", "benchmarks", ".env", "data.jsonl"))
    stages = [rest.split(" AS ")[1] for rest in all_of("FROM") if " AS " in rest]
    assert all(name in stages for copy in all_of("COPY") for name in re.findall(r"--from=(\S+)", copy))


def test_the_build_backend_gets_every_file_it_reads() -> None:
    """Or the wheel fails: hatchling wants the readme, the licence, and what is put into the wheel by name."""
    copied = {name for copy in all_of("COPY") for name in sources(copy)}
    hatch = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    forced = re.findall(r'^"(\S+)" = "tithe/', hatch, re.M)
    assert forced and {PROJECT["readme"], *PROJECT["license-files"], *forced} <= copied


def test_arguments_are_declared_where_they_are_used() -> None:
    """An ARG holds for its stage only; one before the first FROM for the FROM lines only."""
    for number in range(-1, len(all_of("FROM"))):
        declared = {rest.partition("=")[0] for rest in all_of("ARG", number)}
        words = [one.rest for one in steps(TEXT) if one.stage == number and one.word not in ("ARG", "FROM")]
        if number < 0:
            words = all_of("FROM")
        text = " ".join(words)
        used = {name for pair in re.findall(r"\$\{(\w+)\}|\$(\w+)", text) for name in pair if name} - {"PATH"}
        assert used == declared, (number, used, declared)


def test_the_device_is_the_cpu_unless_an_argument_says_otherwise() -> None:
    assert [rest for rest in all_of("ARG") if rest.startswith("DEVICE")] == ["DEVICE=cpu"] * 2
    (torch,) = (run for run in all_of("RUN", 0) if "download.pytorch.org" in run)
    assert "/whl/${DEVICE}" in torch and "'^torch==' constraints.txt" in torch
    assert len(re.findall(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M)) == 1


def test_versions_are_the_constraints() -> None:
    """None is written twice: the packages come from constraints.txt, in the build environment too."""
    for name, number in re.findall(r"([\w-]+)==([\d.]+)", TEXT):
        assert pins()[name] == number
    (install,) = (run for run in all_of("RUN", 0) if "[${EXTRAS}]" in run)
    assert install.startswith("PIP_CONSTRAINT=constraints.txt ") and "hatchling" in pins()
    extras = next(rest for rest in all_of("ARG", 0) if rest.startswith("EXTRAS=")).removeprefix("EXTRAS=")
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    python = next(rest for rest in all_of("ARG", -1)).removeprefix("PYTHON=")
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_the_image_is_small_and_runs_as_nobody_special() -> None:
    last = len(all_of("FROM")) - 1
    assert last == 1 and all("-slim-" in rest for rest in all_of("FROM"))
    assert all_of("USER") == ["tithe"] and f"--uid 1000 {all_of('USER', last)[0]} " in TEXT
    assert not any("pip install" in run for run in all_of("RUN", last))  # pip's caches stay in the first stage
    assert all("rm -rf /var/lib/apt/lists" in run for run in all_of("RUN") if "apt-get" in run)


def test_the_entry_point_is_the_program() -> None:
    assert [json.loads(rest) for rest in all_of("ENTRYPOINT")] == [["tithe"]]
    assert [json.loads(rest) for rest in all_of("CMD")] == [["--help"]]
    assert all_of("WORKDIR", 1) == ["/data"] and set(PROJECT["scripts"]) == {"tithe"}
    places = [rest for rest in all_of("ENV") if rest.startswith("PATH=")]
    assert len(places) == 2 and all(rest.startswith("PATH=/opt/tithe/bin:$PATH") for rest in places)


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_documents_mount_what_the_image_reads(page: str) -> None:
    """A relative path on a command line in a document is one below the mounted folder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    runs = re.findall(r"^docker run .*$", text, re.M)
    assert runs or page == "README.md"
    assert all(f'-v "$PWD:{all_of("WORKDIR", 1)[0]}"' in run for run in runs)
    for name, value in re.findall(r"--build-arg (\w+)=(\S+)", text):
        assert name in {rest.partition("=")[0] for rest in all_of("ARG")}, (name, value)
