"""Device and dtype follow from the flags and from what there is."""

import pytest
import torch

from tutelage.errors import UserError
from tutelage.evaluation import device as devices
from tutelage.evaluation.device import choose_device, choose_precision


def test_auto_is_the_best_there_is(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "zeros", lambda n, device: made.append(str(device)) or torch.ones(n))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(f"current {device}"))
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert str(choose_device("auto")) == best
    assert made == ["cuda", "current cuda", "mps", "cpu"]
    assert str(choose_device("cuda:1")) == "cuda:1"
    assert made[-2:] == ["cuda:1", "current cuda:1"]  # where kernels are launched, too


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "cuda:one", "", "mps:7", "vulkan"])
def test_a_device_that_is_not_here_is_one_line(name):
    with pytest.raises(UserError, match=rf"^--device {name} is not available here: use auto, which is \w+$"):
        choose_device(name)


def test_the_dtype_follows_from_the_flag_and_an_emulated_one_is_told_once(monkeypatch, caplog):
    devices._say_emulated.cache_clear()
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.update(options) or False)
    for name in ("cpu", "cuda", "mps"):
        device = torch.device(name)
        assert [choose_precision(asked, device) for asked in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    assert asked == {"including_emulation": False}
    [line] = caplog.messages
    assert "--precision fp32" in line
    devices._say_emulated.cache_clear()
