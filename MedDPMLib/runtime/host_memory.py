"""How much main memory may this process still use? What is free on the machine, within the limits of its containers.

Cluster jobs and containers may use less memory than the machine has (Linux control groups), and are killed when they
use more.
"""

from __future__ import annotations

from pathlib import Path

import psutil

#: For each version of control groups: where it is mounted, the files of limit and use, and the line of ``memory.stat``
#: that tells how much of the use is cached files, which make way.
_VERSION_1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available_memory() -> int:
    """Bytes of main memory that this process can allocate now without failing, being killed or swapping."""
    return max(0, min([psutil.virtual_memory().available, *left_in_groups(Path("/"))]))


def left_in_groups(root: Path) -> list[int]:
    """The bytes that each limited control group of this process may still take; ``root`` is that of the file system.

    A group above may have a limit of its own. Inside a container the group's path is often that outside of it, and
    only the mount itself is there. What cannot be read sets no limit.
    """
    left = []
    for (mount, *files), path in _groups(root / "proc/self/cgroup"):
        top = root / mount
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                left.append(_left(folder, *files))
    return [size for size in left if size is not None]


def _groups(table: Path) -> list[tuple[tuple[str, ...], str]]:
    """The versions in use, each with the path of this process's memory group in it."""
    try:
        lines = [line.split(":", 2) for line in table.read_text().splitlines()]
    except OSError:  # not Linux
        return []
    groups: list[tuple[tuple[str, ...], str]] = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if "memory" in controllers.split(","):
            groups.append((_VERSION_1, path))
        elif number == "0" and not controllers:
            groups.append((_VERSION_2, path))
    return groups


def _left(group: Path, limit: str, use: str, cached: str) -> int | None:
    """The bytes that ``group`` may still take; None without a limit."""
    try:
        # "max" is no number, and no limit.
        allowed, used = int((group / limit).read_text()), int((group / use).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return allowed - used + int(stat.get(cached, 0))
    except (OSError, ValueError):
        return None
