from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Hundreds of small regressions: on a busy machine, threads that wait for each other take ten times longer."""
    with threadpool_limits(1):
        yield
