"""How does a process get memory for its arrays?

glibc takes large arrays from the operating system one by one and hands them back at once; every new one is then
cleared page by page when it is first written. A network asks for hundreds of megabytes at every layer: on two CPU
cores an addition takes seven times as long as the addition itself, a whole denoising step about half as long again.
Only a process that is MedDPM's own (the command line, the worker) changes this, never a program that imports the
library.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1

#: While memory is handed back, arrays from this size on (bytes) have pages of their own. Less would be slower and save
#: little; more (glibc allows twice as much) leaves the slabs of a large network to its heap, where gaps add up.
_LARGE = 16 << 20

#: Whether this process is MedDPM's own, and whether it keeps what is freed.
_own = _kept = False


def keep_freed_memory() -> bool:
    """Lets this process, which is MedDPM's own, keep freed memory for its next arrays; False where the C library offers
    no such choice."""
    global _own, _kept
    _own = True
    libc = _glibc()
    _kept = libc is not None and bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
    return _kept


def is_own_process() -> bool:
    """Whether :func:`keep_freed_memory` was called: then this process holds nothing but MedDPM."""
    return _own


def keeps_freed_memory() -> bool:
    """Whether what is freed stays with this process, with the gaps that this leaves."""
    return _kept


@contextmanager
def handing_back() -> Iterator[None]:
    """Within it a process that keeps freed memory hands that of large arrays back, which takes time: the gaps between
    those in use add up to two thirds to what the published BraTS network takes."""
    libc = _glibc() if _kept else None
    if libc is None:
        yield
        return
    for parameter, value in ((_M_MMAP_THRESHOLD, _LARGE), (_M_MMAP_MAX, 2**16)):
        libc.mallopt(parameter, value)
    libc.malloc_trim(0)
    try:
        yield
    finally:
        keep_freed_memory()


def hand_back_freed_memory() -> None:
    """Gives the operating system what :func:`keep_freed_memory` kept and nothing uses now."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
