"""The wheel and the sdist: what is in them, and that the wheel works where the sources are not."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import tithe

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = f"tithe-{tithe.__version__}"
# What a program needs besides its modules; a page without its files, or a demo without its model, would fail at last.
DATA = {
    *("tithe/py.typed", "tithe/SKILL.md"),
    *("tithe/look/page.html", "tithe/look/page.css", "tithe/look/page.js"),
    *("tithe/pocket/starter.jsonl", "tithe/pocket/model/model.safetensors", "tithe/pocket/model/config.json"),
    *("tithe/pocket/model/tokenizer.json", "tithe/pocket/model/README.md"),
    *(f"{NAME}.dist-info/licenses/LICENSE", f"{NAME}.dist-info/entry_points.txt"),
}
SDIST = {"PKG-INFO", "pyproject.toml", ".gitignore", "src"} | {
    name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"] if "/" not in name
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")),
        reason="`build` and `hatchling` are in the extra `dev`",
    ),
]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of this folder, and a wheel made from the sdist alone, without a package index."""
    made = tmp_path_factory.mktemp("dist")
    call = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(ROOT)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in made.iterdir()} == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    return made


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"{NAME}-py3-none-any.whl"


def tracked(folder: str) -> set[str]:
    """Files below a folder that are, or will be, checked in."""
    call = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert names >= DATA
    assert {name.split("/")[0] for name in names} == {"tithe", f"{NAME}.dist-info"}
    package = {name for name in names if name.startswith("tithe/")}
    assert package == {name.removeprefix("src/") for name in tracked("src/tithe")} | {"tithe/SKILL.md"}


def test_the_sdist_has_what_a_wheel_is_made_of(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as file:
        names = {PurePosixPath(name).relative_to(NAME) for name in file.getnames()}
    assert {name.parts[0] for name in names} == SDIST
    assert {str(name) for name in names if name.parts[0] == "src"} == tracked("src/tithe")


def test_the_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        told = email.message_from_bytes(file.read(f"{NAME}.dist-info/METADATA"))
        points = file.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert told["Name"] == "tithe" and told["Version"] == tithe.__version__
    assert told["Summary"] == PROJECT["project"]["description"] and told["Requires-Python"] == ">=3.11"
    assert told["License-Expression"] == "Apache-2.0" and told.get_all("License-File") == ["LICENSE"]
    assert told["Description-Content-Type"] == "text/markdown" and told["Keywords"] and told["Author"]
    assert told.get_all("Project-URL") is None  # none is known, and none is made up
    assert set(told.get_all("Provides-Extra")) == set(PROJECT["project"]["optional-dependencies"])
    assert "tithe = tithe.cli:main" in points
    assert {f"[{group}]" for group in PROJECT["project"]["entry-points"]} <= set(points.splitlines())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a fresh environment with the wheel in it, which takes the dependencies from this one's folders."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    call = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
    call += ["--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # As plain lines, so that an editable installation of the sources is not taken over.
    (site,) = place.glob("lib/python*/site-packages")
    lines = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(lines))
    return place / "bin"


def tell(installed: Path, where: Path, *call: str) -> tuple[str, str]:
    """Standard output and error of a program of that environment, which must end well."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [installed / call[0], *call[1:]], cwd=where, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_wheel_works_alone(installed: Path, tmp_path: Path) -> None:
    """From the installation: version, listings, and a selection of the bundled records by the bundled model."""
    place, _ = tell(installed, tmp_path, "python", "-c", "import tithe; print(tithe.__file__)")
    assert Path(place.strip()).is_relative_to(installed.parent)
    assert tell(installed, tmp_path, "tithe", "--version")[0] == f"{tithe.__version__}\n"
    rows = json.loads(tell(installed, tmp_path, "tithe", "scorers", "--json")[0])
    assert {row["name"] for row in rows} == set(PROJECT["project"]["entry-points"]["tithe.scorers"])
    found = {row["what"]: row["found"] for row in json.loads(tell(installed, tmp_path, "tithe", "doctor", "--json")[0])}
    assert found["tithe"] == tithe.__version__ and found["bundled model `pocket`"] == "there"
    assert Path(found["how to use it, for assistants"]) == Path(place.strip()).parent / "SKILL.md"
    assert all(re.search(r"^(pip install '?tithe|installed)", v) for k, v in found.items() if k.startswith("extra "))
    call = ("tithe", "select", "starter", "--model", "pocket", "--limit", "20", "--keep", "5", "-o", "kept.jsonl")
    out, err = tell(installed, tmp_path, *call, "--json")
    record = json.loads(out)
    assert record["selection"]["kept"] == 5 and record["versions"]["tithe"] == tithe.__version__
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 5 and "written" not in out and "kept: kept.jsonl" in err
    tell(installed, tmp_path, "tithe", "look", "kept.tithe", "-o", "look.html")
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html") or page.startswith("<!DOCTYPE html")
