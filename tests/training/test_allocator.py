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
print(min(faults() for _ in range(6)))
"""


def page_faults(call: str) -> int:
    """Faults of a tensor of 48 MiB that a process makes again and again, once it has found its place."""
    code = COUNT_FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_what_a_step_gave_back_is_there_for_the_next() -> None:
    # not always none: in about one process of ten some 2 MiB come and go (536 faults, of 12,289)
    assert 10 * page_faults("allocator.keep_memory()") < page_faults("")


def test_another_c_library_is_left_alone() -> None:
    page_faults("import ctypes; ctypes.CDLL = lambda name: object(); allocator.keep_memory()")
