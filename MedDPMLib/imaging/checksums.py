"""Are the voxels of a file all there, and as they were written? What is compressed is read to the end of the stream,
where its checksum is.

The parsers of images stop once they have as many bytes as they want, and never look at it: a flipped bit gives other
voxels.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator
from pathlib import Path

from MedDPMLib.imaging.text_headers import Damaged, TextHeader

_GZIP = b"\x1f\x8b"

#: What zlib calls a stream of gzip, and one that says itself whether it is that or one of zlib.
_GZIP_WINDOW, _ZLIB_OR_GZIP_WINDOW = 31, 47

#: How much is read, and decompressed, at a time.
_CHUNK, _LARGEST_PART = 1 << 20, 1 << 24


def is_gzipped(head: bytes) -> bool:
    return head.startswith(_GZIP)


def gunzip(data: bytes, most: int | None = None) -> bytes:
    """What the gzip members of ``data`` hold, each checked against its CRC-32 and length; at most ``most`` bytes."""
    parts, total = [], 0
    for part in _members(data, _GZIP_WINDOW):
        parts.append(part)
        total += len(part)
        if most is not None and total > most:
            raise Damaged(f"it unpacks to more than the {most} bytes that it should hold")
    return b"".join(parts)


def check_voxels(path: Path, header: TextHeader) -> None:
    """Checks that the voxels that ``header`` of ``path`` promises are all there, and their checksums if compressed.

    They are in ``path`` or in the file that the header names. Raises :class:`Damaged`.
    """
    file = path.parent / header.data_file if header.data_file else path
    if not file.is_file():  # a device or a pipe would be read for ever
        raise Damaged(f"its voxels are to be in {file}, which is missing or not a file")
    if header.encoding == "raw":
        data, there = b"", file.stat().st_size - (0 if header.data_file else header.start)
    else:
        data = file.read_bytes()[0 if header.data_file else header.start :]
        there = len(data)
    if header.byte_skip == -1:
        skipped = max(there - header.voxel_bytes, 0) if header.encoding == "raw" else 0
    else:
        skipped = header.byte_skip
    if header.line_skip and header.encoding == "raw":
        skipped += _length_of_lines(file, header)
    for _ in range(header.line_skip if data else 0):
        if b"\n" not in data:
            raise Damaged("it ends before its voxels")
        data = data[data.index(b"\n") + 1 :]
    _check_length(header, max(there - skipped, 0), data[skipped:])


def _length_of_lines(file: Path, header: TextHeader) -> int:
    with open(file, "rb") as opened:
        opened.seek(0 if header.data_file else header.start)
        return sum(len(opened.readline()) for _ in range(header.line_skip))


def _check_length(header: TextHeader, there: int, data: bytes) -> None:
    """Compares what is ``there`` (of what is not raw: the ``data``) with what the header promises."""
    wanted, exact = header.voxel_bytes, False
    if header.encoding == "text":
        wanted = 2 * (header.voxel_bytes // header.item) - 1  # a digit each, and what separates them
    elif header.encoding == "hex":
        wanted *= 2
    elif header.encoding != "raw":
        if said := int(header.fields.get("CompressedDataSize", 0)):
            if said > there:
                raise Damaged("its compressed part is cut off: copy or download it again")
            data = data[:said]
        there, exact = _unpacked_length(data, header.encoding), True
    # A few bytes may follow what is not compressed. A slice may not: then the header counts otherwise than the file.
    slice_bytes = header.voxel_bytes // max(header.sizes)
    if there < wanted or (exact and there > wanted) or (header.encoding == "raw" and there - wanted >= slice_bytes > 8):
        raise Damaged(f"its header promises {wanted:,} bytes of voxels, and there are {there:,}")


def _unpacked_length(data: bytes, encoding: str) -> int:
    """The length of what the compressed ``data`` hold, checked to their end."""
    if encoding == "bzip2":
        try:
            return len(bz2.decompress(data))
        except (OSError, EOFError, ValueError) as error:
            raise Damaged(f"its compressed part is damaged ({error})") from error
    return sum(map(len, _members(data, _GZIP_WINDOW if encoding == "gzip" else _ZLIB_OR_GZIP_WINDOW)))


def _members(data: bytes, window: int) -> Iterator[bytes]:
    """What the streams of ``data``, one behind the other, hold."""
    view, first = memoryview(data), True
    while first or (window == _GZIP_WINDOW and bytes(view[:2]) == _GZIP):
        first = False
        stream = zlib.decompressobj(window)
        try:
            while not stream.eof:
                taken = stream.unconsumed_tail or view[:_CHUNK]
                if not stream.unconsumed_tail:
                    if not taken:
                        raise Damaged("its compressed part is cut off: copy or download it again")
                    view = view[_CHUNK:]
                if part := stream.decompress(taken, _LARGEST_PART):
                    yield part
        except zlib.error as error:
            raise Damaged(f"its compressed part is damaged ({error}): copy or download it again") from error
        view = memoryview(data)[len(data) - len(view) - len(stream.unused_data) :]
    if bytes(view).strip(b"\x00\r\n"):
        raise Damaged(f"{len(view)} bytes follow the end of its compressed part: it is damaged")
