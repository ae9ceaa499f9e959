"""What is in a file, whatever it is called?"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

#: So much of a file says what it is.
HEAD = 4096


def read_head(path: Path) -> bytes:
    """The first bytes of ``path``."""
    with open(path, "rb") as file:
        return file.read(HEAD)


def describe_content(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, with the remedy, if it is something that is often met by mistake."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if not head:
        return "an empty file: the download or copy was interrupted, fetch it again"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")) or b"<html" in head[:1000].lower():
        return (
            "a web page, not the file itself: the download asked for a login or a confirmation; open its address in a"
            " browser and download it there"
        )
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        return 'a pointer of Git LFS, not the file itself: fetch it with "git lfs pull"'
    if head[128:132] == b"DICM":
        return "DICOM: convert it to NIfTI first (3D Slicer or dcm2niix do it)"
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            return what
    return None


def volume_format(head: bytes) -> str | None:
    """The format of the volume in a file that begins with ``head``, compressed as a whole or not; None if unknown.

    One of "NRRD", "MetaImage", "NIfTI" and "MGH", which is FreeSurfer's.
    """
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, HEAD)
        except zlib.error:
            return None
    if head.startswith(b"NRRD0"):
        return "NRRD"
    if re.match(rb"\s*(ObjectType|NDims|Comment)[ \t]*[=:]", head):
        return "MetaImage"
    if {int.from_bytes(head[:4], order) for order in ("little", "big")} & {348, 540}:
        return "NIfTI"
    return "MGH" if head.startswith(b"\0\0\0\1") else None


_SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras, MATLAB and MINC write them: export it in another format"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"MATLAB ", "a MATLAB file: export it in another format"),
    (b"\x93NUMPY", "a NumPy array: it has no place in space, save it as NIfTI"),
)
