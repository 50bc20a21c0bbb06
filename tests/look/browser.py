"""A headless Chromium; without one the tests skip with a reason, unless it is required."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """Return the path of a Chromium; skip the test if there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        message = f"no browser: none of {', '.join(NAMES)} is installed"
        assert not os.environ.get("TITHE_REQUIRE_BROWSER"), message
        pytest.skip(message)
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """Start it; it reaches no network."""
    from playwright.sync_api import sync_playwright

    path = executable()
    with sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
        browser = started.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
