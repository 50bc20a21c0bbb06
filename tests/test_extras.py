"""The install command of a hint works for the installation that prints it."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tithe
from tithe import extras
from tithe.extras import install_hint, installer, requirement


def installed(place: Path, origin: dict[str, object] | None) -> Distribution:
    info = place / "tithe-1.0.dist-info"
    info.mkdir()
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    return PathDistribution(info)


@pytest.mark.parametrize("editable", [True, False])
def test_from_a_folder(tmp_path: Path, editable: bool) -> None:
    source = tmp_path / "my source"
    source.mkdir()
    one = installed(tmp_path, {"url": source.as_uri(), "dir_info": {"editable": editable}})
    assert shlex.split(requirement(one, "tune")) == ["-e"] * editable + [f"{source}[tune]"]


def test_from_a_folder_that_is_gone_from_an_index_or_unknown(tmp_path: Path) -> None:
    for i, origin in enumerate([None, {"url": (tmp_path / "gone").as_uri(), "dir_info": {"editable": True}}]):
        place = tmp_path / str(i)
        place.mkdir()
        assert shlex.split(requirement(installed(place, origin), "tune")) == ["tithe[tune]"]


def test_from_a_wheel_or_a_repository(tmp_path: Path) -> None:
    wheel = tmp_path / "tithe-1.0-py3-none-any.whl"
    wheel.touch()
    origins: list[dict[str, object]] = [
        {"url": wheel.as_uri(), "archive_info": {}},
        {"url": "https://example.org/t.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
    ]
    for i, (origin, url) in enumerate(zip(origins, [wheel.as_uri(), "git+https://example.org/t.git@abc"], strict=True)):
        place = tmp_path / str(i)
        place.mkdir()
        wanted = Requirement(shlex.split(requirement(installed(place, origin), "tune"))[0])
        assert (wanted.name, wanted.extras, wanted.url) == ("tithe", {"tune"}, url)


def test_from_source_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Distribution:
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", none)
    *command, place = shlex.split(install_hint("tune"))
    assert command == ["pip", "install", "-e"]
    assert (Path(place.removesuffix("[tune]")) / "src" / "tithe" / "__init__.py").samefile(tithe.__file__)


@pytest.mark.parametrize(
    ("left", "command"),
    [
        (None, "pip install"),
        ("pyvenv.cfg", "pip install"),
        ("uv-receipt.toml", "uv tool install --force"),
        ("pipx_metadata.json", "pipx install --force"),
    ],
)
def test_the_environment_of_a_tool_is_known(left: str | None, command: str, tmp_path: Path) -> None:
    if left is not None:
        (tmp_path / left).touch()
    assert installer(tmp_path) == command


def test_the_hint_names_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipx_metadata.json").touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert install_hint("tune").startswith("pipx install --force ")
