"""The allocator of a training process: every step takes and gives back the same gigabyte, so it should be kept."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_memory() -> None:
    """Has freed memory kept for the next step, in huge pages where the system has them.

    By default glibc returns large tensors to the kernel at once and the next step faults them in again, page by page.
    Other C libraries and other devices' memory are left alone. mallopt(3).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at the first tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
