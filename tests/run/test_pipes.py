"""A pipe in place of one of our files is refused or replaced: reading it would wait forever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_foreign_fuzz import alarm
from tithe.data.checksum import StoredPart
from tithe.data.templates import _file_source
from tithe.data.trainers import _read_info
from tithe.errors import OutputError, StoreError, TemplateError, TitheError
from tithe.run import answers, folder, run_model, workbench
from tithe.run.folder import RECORD

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (run_model.read_choices, StoreError),
        (_read_info, OutputError),
        (lambda path: _file_source(str(path)), TemplateError),
        (lambda path: StoredPart(1, path, "0" * 8).read("h"), StoreError),
    ],
)
def test_it_is_refused(tmp_path: Path, read: Callable[[Path], object], error: type[TitheError]) -> None:
    path = tmp_path / "x.jinja"
    os.mkfifo(path)
    with alarm(20), pytest.raises(error, match=r"x\.jinja"):
        read(path)


def test_it_is_nothing_of_ours(tmp_path: Path) -> None:
    path = tmp_path / RECORD
    os.mkfifo(path)
    with alarm(20):
        assert folder.last_finished(path) is None
        assert not workbench.is_ours(path) and not folder.has_our_record(path)
        assert answers.data_of(tmp_path) is None
