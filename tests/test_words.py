"""One word for each thing: the field's, not one of our own; and every class and file name once in the tree.

`still_to_rename.json` lists what does not keep the rule yet, and may only become shorter. After cleaning something up,
`python -m tests.test_words` writes it anew; a new entry in it is refused in review.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tithe"
LIST = Path(__file__).with_name("still_to_rename.json")

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
# File names that say what a file is in its folder.
REPEATED = {"__init__", "base", "settings", "files", "screen", "reporter"}


def private_words(text: str) -> set[str]:
    """Find the private words of a text, in names too: `RoadTrip` and `road_trip` have one each."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).replace("_", " ")
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


RULES = {
    "private words": words_used,
    "file names that occur twice": lambda: files_twice(SOURCE),
    "class names that occur twice": lambda: classes_twice(SOURCE),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_still_to_rename_only_becomes_less(rule: str) -> None:
    listed, found = json.loads(LIST.read_text(encoding="utf-8"))[rule], RULES[rule]()
    new = {name: sorted(set(what) - set(listed.get(name, ()))) for name, what in found.items()}
    assert not {name: what for name, what in new.items() if what}, f"{rule}: use another name"
    gone = {name: sorted(set(what) - set(found.get(name, ()))) for name, what in listed.items()}
    gone = {name: what for name, what in gone.items() if what}
    assert not gone, f"{rule}: well done; write the list anew with `python -m tests.test_words`"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class RoadTrip: ...", {"road"}),
        ("talk_of = StandIn()", {"talk", "stand in"}),
        ("a stand-in, in company", {"stand-in", "company"}),
        ("self.watch.check(Watch(data))", {"watch"}),
        ("the head as it is", {"head as it is"}),
        ("passed_on", {"passed on"}),
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


if __name__ == "__main__":
    found = {rule: find() for rule, find in RULES.items()}
    LIST.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
