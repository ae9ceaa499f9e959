"""Main memory: what is free on the machine, and what control groups leave of it."""

from __future__ import annotations

import psutil
import pytest

from MedDPMLib.runtime import host_memory

GB = 10**9
FILES = {
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}
TABLE = {1: "9:cpu,cpuacct:/other\n4:memory:/jobs/job 7\n0::/\n", 2: "0::/jobs/job 7\n"}


@pytest.fixture(params=[1, 2])
def machine(request, tmp_path):
    """A file system with the version's table, and a function that limits a group in it."""
    version = request.param
    mount, limit, use, cached = FILES[version]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(TABLE[version])

    def limited(group: str, allowed: object, used: int = 3 * GB, inactive: int = 1 * GB) -> None:
        folder = tmp_path / mount / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{allowed}\n")
        (folder / use).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"cache 5\n{cached} {inactive}\n")

    return tmp_path, limited


def test_a_limit_leaves_what_is_not_used_and_what_is_only_cached(machine):
    root, limited = machine
    limited("jobs/job 7", 8 * GB)
    assert host_memory.left_in_groups(root) == [6 * GB]


def test_groups_above_limit_too_and_others_do_not(machine):
    root, limited = machine
    limited("jobs/job 7", 8 * GB)
    limited("jobs", 5 * GB)
    limited("", 2**63 - 4096)  # version 1's way to say that there is none
    limited("other", GB)
    assert min(host_memory.left_in_groups(root)) == 3 * GB and len(host_memory.left_in_groups(root)) == 3


def test_in_a_container_only_the_mount_is_there(machine):
    root, limited = machine
    limited("", 4 * GB)
    assert host_memory.left_in_groups(root) == [2 * GB]


@pytest.mark.parametrize("allowed", ["max", "", "nonsense"])
def test_no_number_is_no_limit(machine, allowed):
    root, limited = machine
    limited("jobs/job 7", allowed)
    assert host_memory.left_in_groups(root) == []


@pytest.mark.parametrize("text", [None, "", "\n::\n:", "4:memory\n", "x:y:z:w\n"])
def test_what_cannot_be_read_sets_no_limit(tmp_path, text):
    if text is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(text)
    assert host_memory.left_in_groups(tmp_path) == []


def test_available_is_the_least_of_all_and_never_negative(monkeypatch):
    assert 0 < host_memory.available_memory() <= psutil.virtual_memory().total
    for left, available in (([GB, 2 * GB], GB), ([-GB], 0)):
        monkeypatch.setattr(host_memory, "left_in_groups", lambda root, left=left: left)
        assert host_memory.available_memory() == min(available, psutil.virtual_memory().available)
