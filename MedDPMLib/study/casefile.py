"""How is a prepared case stored, so that its file says nothing but its voxels?

NRRD with a fixed header, compressed, and padded to one length for all cases: the size of a compressed image tells how
smooth it is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.runtime.files import atomic_write

#: Lengths of files are multiples of it.
_SIZE_CLASS = 1 << 16

#: An empty stored block of deflate: five bytes that stand for nothing.
_NOTHING = b"\x00\x00\x00\xff\xff"
_END = b"\x01\x00\x00\xff\xff"
_GZIP = b"\x1f\x8b\x08%c\x00\x00\x00\x00\x00\xff"
_COMMENT = b"\x10"


def compress(array: np.ndarray) -> bytes:
    """The deflated voxels of ``array`` (k, j, i), uint8, open for padding."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(np.ascontiguousarray(array).tobytes()) + compressor.flush(zlib.Z_SYNC_FLUSH)


def common_length(lengths: Iterable[int]) -> int:
    """The length to which compressed cases of such ``lengths`` are padded, so that all files are alike."""
    return -(-(max(lengths) + 16) // _SIZE_CLASS) * _SIZE_CLASS


def write_case(path: Path, compressed: bytes, array: np.ndarray, grid: Grid, length: int) -> None:
    """Writes ``array`` (k, j, i), uint8, on ``grid`` around the origin; ``compressed`` comes of :func:`compress`, and
    the file's data have exactly ``length`` bytes."""
    if array.dtype != np.uint8 or array.shape != grid.shape:
        raise MedDPMError(f"a case of {array.dtype} {array.shape} does not fit the study's grid {grid.shape}")
    data = _padded(compressed, zlib.crc32(np.ascontiguousarray(array)), array.size, length)
    with atomic_write(path) as temporary:
        temporary.write_bytes(_header(grid) + data)


def case_geometry(grid: Grid) -> Geometry:
    """Where the voxels of every case lie: ``grid`` around the origin."""
    return grid.centered_on(np.zeros(3))


def _padded(compressed: bytes, crc: int, size: int, length: int) -> bytes:
    """A gzip stream of ``length`` bytes: empty blocks fill it up, and a comment what is no multiple of five."""
    trailer = _END + struct.pack("<II", crc, size & 0xFFFFFFFF)
    room = length - len(_GZIP % 0) - len(compressed) - len(trailer)
    blocks, rest = divmod(room, len(_NOTHING))
    if room < 0:
        raise MedDPMError("a case is longer than the length it is to be padded to")
    comment = b" " * (rest - 1) + b"\x00" if rest else b""
    return _GZIP % (_COMMENT if rest else b"\x00") + comment + compressed + _NOTHING * blocks + trailer


def _header(grid: Grid) -> bytes:
    geometry = case_geometry(grid)
    lps = np.diag([-1.0, -1.0, 1.0]) @ geometry.ijk_to_ras[:3]
    directions = " ".join("(" + ",".join(f"{x:.6g}" for x in lps[:, axis] + 0.0) + ")" for axis in range(3))
    origin = ",".join(f"{x:.6g}" for x in lps[:, 3] + 0.0)
    lines = (
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, grid.size))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "encoding: gzip",
        f"space origin: ({origin})",
    )
    return ("\n".join(lines) + "\n\n").encode("ascii")
