"""Which device a process computes on; machines with other devices are played."""

import pytest
import torch

from tutelage.errors import UserError
from tutelage.training.devices import find_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two CUDA devices, as far as asking for them goes; which ones were made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    return current


@pytest.mark.parametrize(
    ("name", "local_rank", "processes", "expected"),
    [
        ("auto", 0, 1, "cuda:0"),
        ("cuda", 0, 1, "cuda:0"),
        ("cuda:1", 0, 1, "cuda:1"),
        ("auto", 1, 2, "cuda:1"),
        ("cuda", 1, 16, "cuda:1"),  # the second of two on one of eight machines
    ],
)
def test_the_device_that_is_named_is_the_one_that_is_used(
    two_gpus: list[torch.device], name: str, local_rank: int, processes: int, expected: str
) -> None:
    assert find_device(name, local_rank, processes) == torch.device(expected)
    assert two_gpus == [torch.device(expected)]


@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("cpu", 2), ("cpu:0", 1)])
def test_the_cpu_has_no_number(two_gpus: list[torch.device], name: str, processes: int) -> None:
    assert find_device(name, 0, processes) == torch.device("cpu")
    assert two_gpus == []


@pytest.mark.parametrize(
    ("name", "local_rank", "processes", "line"),
    [
        ("cuda:1", 0, 2, "--device cuda:1 is one device and there are 2 processes: use cuda"),
        ("mps", 0, 2, "--device mps is one device and there are 2 processes: use cpu"),
        ("cuda:2", 0, 1, "cuda:2 is wanted and this machine has 2 CUDA devices"),
        ("auto", 2, 3, "cuda:2 is wanted and this machine has 2 CUDA devices"),
        ("meta", 0, 1, "--device meta is not available: choose auto, cpu, cuda, cuda:N or mps"),
        ("nonsense", 0, 1, "--device nonsense is not available: choose auto, cpu, cuda, cuda:N or mps"),
        ("", 0, 1, "choose auto"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_what_cannot_be_meant_is_one_line(name: str, local_rank: int, processes: int, line: str) -> None:
    with pytest.raises(UserError) as caught:
        find_device(name, local_rank, processes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [RuntimeError, AssertionError, NotImplementedError])
def test_a_driver_that_is_missing_or_too_old_is_one_line(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def fail() -> int:
        raise fault("The NVIDIA driver on your system is too old.\nPlease update\n\nor go to a page")

    monkeypatch.setattr(torch.cuda, "current_device", fail)
    with pytest.raises(UserError) as caught:
        find_device("cuda")
    expected = "--device cuda is not available here (The NVIDIA driver on your system is too old.): use auto or cpu"
    assert str(caught.value) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


def test_an_apple_gpu_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert find_device("auto") == torch.device("mps")
    assert find_device("auto", 0, 2) == torch.device("cpu")
