"""Which labels exist, is this a mask of them, and how does it become a condition?"""

from __future__ import annotations


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    from MedDPMLib.moved import MASKS, find_moved

    return find_moved("masks", MASKS, name)
