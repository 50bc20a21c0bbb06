"""Whether this machine can confine generated code.

Tests that need it are skipped with the reason where it cannot, unless TITHE_REQUIRE_SANDBOX=1 says that it must.
"""

import os

import pytest

from tithe.lab.evaluate.sandbox import SandboxError, confinement


def demand_sandbox() -> None:
    try:
        confinement()
    except SandboxError as error:
        if os.environ.get("TITHE_REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(f"no sandbox: {error}")
