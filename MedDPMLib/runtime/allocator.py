"""How does a process allocate memory for its arrays?

glibc requests large arrays from the operating system one by one and returns them at once; every new one is then cleared
page by page when it is first written. A network needs hundreds of megabytes at every layer: on two CPU cores an
addition takes seven times as long because of this, a whole denoising step about half as long again. Only MedDPM's own
processes (the command line, the worker) change this, never a program that imports the library.
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

#: While memory is returned, arrays of at least this size (bytes) have pages of their own. Less would be slower and save
#: little; more (glibc allows twice as much) leaves the slabs of a large network to its heap, where gaps accumulate.
_LARGE = 16 << 20

#: Whether this process is MedDPM's own, and whether it keeps what is freed.
_own = _kept = False


def keep_freed_memory() -> bool:
    """Makes this process, which is MedDPM's own, keep freed memory for its next arrays; False where the C library does
    not support this."""
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
    """In this context a process that keeps freed memory returns that of large arrays, which takes time: otherwise the
    gaps between arrays add up to two thirds to the memory of the published BraTS network."""
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
    """Returns unused memory that :func:`keep_freed_memory` kept to the operating system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
