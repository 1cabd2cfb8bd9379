"""Small tensors on shared cores: one thread is faster than two that wait for each other."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported


@pytest.fixture(scope="package", autouse=True)
def _quick_interpreter():
    """Triton's interpreter prepares its language for every helper that a kernel calls, which is most of its time."""
    try:
        from triton import language
        from triton.runtime import interpreter
    except ImportError:
        yield
        return

    def call(helper, *args, **kwargs):
        if any(language.core.is_builtin(module.load) for module in (language, language.core)):
            interpreter._patch_lang(helper.fn)
        return helper.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
