import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from tutelage.training import allocator
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(48 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(16)))
"""


def page_faults(call: str) -> int:
    """Faults of a tensor of 48 MiB that a process makes again and again, once it has found its place.

    In one process of twenty glibc's cache of small chunks, of seven places, first keeps freed neighbours apart.
    """
    code = COUNT_FAULTS.format(call=call)
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}  # a run may have set it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_what_a_step_gave_back_is_there_for_the_next() -> None:
    assert 10 * page_faults("allocator.keep_memory()") < page_faults("")


def test_another_c_library_is_left_alone() -> None:
    page_faults("import ctypes; ctypes.CDLL = lambda name: object(); allocator.keep_memory()")
