"""How does inference save memory?"""

from __future__ import annotations

from enum import Enum


class MemoryMode(Enum):
    """How an optimized network uses memory, the fastest first."""

    FAST = "fast: whole volumes, or slabs that fill the cache"
    LOW = "low: thin slabs, slower"
    LOWEST = "lowest: thin slabs, and volumes kept in bfloat16"
