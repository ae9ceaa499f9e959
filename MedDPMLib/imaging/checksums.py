"""Is the compressed part of a file as it was written? Read to the end of the stream, where its checksum is.

The parsers of images stop once they have as many bytes as they want, and never look at it: a flipped bit gives other
voxels.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

_GZIP = b"\x1f\x8b"

#: What zlib calls the two kinds of stream.
_GZIP_WINDOW, _ZLIB_WINDOW = 31, 15

#: How much is read, and decompressed, at a time.
_CHUNK, _LARGEST_PART = 1 << 20, 1 << 24

#: The most axes that MetaImage, and more than any image, can have.
_MOST_AXES = 10

#: The longest name of a field or key.
_LONGEST_NAME = 200

#: The longest header of text that is looked through.
_LONGEST_HEADER = 1 << 24


class Damaged(ValueError):
    """What is wrong with a file's compressed part."""


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


def check_itk_file(path: Path) -> None:
    """Checks the compressed voxels of a NRRD or MetaImage file, attached or in a file of their own."""
    head, start = _text_header(path)
    if head is None:
        return
    fields = _fields(head)
    _check_size(fields, is_nrrd=head.startswith("NRRD"))
    if head.startswith("NRRD"):
        _check_lines(head)
        encoding = fields.get("encoding", "raw").lower()
        files = _data_files(path, fields.get("data file") or fields.get("datafile"))
        check = {"gzip": _GZIP_WINDOW, "gz": _GZIP_WINDOW, "bzip2": "bzip2", "bz2": "bzip2"}.get(encoding)
    else:
        compressed = fields.get("compresseddata", "false").lower().startswith(("t", "1"))
        named = fields.get("elementdatafile", "LOCAL")
        files = [] if named.upper() == "LOCAL" else [path.parent / named]
        check = _ZLIB_WINDOW if compressed else None
    for file in files:
        if not file.is_file():  # a device or a pipe would be read for ever
            raise Damaged(f"its voxels are to be in {file}, which is missing or not a file")
    if check is None:
        return
    for file in files or [path]:
        data = file.read_bytes()[0 if files else start :]
        # Lines may stand before the data of a NRRD file.
        for _ in range(int(fields.get("line skip", "0") or 0)):
            data = data[data.index(b"\n") + 1 :]
        data = data[max(int(fields.get("byte skip", "0") or 0), 0) :]
        _check(data, check)


def _check_size(fields: Mapping[str, str], *, is_nrrd: bool) -> None:
    """Refuses a number of axes or voxels that is none: parsers believe it, and the process ends with them."""
    said, sizes = (
        fields.get(name, "").split() for name in (("dimension", "sizes") if is_nrrd else ("ndims", "dimsize"))
    )
    if len(said) != 1 or not re.fullmatch(r"\d{1,2}", said[0]) or not 1 <= int(said[0]) <= _MOST_AXES:
        raise Damaged(f"its header says that it has {' '.join(said)[:20] or 'no'} axes")
    if len(sizes) != int(said[0]) or not all(re.fullmatch(r"\d{1,9}", size) and int(size) for size in sizes):
        raise Damaged(f"its header says that it measures {' x '.join(sizes)[:40] or 'nothing'} in {said[0]} axes")


def _check_lines(head: str) -> None:
    """Refuses a line of a NRRD header that is no field: a long one overruns what the parser reports it with."""
    for line in head.splitlines()[1:]:
        name, mark, value = line.partition(":")
        if line and not line.startswith("#") and (not mark or len(name) > _LONGEST_NAME):
            raise Damaged(f'its header has the line "{line[:40]}", which is no field')
        if name.strip().lower() in ("data file", "datafile") and value.strip().upper().startswith("LIST"):
            return  # names of files follow


def _check(data: bytes, kind: int | str) -> None:
    if kind == "bzip2":
        try:
            bz2.decompress(data)
        except (OSError, EOFError) as error:
            raise Damaged(f"its compressed part is damaged ({error})") from error
        return
    for _ in _members(data, kind):
        pass


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


def read_text_header(path: Path) -> dict[str, str]:
    """The fields of a NRRD or MetaImage header by their name in small letters, and the keys of NRRD as they are."""
    head, _ = _text_header(path)
    return _fields(head) if head is not None else {}


def _text_header(path: Path) -> tuple[str | None, int]:
    """The header of text, as UTF-8 or else Latin-1, and where the data begin; None if there is none."""
    with open(path, "rb") as file:
        head = file.read(_LONGEST_HEADER)
    if head.startswith(b"NRRD"):
        match = re.search(rb"\r?\n\r?\n", head)
    else:
        match = re.search(rb"^\s*ElementDataFile\s*=.*?\n", head, re.MULTILINE | re.IGNORECASE)
    end = match.end() if match else len(head)
    if not match and not head.startswith(b"NRRD") and b"=" not in head[:1000]:
        return None, 0
    raw = head[:end]
    try:
        return raw.decode("utf-8"), end
    except UnicodeDecodeError:
        return raw.decode("latin-1"), end


def _fields(head: str) -> dict[str, str]:
    fields = {}
    for line in head.splitlines():
        if line.startswith("#"):
            continue
        key, mark, value = line.partition(":=")
        if mark:
            fields[key] = value
            continue
        for separator in (":", "=") if head.startswith("NRRD") else ("=",):
            key, mark, value = line.partition(separator)
            if mark:
                fields[key.strip().lower()] = value.strip()
                break
    return fields


def _data_files(path: Path, named: str | None) -> list[Path]:
    """The files of its own that a NRRD header names; those of a list or a pattern are left to the parser."""
    if not named or named.split()[0].upper() == "LIST" or "%" in named:
        return []
    return [path.parent / named]
