"""Device names: one device, several of a kind, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tithe.engine.devices import choose_device, choose_devices, device_names
from tithe.errors import SettingsError

H100, T4 = "NVIDIA H100", "Tesla T4"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake a machine with these GPUs, which a test may change."""
    there = [H100, H100, H100]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(there))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(there))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: there[index])
    return there


def chosen(wanted: str) -> list[str]:
    return [str(device) for device in choose_devices(wanted)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        ("cuda, cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda", ["cuda"]),
        ("cuda:1", ["cuda:1"]),
        ("cpu", ["cpu"]),
        ("cpu,cpu,cpu", ["cpu", "cpu", "cpu"]),
    ],
)
def test_on_a_machine_with_three_gpus(gpus: list[str], wanted: str, found: list[str]) -> None:
    assert chosen(wanted) == found


def test_all_are_those_like_the_first(gpus: list[str]) -> None:
    gpus[1] = T4
    assert chosen("auto") == chosen("cuda:all") == ["cuda:0", "cuda:2"]
    gpus[:] = [T4, H100]
    assert chosen("auto") == ["cuda"]
    gpus[:] = [H100]
    assert chosen("auto") == chosen("cuda:all") == ["cuda"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cuda:0,cuda:0", "names `cuda:0` twice"),
        ("cuda,cuda:0", "names `cuda:0` twice"),
        ("cuda:0,cuda:7", "there is no device `cuda:7`"),
        ("cpu,cuda:0", "2 kinds (cpu, cuda)"),
        ("cuda:0,", "is no list of devices"),
        ("cuda:0,auto", "is no list of devices"),
        ("cuda:all,cuda:0", "is no list of devices"),
        ("cuda:0,cuda:2", f"different makes ({H100}, {T4})"),
        ("cuda:0,grape", "no device `grape`"),
    ],
)
def test_refused(gpus: list[str], wanted: str, message: str) -> None:
    gpus[2] = T4
    with pytest.raises(SettingsError) as caught:
        choose_devices(wanted)
    assert message in str(caught.value) and caught.value.hint


def test_all_of_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    for wanted in ("cuda:all", "cuda:0,cuda:1"):
        with pytest.raises(SettingsError, match="not available here"):
            choose_devices(wanted)


@pytest.mark.parametrize("wanted", ["cpu,cpu", "cuda:all"])
def test_where_one_alone_is_used_several_are_refused(wanted: str) -> None:
    with pytest.raises(SettingsError, match="names several devices, but this command uses one"):
        choose_device(wanted)


def test_equal_devices_are_told_apart() -> None:
    assert device_names(choose_devices("cpu,cpu")) == ["cpu (1 of 2)", "cpu (2 of 2)"]
    assert device_names((torch.device("cuda", 0), torch.device("cuda", 1))) == ["cuda:0", "cuda:1"]
