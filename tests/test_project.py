"""The frame around the code: pins, licence, changelog, commands, and nothing of anybody's own machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import tithe

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Folders of one machine; written in pieces, so that this file does not find itself.
PRIVATE = re.compile(rb"(?<![\w.~$}-])/(?:" + b"|".join([b"wor" + b"k", b"ro" + b"ot", b"hom" + b"e"]) + rb")/\w")


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!-]+", line) for line in lines), "only `name==version` lines"
    found = [line.split("==") for line in lines]
    names = [canonicalize_name(name) for name, _ in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, (number for _, number in found), strict=True))


def wanted() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [one for one in map(Requirement, texts) if one.name != "tithe"]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_pins_satisfy_what_the_project_asks_for(requirement):
    pinned = pins()
    assert canonicalize_name(requirement.name) in pinned
    assert requirement.specifier.contains(Version(pinned[canonicalize_name(requirement.name)]), prereleases=True)


def test_torch_is_pinned_first_and_once():
    number = pins()["torch"]
    assert next(iter(pins())) == "torch"
    assert f"torch=={number}\n" in (ROOT / "Makefile").read_text()
    for page in ("README.md", "docs/install.md"):  # before the command that takes the constraints
        assert f"pip install torch=={number} " in (ROOT / page).read_text().partition("-c constraints.txt")[0]


def test_the_version_is_one_everywhere():
    assert PROJECT["version"] == tithe.__version__
    assert re.search(rf"^## \[{re.escape(tithe.__version__)}\] - ", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_licence_is_there():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0" and "Version 2.0, January 2004" in text
    for part in ("9. Accepting Warranty", "END OF TERMS AND CONDITIONS", "APPENDIX: How to apply"):
        assert part in text


def test_the_readme_keeps_its_promises():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = re.findall(r"\bmake (\w+)", readme + (ROOT / "CONTRIBUTING.md").read_text())
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert readme.count("<!-- demo -->") == readme.count("<!-- /demo -->") == 1


def project_files() -> list[Path]:
    call = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_folder_of_somebodys_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip().decode(errors='replace')[:100]}"
        for path in project_files()
        if path.suffix not in (".safetensors", ".parquet", ".xz", ".zst", ".gz")
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert not found, "\n".join(found)


def test_private_folders_would_be_noticed():
    for text in ("cd /wor" + "k/main", 'open("/ro' + 'ot/x")', "path=/hom" + "e/me"):
        assert PRIVATE.search(text.encode()), text
    for text in ("training/wor" + "k/x", "~/wor" + "k/x", "https://a.b/wor" + "k/x", "--work wor" + "k/"):
        assert not PRIVATE.search(text.encode()), text


def test_no_large_file_is_checked_in():
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in project_files() if p.stat().st_size > 1_000_000}
    assert set(large) <= {"src/tithe/pocket/model/model.safetensors", "src/tithe/pocket/model/tokenizer.json"}, large
    assert sum(large.values()) <= 42_000_000


def test_ci_demands_the_reference_data():
    script = (ROOT / ".ci" / "run").read_text()
    assert "TITHE_REQUIRE_SHARED=1" in script and "make test" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
