"""Pushing to a server on loopback that speaks the hub's API: what arrives, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import Command, read_jsonl
from tests.publish.conftest import lines, read_front
from tests.publish.hub_server import TOKEN, Hub, Repo
from tithe.errors import SettingsError
from tithe.publish.repository import Repository, without_secrets

NAME = "org/some-data"
# The hub's client uploads by a name that its HTTP library has given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_push_makes_a_private_repository_with_card_and_kept_records(tithe: Command, run, hub: Hub):
    done = tithe.ok("push", run, NAME)
    repo = hub.repos[NAME]
    assert repo.private and set(repo.files) == {"README.md", "data/kept.jsonl"}
    assert lines(repo.files["data/kept.jsonl"]) == read_jsonl(run.parent / "kept.jsonl")
    front = read_front(repo.files["README.md"].decode())
    assert front["configs"] == [{"config_name": "kept", "default": True, "data_files": "data/kept.jsonl"}]
    assert "license" not in front and "the licence of the source is not known" in done.err
    assert f"pushed: {hub.url}/datasets/{NAME} (private, 6 kept records)" in done.err
    assert len([path for path in hub.paths("POST") if "/commit/" in path]) == 1, "all files are one commit"


def test_public_dropped_and_licence_are_asked_for(tithe: Command, run, hub: Hub):
    done = tithe.ok("push", run, NAME, "--public", "--with-dropped", "--license", "CC-BY-SA-3.0")
    repo, front = hub.repos[NAME], read_front(hub.repos[NAME].files["README.md"].decode())
    assert not repo.private and front["license"] == "cc-by-sa-3.0"
    assert [one["config_name"] for one in front["configs"]] == ["kept", "dropped"]
    dropped = lines(repo.files["data/dropped.jsonl"])
    assert len(dropped) == 25 and all(isinstance(one["tithe_reason"], str) for one in dropped)
    assert "6 kept and 25 dropped records" in done.err and "not known" not in done.err


def test_large_files_go_by_lfs(tithe: Command, run, hub: Hub):
    hub.lfs_above = 100
    tithe.ok("push", run, NAME)
    assert any(path.startswith("/upload/") for path in hub.paths("PUT"))
    assert lines(hub.repos[NAME].files["data/kept.jsonl"]) == read_jsonl(run.parent / "kept.jsonl")


def test_a_second_push_replaces_what_the_first_left(tithe: Command, run, hub: Hub):
    tithe.ok("push", run, NAME, "--with-dropped")
    hub.repos[NAME].tags = ["tithe"]  # the hub reads them from the card
    tithe.ok("push", run, NAME)
    assert set(hub.repos[NAME].files) == {"README.md", "data/kept.jsonl"}


def test_select_pushes_when_it_is_done(tithe: Command, small, tmp_path, hub: Hub):
    out = tmp_path / "kept.jsonl"
    tithe.ok("select", small, "-m", "pocket", "-s", "length", "-k", 5, "-o", out, "--push-to-hub", NAME)
    assert lines(hub.repos[NAME].files["data/kept.jsonl"]) == read_jsonl(out) and hub.repos[NAME].private
    assert TOKEN not in (tmp_path / "kept.tithe" / "run.json").read_text()


def fails(tithe: Command, hub: Hub, run: Path, *more: str) -> str:
    done = tithe("push", run, NAME, *more)
    assert done.code == 1 and len(done.errors) == 1, done.err
    assert TOKEN not in done.err + done.out
    return done.err


def test_without_a_token(tithe: Command, run, hub: Hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    said = fails(tithe, hub, run)
    assert "there is no token for the hub" in said and "HF_TOKEN" in said and not hub.requests


def test_with_a_token_that_the_hub_does_not_know(tithe: Command, run, hub: Hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_WrongWrong")
    said = fails(tithe, hub, run)
    assert "does not know the token" in said and "hf_WrongWrong" not in said and not hub.repos


def test_with_a_token_that_may_not_write(tithe: Command, run, hub: Hub):
    hub.may_write = False
    said = fails(tithe, hub, run)
    assert f"the token has no right to write to `{NAME}`" in said and not hub.repos


def test_a_repository_that_is_public_is_refused_before_anything_is_sent(tithe: Command, run, hub: Hub):
    hub.repos[NAME] = Repo(private=False)
    said = fails(tithe, hub, run)
    assert "exists and is public" in said and "--public" in said
    assert not hub.repos[NAME].files and not any("commit" in path for path in hub.paths("POST"))
    tithe.ok("push", run, NAME, "--public")
    assert hub.repos[NAME].files


def test_a_private_one_stays_private(tithe: Command, run, hub: Hub):
    hub.repos[NAME] = Repo(private=True)
    assert "is private already, and stays so" in tithe.ok("push", run, NAME, "--public").err
    assert hub.repos[NAME].private


def test_a_repository_with_other_files_is_left_alone(tithe: Command, run, hub: Hub):
    hub.repos[NAME] = Repo(private=True, files={"data/mine.csv": b"a", "notes.txt": b"b"})
    assert "2 files that tithe did not write" in fails(tithe, hub, run)
    assert set(hub.repos[NAME].files) == {"data/mine.csv", "notes.txt"}
    tithe.ok("push", run, NAME, "--overwrite")
    assert set(hub.repos[NAME].files) == {"README.md", "data/kept.jsonl", "notes.txt"}


@pytest.mark.parametrize("step", ["/preupload/", "/commit/", "/api/repos/create", "/upload/", "/lfs/objects/batch"])
def test_an_error_in_the_middle_leaves_nothing_half_written(tithe: Command, run, hub: Hub, step):
    hub.lfs_above, broken = 100, f"disk full, said of Bearer {TOKEN}"
    hub.fault = lambda method, path: (507, broken) if step in path else None
    said = fails(tithe, hub, run)
    assert "answered 507" in said and f"`tithe push RUN {NAME}` tries again" in said
    assert not hub.repos.get(NAME, Repo(True)).files
    hub.fault = lambda method, path: None
    tithe.ok("push", run, NAME)  # and then it does
    assert "data/kept.jsonl" in hub.repos[NAME].files


def test_a_selection_is_not_lost_when_the_push_fails(tithe: Command, small, tmp_path, hub: Hub):
    hub.fault = lambda method, path: (501, "no") if "/commit/" in path else None
    out = tmp_path / "kept.jsonl"
    done = tithe("select", small, "-m", "pocket", "-s", "length", "-k", 5, "-o", out, "--push-to-hub", NAME)
    assert done.code == 1 and "answered 501" in done.err and len(read_jsonl(out)) == 5
    assert json.loads((tmp_path / "kept.tithe" / "run.json").read_text())["outcome"] == {"status": "finished"}


def test_select_asks_the_hub_before_it_reads(tithe: Command, small, tmp_path, hub: Hub):
    hub.repos[NAME] = Repo(private=False)
    out = tmp_path / "kept.jsonl"
    done = tithe("select", small, "-m", "pocket", "-s", "length", "-k", 5, "-o", out, "--push-to-hub", NAME)
    assert done.code == 1 and "exists and is public" in done.err and not (tmp_path / "kept.tithe").exists()
    done = tithe("select", small, "-m", "pocket", "-s", "length", "-o", out, "--public")
    assert done.code == 2 and "go with a push" in done.err


def test_a_hub_that_is_not_there(tithe: Command, run, hub: Hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub at http://127.0.0.1:9 cannot be used" in fails(tithe, hub, run)


def test_a_hub_that_is_switched_off(tithe: Command, run, hub: Hub, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "`HF_HUB_OFFLINE` is set" in fails(tithe, hub, run)


@pytest.mark.parametrize("name", ["", "data", "a/b/c", "a/..", "a b/c", "https://x/y", "a/b.git", "é/b", "a/b\n"])
def test_what_is_no_name(name):
    with pytest.raises(SettingsError, match="no repository's name"):
        Repository(name)


def test_what_looks_like_a_token_is_blanked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret value")
    assert without_secrets("a secret value, Bearer abc and hf_0123456789") == "a ***, Bearer *** and ***"


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    import sys

    from tithe.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError) as caught:
        Repository(NAME).check()
    assert "hub" in (caught.value.hint or "")
