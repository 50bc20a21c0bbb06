"""For every test: no network, and a small model of our own."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if (runners := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:  # they share the cores out
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // runners)))

from tests.sandboxed import demand_sandbox
from tests.shared import SHARED  # torch looks at the variables as it is imported
from tests.small_model import make_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# A script's `&` has SIGINT ignored, `nohup` SIGHUP, and what is started here inherits it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Offline(OSError):
    """A test wanted to leave this machine."""


def is_loopback(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = str(address[0])
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections beyond loopback, and the names of other hosts, are refused; subprocesses read the variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            real = getattr(socket.socket, name)

            def checked(self: socket.socket, address: Any, real: Any = real) -> Any:
                if not is_loopback(address):
                    raise Offline(f"a test connects to {address}")
                return real(self, address)

            patch.setattr(socket.socket, name, checked)
        look_up = socket.getaddrinfo

        def resolved(host: Any, *rest: Any, **more: Any) -> Any:
            if host is not None and not is_loopback((host.decode() if isinstance(host, bytes) else host,)):
                raise socket.gaierror(socket.EAI_NONAME, f"a test looks up {host}")
            return look_up(host, *rest, **more)

        patch.setattr(socket, "getaddrinfo", resolved)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level BPE and a chat template; the same weights every time."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and data sets beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def sandbox() -> None:
    """A machine that can confine generated code."""
    demand_sandbox()
