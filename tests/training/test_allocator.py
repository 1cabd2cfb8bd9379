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
faults()
print(faults())
"""


def page_faults(call: str) -> int:
    """Faults of a process's second tensor of 48 MiB."""
    code = COUNT_FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_what_a_step_gave_back_is_there_for_the_next() -> None:
    assert page_faults("allocator.keep_memory()") < 12 < page_faults("")


def test_another_c_library_is_left_alone() -> None:
    page_faults("import ctypes; ctypes.CDLL = lambda name: object(); allocator.keep_memory()")
