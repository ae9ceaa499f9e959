"""Long paths of Windows: the rule can be tested anywhere, for it is about text."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedDPMLib.runtime import paths

DEEP = "\\".join(["a folder with spaces"] * 12)


@pytest.mark.parametrize("root", ["C:\\Users\\Jürgen Öztürk\\", "D:\\", "\\\\server\\share\\"])
def test_long_paths_get_the_prefix_that_lifts_the_limit(root):
    short, long = root + "masks\\case.nii.gz", root + DEEP + "\\case.nii.gz"
    assert paths._unlimited(short) == short
    reached = paths._unlimited(long)
    assert reached.startswith("\\\\?\\") and len(long) > 260
    assert paths._unlimited(reached) == reached
    # The same file: without the prefix the path is what it was.
    bare = reached.removeprefix("\\\\?\\")
    assert (bare if root[1] == ":" else "\\" + bare.removeprefix("UNC")) == long
    assert PureWindowsPath(reached).name == "case.nii.gz"


@given(st.integers(0, 400))
def test_a_folder_that_stays_as_it_is_leaves_room_for_a_name_and_a_temporary_one(length):
    folder = "C:\\" + "x" * length
    if paths._unlimited(folder) == folder:
        assert len(folder + "\\preview-0123456789abcdef.npy" + "\\.01234567.nii.gz") < 260


def test_elsewhere_paths_stay_as_they_are(tmp_path):
    long = tmp_path / Path(*["a folder with spaces"] * 12)
    assert paths.reachable(long) == long
    assert paths.reachable("relative/file") == Path("relative/file")
