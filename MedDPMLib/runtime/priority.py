"""How does a process that computes in the background give way to the program that somebody works with?"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

#: Steps by which the system's scheduler prefers other processes (niceness of POSIX).
_STEPS = 5

#: Variables by which OpenMP's threads sleep while they wait for each other (libgomp, Intel's and LLVM's library). By
#: default they keep their processor busy, and what should run on it, the other threads among them, waits.
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def give_way() -> None:
    """Lowers the priority of this process, and of what it starts from now on; where that fails it stays."""
    if sys.platform == "win32":
        with suppress(ImportError, OSError):
            import psutil

            psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        return
    with suppress(OSError):
        os.nice(_STEPS)
