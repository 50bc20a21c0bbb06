"""One word for each thing: the field's, not one of our own; and every class and file name once in the tree."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tithe"

# What stood here for a thing that has a name in the field -> that name.
PRIVATE = {
    r"roads?": "forward path",
    r"talks?(?! to)": "reporter",
    r"screens?": "reporter",
    r"watch(?:es)?(?=[.(:\]]|\s=)": "input check",  # to watch a process is plain English
    r"(?<!pre-)experience[ds]?": "warm-up",
    r"stand-?ins?|(?-i:Stand Ins?)": "stub",
    r"garages?": "model cache",
    r"shelf|shelves": "listing",
    r"eyes": "prompt scorer",
    r"courts?": "judge loop",
    r"crowd(?:s|ed)?": "worker pool",
    r"sieves?": "candidate filter",
    r"rooms?(?! for)": "memory budget",
    r"company": "batched",
    r"heads? as (?:it is|they are)": "plain head",
    r"passed on": "inherited settings",
}
WORDS = re.compile("|".join(rf"\b(?:{pattern})(?!\w)" for pattern in PRIVATE), re.IGNORECASE)
# Values and keys of run records, which earlier versions have written: they keep their names.
STORED = re.compile(r'(["`])(?:road|roads_not_taken|room|head as it is|empty-talk)\1')
# File names that say what a file is in its folder.
REPEATED = {"__init__", "base", "settings", "files", "screen", "reporter"}


def private_words(text: str) -> set[str]:
    """Find the private words of a text, in names too: `RoadTrip` and `road_trip` have one each."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", STORED.sub("", text)).replace("_", " ")
    found = {word.lower() for word in WORDS.findall(apart)}
    return found | {"the same" for _ in re.finditer(r'"""The same\b', text)}  # as what? say what this one does


def prose(page: Path) -> str:
    """The text of a page without its blocks, which hold data and what commands print."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def words_used() -> dict[str, list[str]]:
    pages = {page: prose(page) for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
    code = {path: f"{path.stem}\n{path.read_text(encoding='utf-8')}" for path in sorted(SOURCE.rglob("*.py"))}
    found = {path.relative_to(ROOT).as_posix(): sorted(private_words(text)) for path, text in (pages | code).items()}
    return {path: words for path, words in found.items() if words}


def repeated(names: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Find the names that several files have: name -> the files."""
    places = defaultdict(list)
    for name, path in names:
        places[name].append(path)
    return {name: sorted(paths) for name, paths in sorted(places.items()) if len(paths) > 1}


def files_twice(root: Path) -> dict[str, list[str]]:
    paths = [path for path in root.rglob("*.py") if path.stem not in REPEATED]
    return repeated([(path.stem, path.relative_to(root).as_posix()) for path in paths])


def classes_twice(root: Path) -> dict[str, list[str]]:
    names = []
    for path in root.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names += [(node.name, path.relative_to(root).as_posix()) for node in nodes if isinstance(node, ast.ClassDef)]
    return repeated(names)


@pytest.mark.parametrize("find", [words_used, lambda: files_twice(SOURCE), lambda: classes_twice(SOURCE)])
def test_every_thing_has_its_own_name_and_the_fields(find: Callable[[], dict[str, list[str]]]) -> None:
    assert find() == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class RoadTrip: ...", {"road"}),
        ("talk_of = StandIn()", {"talk", "stand in"}),
        ("a stand-in, in company", {"stand-in", "company"}),
        ("self.watch.check(Watch(data))", {"watch"}),
        ("the head as it is", {"head as it is"}),
        ("passed_on", {"passed on"}),
        ('{"road": road, "room": 1}', {"road"}),
        ('def f():\n    """The same, but slower."""', {"the same"}),
        (
            "broad headroom, watch the process, the pre-experience of IFD, no room for it, they stand in the same row",
            set(),
        ),
    ],
)
def test_words_are_found(text: str, words: set[str]) -> None:
    assert private_words(text) == words


def test_names_that_occur_twice_are_found(tmp_path: Path) -> None:
    for folder, name in (("a", "rows"), ("b", "rows"), ("a", "base"), ("b", "base")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(f"class {name.title() if folder == 'a' else 'Base'}: ...")
    assert files_twice(tmp_path) == {"rows": ["a/rows.py", "b/rows.py"]}
    assert classes_twice(tmp_path) == {"Base": ["a/base.py", "b/base.py", "b/rows.py"]}
