"""What does the header of text of a NRRD or MetaImage file say, and can a parser believe it?

The parsers in ITK copy what is too long over the end of their buffers, read the next line where numbers are missing,
and take sizes at their word: a damaged header ends the whole process, or gives another volume. So each field is read
here first, the way they find it, and has to be what its name promises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import quoted

#: The longest header that is looked through.
_LONGEST_HEADER = 1 << 24

#: The longest name, value of a field, and value of a field of MetaImage that is copied to a short buffer, in bytes.
#: Parsers have 255, 1025 and 255 for them and for what they say about them.
_LONGEST_NAME, _LONGEST_VALUE, _LONGEST_TEXT = 200, 490, 250

#: The most axes that MetaImage, and more than any image, can have.
_MOST_AXES = 10


class Damaged(ValueError):
    """What is wrong with a file."""


@dataclass(frozen=True)
class TextHeader:
    """``fields`` by their names (of NRRD in small letters), ``keys`` of NRRD; the rest is where and how voxels lie.

    ``sizes`` are those of all axes and of the components of a voxel, ``item`` the bytes of a number, ``encoding`` one
    of raw, text, hex, gzip, zlib and bzip2; ``data_file`` is the name of a file of their own, ``start`` the end
    of the header, after which ``line_skip`` lines and ``byte_skip`` bytes (-1: all but the voxels) are passed over.
    """

    is_nrrd: bool
    fields: dict[str, str]
    keys: dict[str, str]
    sizes: tuple[int, ...]
    item: int
    encoding: str
    data_file: str | None
    start: int
    line_skip: int = 0
    byte_skip: int = 0

    @property
    def voxel_bytes(self) -> int:
        """How many bytes the voxels are, not encoded."""
        return math.prod(self.sizes) * self.item


def read_text_header(path: Path) -> TextHeader:
    """The header of the NRRD or MetaImage file ``path``, whatever it is called; :class:`MedDPMError` if it is damaged,
    neither, or one whose voxels lie in several files."""
    try:
        with open(path, "rb") as file:
            head = file.read(_LONGEST_HEADER)
        return _nrrd(head) if head.startswith(b"NRRD") else _meta_image(head)
    except MedDPMError as error:
        raise error.at(str(path)) from None
    except Damaged as error:
        raise MedDPMError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise MedDPMError(f"{path} cannot be opened ({error.strerror}): check the path and its permissions") from error


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# Values ----------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4})?"
_NUMBER_OR_NAN = rf"(?:{_NUMBER}|[-+]?(?:[nN][aA][nN]|[iI][nN][fF]))"
_VECTOR = rf"(?:none|\(\s*{_NUMBER_OR_NAN}(?:\s*,\s*{_NUMBER_OR_NAN})*\s*\))"

#: Whether a value is one of a field of a file of so many axes.
_Fits = Callable[[str, int], bool]


def _matches(pattern: str) -> _Fits:
    compiled = re.compile(pattern)
    return lambda value, axes: compiled.fullmatch(value) is not None


def _words(pattern: str, count: Callable[[int], int]) -> _Fits:
    """So many words that fit ``pattern`` each, as ``count`` says for so many axes."""
    compiled = re.compile(pattern)

    def fits(value: str, axes: int) -> bool:
        words = value.split()
        return len(words) == count(axes) and all(compiled.fullmatch(word) for word in words)

    return fits


def _vectors(value: str, axes: int) -> bool:
    return re.fullmatch(rf"(?:{_VECTOR}\s*)+", value) is not None and len(re.findall(_VECTOR, value)) == axes


def _each(axes: int) -> int:
    return axes


def _check_fields(fields: dict[str, str], rules: dict[str, _Fits], axes: int) -> None:
    for name, value in fields.items():
        if name in rules and not (len(value.encode()) <= _LONGEST_VALUE and rules[name](value, axes)):
            raise Damaged(f'its header has {quoted(value)} for "{name}"')


def _axes(said: str | None) -> int:
    if said is None or not re.fullmatch(r"\d{1,2}", said) or not 1 <= int(said) <= _MOST_AXES:
        raise Damaged(f"its header says that it has {quoted(said) if said else 'no'} axes")
    return int(said)


def _sizes(said: str | None, axes: int) -> tuple[int, ...]:
    sizes = (said or "").split()
    if len(sizes) != axes or not all(re.fullmatch(r"\d{1,9}", size) and int(size) for size in sizes):
        raise Damaged(f"its header says that it measures {quoted(said) if said else 'nothing'} in {axes} axes")
    return tuple(map(int, sizes))


def _one_file(named: str) -> str:
    """The name of the file of voxels, if it is one and not a list or pattern of several."""
    if "%" in named or named.split()[:1] in (["LIST"], ["List"], ["list"]):
        raise MedDPMError(
            "its voxels lie in several files", remedy="open it in 3D Slicer and save it as one file (.nrrd)"
        )
    if not named or len(named.encode()) > _LONGEST_TEXT:
        raise Damaged(f"its header names the file {quoted(named)} for its voxels")
    return named


# NRRD ------------------------------------------------------------------------------------------------

#: The other names of fields, and those that are written with and without a space.
_OTHER_NAMES = {"centerings": "centers", "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_OTHER_NAMES |= {"blocksize": "block size", "oldmin": "old min", "oldmax": "old max", "axismins": "axis mins"}
_OTHER_NAMES |= {"axismaxs": "axis maxs", "sampleunits": "sample units"}

_ANYTHING = _matches(r".*")
_NRRD_FIELDS: dict[str, _Fits] = {
    "type": _matches(r"[A-Za-z0-9_ ]{1,40}"),
    "encoding": _matches(r"[A-Za-z0-9]{1,20}"),
    "dimension": _matches(r"\d{1,2}"),
    "sizes": _words(r"\d{1,9}", _each),
    "endian": _matches(r"(?i:little|big)"),
    "space": _matches(r"[A-Za-z0-9 -]{1,60}"),
    "space dimension": _matches(r"\d"),
    "space directions": _vectors,
    "space origin": _matches(_VECTOR),
    "measurement frame": _matches(rf"(?:{_VECTOR}\s*)+"),
    "spacings": _words(_NUMBER_OR_NAN, _each),
    "thicknesses": _words(_NUMBER_OR_NAN, _each),
    "axis mins": _words(_NUMBER_OR_NAN, _each),
    "axis maxs": _words(_NUMBER_OR_NAN, _each),
    "kinds": _words(r"[A-Za-z0-9?_-]{1,40}", _each),
    "centers": _words(r"[A-Za-z?]{1,20}", _each),
    "line skip": _matches(r"\d{1,5}"),
    "byte skip": _matches(r"-1|\d{1,12}"),
    "block size": _matches(r"\d{1,9}"),
    "old min": _matches(_NUMBER_OR_NAN),
    "old max": _matches(_NUMBER_OR_NAN),
    **dict.fromkeys(("labels", "units", "space units", "data file", "number", "min", "max"), _ANYTHING),
}  # fmt: skip

#: These are copied whole, however long they are.
_NRRD_TEXTS = ("content", "sample units")

_NRRD_BYTES = {
    **dict.fromkeys(("char", "signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **{f"{sign}short{rest}": 2 for sign in ("", "signed ", "unsigned ") for rest in ("", " int")},
    **dict.fromkeys(("ushort", "int16", "int16_t", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "uint", "unsigned int", "int32", "int32_t", "uint32", "uint32_t"), 4),
    **{f"{sign}long long{rest}": 8 for sign in ("", "signed ", "unsigned ") for rest in ("", " int")},
    **dict.fromkeys(("longlong", "ulonglong", "int64", "int64_t", "uint64", "uint64_t"), 8),
    "float": 4,
    "double": 8,
}  # fmt: skip

_NRRD_ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2", "hex": "hex"}
_NRRD_ENCODINGS |= dict.fromkeys(("txt", "text", "ascii"), "text")


def _nrrd(head: bytes) -> TextHeader:
    match = re.search(rb"\r?\n\r?\n", head)
    start = match.end() if match else len(head)
    lines = [line.removesuffix("\r") for line in _decoded(head[: match.start() if match else start]).split("\n")]
    if not re.fullmatch(r"NRRD00(0\d|\.01)", lines[0]):
        raise Damaged(f"it begins with {quoted(lines[0])}, which is no version of NRRD")
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in lines[1:]:
        if not line or line.startswith("#"):
            continue
        name, mark, value = line.partition(": ")
        name = _OTHER_NAMES.get(name.lower(), name.lower())
        if not mark or name not in (*_NRRD_FIELDS, *_NRRD_TEXTS):
            name, mark, value = line.partition(":=")
            if not mark or ": " in name or len(name.encode()) > _LONGEST_NAME:
                raise Damaged(f"its header has the line {quoted(line)}, which is no field")
            keys[name] = value
        elif name in fields:
            raise Damaged(f'its header has "{name}" twice')
        else:
            fields[name] = value.strip(" \t")
    axes = _axes(fields.get("dimension"))
    sizes = _sizes(fields.get("sizes"), axes)
    _check_fields(fields, _NRRD_FIELDS, axes)
    kind, encoding = fields.get("type", "").lower(), fields.get("encoding", "raw").lower()
    if kind not in _NRRD_BYTES:
        raise Damaged(f"its header says that its values are of the type {quoted(kind)}")
    if encoding not in _NRRD_ENCODINGS:
        raise Damaged(f"its header says that its voxels are encoded as {quoted(encoding)}")
    return TextHeader(
        True,
        fields,
        keys,
        sizes,
        _NRRD_BYTES[kind],
        _NRRD_ENCODINGS[encoding],
        _one_file(fields["data file"]) if "data file" in fields else None,
        start,
        int(fields.get("line skip", 0)),
        int(fields.get("byte skip", 0)),
    )


# MetaImage -------------------------------------------------------------------------------------------

_TEXT = _matches(rf"[^\n]{{0,{_LONGEST_TEXT}}}")
_FLAG = _matches(r"(?i:true|false|[01tf])")
_META_FIELDS: dict[str, _Fits] = {
    "NDims": _matches(r"\d{1,2}"),
    "DimSize": _words(r"\d{1,9}", _each),
    **dict.fromkeys(
        ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation"), _words(_NUMBER, _each)
    ),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), _words(_NUMBER, lambda axes: axes**2)),
    **dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"), _FLAG),
    "ElementNumberOfChannels": _matches(r"[1-9]\d{0,3}"),
    "HeaderSize": _matches(r"-1|\d{1,12}"),
    "CompressedDataSize": _matches(r"\d{1,12}"),
    "ID": _matches(r"-?\d{1,9}"),
    "ParentID": _matches(r"-?\d{1,9}"),
    "Color": _words(_NUMBER, lambda axes: 4),
    **dict.fromkeys(
        ("ElementMin", "ElementMax", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"),
        _matches(_NUMBER),
    ),
    "SequenceID": _words(r"-?\d{1,9}", _each),
    "AnatomicalOrientation": _matches(r"[A-Za-z?]{1,10}"),
    **dict.fromkeys(
        ("ObjectType", "ObjectSubType", "TransformType", "Comment", "Name", "AcquisitionDate", "DistanceUnits",
         "Modality", "ElementType", "ElementDataFile", "CompressionLevel"),
        _TEXT,
    ),
}  # fmt: skip

_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR", "MET_ASCII_CHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}


def _meta_image(head: bytes) -> TextHeader:
    match = re.search(rb"^[ \t]*ElementDataFile[ \t]*[=:].*?(?:\n|\Z)", head, re.MULTILINE)
    if not match:
        raise Damaged("it does not begin as NRRD, and has no line ElementDataFile as MetaImage has")
    fields: dict[str, str] = {}
    for line in _decoded(head[: match.end()]).split("\n"):
        parts = re.match(r"\s*([^=:\r]*?)[ \t]*[=:][=: \t]*(.*)", line.removesuffix("\r"), re.DOTALL)
        if parts is None and not line.strip():
            continue
        if parts is None or not parts[1] or max(map(len, map(str.encode, parts.groups()))) > _LONGEST_VALUE:
            raise Damaged(f"its header has the line {quoted(line)}, which is no field")
        name, value = parts[1], parts[2].rstrip()
        if len(name.encode()) > _LONGEST_NAME:
            raise Damaged(f"its header has the line {quoted(line)}, which is no field")
        if name in fields and name in _META_FIELDS:
            raise Damaged(f'its header has "{name}" twice')
        fields[name] = value
    axes = _axes(fields.get("NDims"))
    sizes = _sizes(fields.get("DimSize"), axes)
    _check_fields(fields, _META_FIELDS, axes)
    kind, named = fields.get("ElementType", ""), fields["ElementDataFile"]
    if kind not in _META_BYTES:
        raise Damaged(f"its header says that its values are of the type {quoted(kind)}")
    is_compressed = fields.get("CompressedData", "false")[:1] in "Tt1"
    is_text = fields.get("BinaryData", "true")[:1] not in "Tt1"
    return TextHeader(
        False,
        fields,
        {},
        (*sizes, int(fields.get("ElementNumberOfChannels", 1))),
        _META_BYTES[kind],
        "zlib" if is_compressed else "text" if is_text else "raw",
        None if named in ("LOCAL", "Local", "local") else _one_file(named),
        match.end(),
        byte_skip=int(fields.get("HeaderSize", 0)),
    )
