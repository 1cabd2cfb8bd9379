"""The allocator of a training process: every step takes and gives back the same gigabyte, so it should be kept."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def request_huge_pages() -> None:
    """Asks for large tensors in huge pages, where the system has them; torch looks once, at the first tensor made."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_memory() -> None:
    """Has freed memory kept for the next step, and calls `request_huge_pages`, which may be too late by then.

    By default glibc returns large tensors to the kernel at once and the next step faults them in again, page by page.
    Other C libraries and other devices' memory are left alone. mallopt(3).

    It is for training on a CPU and holds for the whole process, for good: memory that anything in it frees from then
    on, in whatever library, stays with the process, and its peak is what it keeps. So call it once everything large
    that is needed only to start has been freed.
    """
    request_huge_pages()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
