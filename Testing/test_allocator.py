"""The process keeps its memory, and hands it back on request."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEEPS = """
import resource, sys
import numpy as np
from MedDPMLib.runtime.allocator import hand_back_freed_memory, handing_back, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
np.ones(200_000_000, np.uint8)
before = faults()
np.ones(200_000_000, np.uint8)
again = faults() - before
held = resident()
hand_back_freed_memory()
returned = held - resident()
with handing_back():
    np.ones(200_000_000, np.uint8)
    left = resident()
np.ones(200_000_000, np.uint8)
print(kept, again, returned, left - (held - returned), resident() - left)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has glibc's allocator")
def test_a_second_array_costs_no_page_faults_and_the_memory_can_go_back():
    def run(way: str) -> tuple:
        printed = subprocess.run([sys.executable, "-c", KEEPS, way], capture_output=True, text=True, check=True).stdout
        kept, *numbers = printed.split()
        return kept, *map(int, numbers)

    plain, keeping = run("plain"), run("keep")
    if keeping[0] == "False":
        pytest.skip("another C library than glibc")
    # At 4 kB a page, or at 2 MB where the system hands out huge ones.
    assert plain[1] > 50 and keeping[1] < plain[1] / 5
    assert keeping[2] > 150_000_000
    assert keeping[3] < 50_000_000 and keeping[4] > 150_000_000, "handed back within, and kept again after it"
