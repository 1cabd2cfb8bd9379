"""The dtype follows from the flag."""

import torch

from tutelage.evaluation import precision as module
from tutelage.evaluation.precision import choose_precision


def test_the_dtype_follows_from_the_flag_and_an_emulated_one_is_told_once(monkeypatch, caplog):
    module._say_emulated.cache_clear()
    asked = {}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.update(options) or False)
    for name in ("cpu", "cuda", "mps"):
        device = torch.device(name)
        assert [choose_precision(asked, device) for asked in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    assert asked == {"including_emulation": False}
    [line] = caplog.messages
    assert "--precision fp32" in line
    module._say_emulated.cache_clear()
