"""Files whose headers are wrong in a way that a program, not a faulty disk, would write: hypothesis strategies.

A strategy takes a valid file apart, changes what some fields of its header say, and writes it with checksums that fit
where they can: so the reader, not a checksum, has to notice. :class:`Originals` has the strategies, and reads what they
draw as the program would. Run as a program, it tries as many files as it is asked to:
``python Testing/fuzzed_files.py 20000 SEED``.
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import logging
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import SYNTHETIC, read_result, settings_of
from MedDPMLib.masks.label_tables import read_table
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.masks.seg_nrrd import write_segments
from MedDPMLib.models.bundle import read_bundle, read_card
from MedDPMLib.prepare.sources import find_cases
from MedDPMLib.recipes.recipe import load_recipe
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.study.definition import read_definition
from MedDPMLib.study.pack import read_task
from MedDPMLib.train.folder import RunFolder
from MedDPMLib.validation import read_json
from MedDPMLib.worker.protocol import decode_event, decode_request

BRATS = load_scheme("brats")

#: A small brain with a tumor of three layers: labels of the scheme brats (k, j, i).
SIDE = 10


def brain() -> Volume:
    k, j, i = np.mgrid[:SIDE, :SIDE, :SIDE] + 0.5 - SIDE / 2
    labels = np.where(k**2 + j**2 + i**2 < 20, 4, 0).astype(np.uint8)
    away = np.sqrt((k - 1) ** 2 + j**2 + (i - 1) ** 2)
    for value, radius in ((2, 2.2), (3, 1.6), (1, 1.0)):
        labels[away < radius] = value
    return Volume(labels, Geometry((SIDE,) * 3, np.diag([-15.0, -15.0, 15.0, 1.0])))


# What a field can say --------------------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.integers(-(2**65), 2**65),
    st.sampled_from([0, -1, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-300, 1e300, 0.5, float("nan"), float("inf"), -float("inf")]),
)
_WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "none",
            "nan",
            "true",
            "../../../etc/passwd",
            "LIST",
            "LOCAL",
            "\0",
            "é\n",
            "x" * 5000,
            "0x10",
            "1e5",
            "1,2",
        ]
    ),
)


def _json_values() -> st.SearchStrategy:
    leaves = st.one_of(st.none(), st.booleans(), _NUMBERS, _WORDS)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=4), max_leaves=6
    )


_JSON_VALUES = _json_values()


@st.composite
def changed_tree(draw, tree):
    """``tree``, of JSON's kinds, with one to four of its parts replaced, left out, or said twice."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 4))):
        places = [((), tree)] + list(_places(tree))
        path, _value = draw(st.sampled_from(places))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(_JSON_VALUES)
            continue
        parent = tree
        for step in path[:-1]:
            parent = parent[step]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "double", "nest"]))
        if kind == "remove":
            del parent[path[-1]]
        elif kind == "double" and isinstance(parent, list):
            parent.insert(path[-1], parent[path[-1]])
        elif kind == "nest":
            parent[path[-1]] = draw(st.sampled_from([[parent[path[-1]]], {"name": parent[path[-1]]}]))
        else:
            parent[path[-1]] = draw(_JSON_VALUES)
    return tree


def _places(tree, path=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key), value
        yield from _places(value, (*path, key))


@st.composite
def _json_text(draw, tree) -> bytes:
    changed = draw(changed_tree(tree))
    text = json.dumps(changed, ensure_ascii=draw(st.booleans()))
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 7)) == 0:
        odd = [
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass"),
            b"NaN",
            b"",
            b"1" * 5000,
            b"\xef\xbb\xbf" + content,
            content[: len(content) // 2],
            b'{"labels": {"a": 1}, "labels": 2}',
        ]
        content = draw(st.sampled_from(odd))
    return content


#: Fields of a NIfTI header without which its voxels are not found.
_PLACES_VOXELS = ("dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter")


# NIfTI -----------------------------------------------------------------------------------------------


@st.composite
def nifti(draw) -> bytes:
    """A NIfTI-1 or -2 file: any of its fields may say anything that its type can hold."""
    volume = brain()
    kind = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti1Image, nibabel.Nifti2Image]))
    matrix = np.array(volume.geometry.ijk_to_ras)
    image = kind(volume.array.transpose(2, 1, 0), matrix)
    image.set_sform(matrix, 1)
    image.set_qform(matrix, 1)
    whole = image.to_bytes()
    record = np.frombuffer(whole[: image.header.sizeof_hdr], image.header.template_dtype).copy()
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(record.dtype.names))
        field = record[name]
        if name in _PLACES_VOXELS and draw(st.booleans()):
            continue  # half of the time what places and describes the voxels stays
        flat = field.reshape(-1)
        place = draw(st.integers(0, flat.size - 1))
        flat[place : place + 1] = _drawn_like(draw, flat.dtype)
    voxels = whole[image.header.sizeof_hdr :]
    header = record.tobytes()
    if draw(st.integers(0, 5)) == 0:
        record = record.astype(record.dtype.newbyteorder())  # as the other kind of machine writes it
        header = record.tobytes()
    content = header + voxels
    if draw(st.integers(0, 5)) == 0:  # an extension of any length
        extension = draw(st.integers(-(2**31), 2**31 - 1)).to_bytes(4, "little", signed=True)
        content = header + b"\1\0\0\0" + extension + voxels[4:]
    return draw(_cut(content))


def _drawn_like(draw, dtype: np.dtype):
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = int(limits.min), int(limits.max)
        few = [
            number for number in (low, low + 1, high, 0, 1, 2, 3, 4, 7, 8, 16, 64, 100, 512) if low <= number <= high
        ]
        return np.array(draw(st.one_of(st.sampled_from(few), st.integers(low, high))), dtype)
    if dtype.kind == "f":
        few = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-38, 3e38, 352.0, 1e9, -352.0, 0.5])
        return np.array(draw(st.one_of(few, st.floats(width=32))), dtype)
    return np.array(draw(st.binary(max_size=dtype.itemsize)), dtype)


@st.composite
def _cut(draw, content: bytes) -> bytes:
    if draw(st.integers(0, 5)) == 0:
        return content[: draw(st.integers(0, len(content)))]
    if draw(st.integers(0, 11)) == 0:
        return content + draw(st.binary(max_size=40))
    return content


# NRRD and MetaImage: lines of text -------------------------------------------------------------------

_NRRD_VALUES = {
    "type": ["uint8", "unsigned char", "short", "float", "double", "block", "int64", "uint64", "half", ""],
    "encoding": ["raw", "gzip", "gz", "bzip2", "ascii", "text", "hex", "zstd", ""],
    "endian": ["little", "big", "middle"],
    "space": ["left-posterior-superior", "RAS", "scanner-xyz", "3D-right-handed", "LPST", "nowhere"],
    "kinds": ["domain domain domain", "list domain domain domain", "domain domain", "vector 3-color complex"],
    "space directions": [
        "none (1,0,0) (0,1,0) (0,0,1)",
        "(1,0,0) (0,1,0)",
        "(1,0,0) (1,0,0) (0,0,1)",
        "(0,0,0) (0,0,0) (0,0,0)",
        "(nan,0,0) (0,1,0) (0,0,1)",
        "(1,0,0) (0,1,0) (0,0,1e300)",
        "1 2 3",
        "(1,0) (0,1) (0,0)",
    ],
    "space origin": ["(0,0,0)", "(nan,0,0)", "(1e308,1e308,1e308)", "(0,0)", "0 0 0", ""],
    "sizes": [
        "10 10 10",
        "10 10",
        "0 10 10",
        "-1 10 10",
        "99999 99999 99999",
        "1 10 10 10",
        "10 10 10 2",
        "2 10 10 5",
        "1.5 10 10",
    ],
    "dimension": ["3", "4", "2", "0", "-1", "17", "three", "99999999999999999999"],
    "spacings": ["1 1 1", "nan nan nan", "0 0 0", "-1 1 1", "1 1"],
    "space units": ['"mm" "mm" "mm"', '"m"', "mm", '"km" "km" "km"'],
    "data file": ["mask.raw", "../nothing.raw", "/dev/zero", "LIST", "slice%03d.raw 1 10 1", ""],
    "line skip": ["0", "1", "-1", "99999999999"],
    "byte skip": ["0", "-1", "-5", "99999999999", "x"],
    "measurement frame": ["(1,0,0) (0,1,0) (0,0,1)", "(1,0)", "none"],
    "content": ["", "\xe9", "x" * 10_000],
}

_META_VALUES = {
    "ObjectType": ["Image", "Scene", ""],
    "NDims": ["3", "2", "4", "0", "-1", "x", "99999999999"],
    "BinaryData": ["True", "False", "maybe"],
    "BinaryDataByteOrderMSB": ["True", "False", "x"],
    "CompressedData": ["True", "False", "1"],
    "CompressedDataSize": ["0", "-1", "5", "99999999999999", "x"],
    "TransformMatrix": [
        "1 0 0 0 1 0 0 0 1",
        "0 0 0 0 0 0 0 0 0",
        "1 0 0 0",
        "nan 0 0 0 1 0 0 0 1",
        "1 1 0 1 1 0 0 0 1",
        "x",
    ],
    "Offset": ["0 0 0", "nan 0 0", "1e308 0 0", "0 0", ""],
    "ElementSpacing": ["1 1 1", "0 0 0", "-1 1 1", "nan 1 1", "1", "1e-300 1 1"],
    "ElementSize": ["1 1 1", "0 0 0"],
    "DimSize": ["10 10 10", "10 10", "0 10 10", "-1 10 10", "99999 99999 99999", "10 10 10 10", "x"],
    "ElementNumberOfChannels": ["1", "3", "0", "-1", "9999999"],
    "ElementType": ["MET_UCHAR", "MET_FLOAT", "MET_LONG_LONG", "MET_NONE", "MET_STRING", "uchar", ""],
    "ElementDataFile": ["LOCAL", "Local", "LIST", "nothing.raw", "../mask.nii", "mask%d.raw 1 3 1", "/dev/zero", ""],
    "HeaderSize": ["0", "-1", "10", "99999999999"],
    "AnatomicalOrientation": ["RAI", "LPS", "???", "RAIX"],
    "Comment": ["", "\xe9", "a = b", "x" * 10_000],
}


@st.composite
def _lines_changed(draw, lines: list[str], values: dict[str, list[str]], mark: str) -> list[str]:
    lines = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["say", "say", "say", "anything", "remove", "double", "key", "junk"]))
        place = draw(st.integers(1, max(1, len(lines) - 1)))
        if kind == "say":
            key = draw(st.sampled_from(sorted(values)))
            said = f"{key}{mark}{draw(st.sampled_from(values[key]))}"
            at = next((n for n, line in enumerate(lines) if line.startswith(key + mark)), None)
            if at is None:
                lines.insert(place, said)
            else:
                lines[at] = said
        elif place >= len(lines):
            continue
        elif kind == "anything":
            key, _, _value = lines[place].partition(mark)
            said = draw(st.one_of(_WORDS, _NUMBERS.map(str), st.lists(_NUMBERS.map(str), max_size=5).map(" ".join)))
            lines[place] = f"{key}{mark}{said}"
        elif kind == "remove":
            del lines[place]
        elif kind == "double":
            lines.insert(draw(st.integers(1, len(lines))), lines[place])
        elif kind == "key":
            _key, _, value = lines[place].partition(mark)
            lines[place] = f"{draw(_WORDS)}{mark}{value}"
        else:
            lines.insert(place, draw(st.one_of(_WORDS, st.just("# remark"), st.just("key:=value"), st.just(":= :"))))
    return lines


@st.composite
def nrrd(draw, original: bytes, values: dict[str, list[str]]) -> bytes:
    """A NRRD file, of a label map or of segments: header lines that say something else, and the voxels as they were."""
    header, _, voxels = original.partition(b"\n\n")
    lines = header.decode("latin-1").split("\n")
    lines = draw(_lines_changed(lines, values, ": "))
    if any(line.startswith("Segment") for line in lines):
        keys = {line.partition(":=")[0]: ["0", "1", "-1", "99999999999", "x", ""] for line in lines if ":=" in line}
        lines = draw(_lines_changed(lines, keys, ":="))
    end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n"]))
    text = end.join(lines).encode("utf-8" if draw(st.booleans()) else "latin-1", "replace")
    return draw(_cut(text + (end * 2).encode() + voxels))


@st.composite
def meta(draw, original: bytes) -> bytes:
    """A MetaImage file."""
    start = original.index(b"\n", original.index(b"ElementDataFile")) + 1
    lines = original[:start].decode("latin-1").rstrip("\n").split("\n")
    lines = draw(_lines_changed(lines, _META_VALUES, " = "))
    voxels = original[start:]
    if draw(st.integers(0, 4)) == 0:  # compressed otherwise than it says
        voxels = draw(st.sampled_from([zlib.compress(b"x" * 10), gzip.compress(bytes(1000)), bytes(1000), b""]))
    text = "\n".join(lines).encode("utf-8" if draw(st.booleans()) else "latin-1", "replace")
    return draw(_cut(text + b"\n" + voxels))


# Models, recipes, descriptions -----------------------------------------------------------------------


@st.composite
def safetensors_file(draw, original: bytes) -> bytes:
    """A model bundle: its header and the card in it say something else; the length of the header may, too."""
    length = int.from_bytes(original[:8], "little")
    header, tensors = json.loads(original[8 : 8 + length]), original[8 + length :]
    if draw(st.booleans()):
        ((key, card),) = header["__metadata__"].items()
        header["__metadata__"][key] = json.dumps(draw(changed_tree(json.loads(card))))
    if draw(st.booleans()):
        header = draw(changed_tree(header))
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        text = draw(
            st.sampled_from([b"{" * 90_000, b"[]", b"{}", text[:-1], b"\xff" * 20, text.replace(b"1", b"1e999")])
        )
    size = len(text) if draw(st.integers(0, 5)) else draw(st.integers(0, 2**64 - 1))
    return draw(_cut(size.to_bytes(8, "little") + text + tensors))


_TOML_VALUES = [
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "true",
    '""',
    '"x"',
    "[]",
    "[1, 2, 3]",
    "[[1], 2]",
    "{}",
    "{ a = 1 }",
    "1979-05-27",
    "99999999999999999999",
    "1" + "0" * 5000,
    "1e400",
    "[nan]",
    '"../../x"',
    '["t1", "t1"]',
    "07:32:00",
    "'''\n'''",
    "0x10",
    "[" * 3000,
    '"' + "x" * 5000 + '"',
    "[-1, 0, 1]",
    '"\\u0000"',
    "= 1",
    "",
]


@st.composite
def toml(draw, original: bytes) -> bytes:
    """A recipe or a study: values of other kinds, keys elsewhere, tables twice."""
    lines = original.decode("utf-8").splitlines()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        key, equals, _value = lines[place].partition("=")
        kind = draw(st.sampled_from(["value", "value", "value", "remove", "double", "table", "junk"]))
        if kind == "value" and equals:
            lines[place] = f"{key}= {draw(st.sampled_from(_TOML_VALUES))}"
        elif kind == "remove":
            lines[place] = ""
        elif kind == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[place])
        elif kind == "table":
            lines.insert(
                place, draw(st.sampled_from(["[model]", "[[model]]", "[a.b]", "[", "[]", "[seal]", "[margin]"]))
            )
        else:
            lines.insert(place, draw(_WORDS))
    return draw(_cut("\n".join(lines).encode("utf-8", "surrogatepass")))


# All kinds -------------------------------------------------------------------------------------------


#: The kinds of files, by the path that one is written to.
KINDS = (
    *(f"masks/a.{suffix}" for suffix in ("nii", "nii.gz", "nrrd", "seg.nrrd", "mha")),
    *("models/a.safetensors", "recipes/a.toml", "study/study.toml", "order/reader.json", "tables/dataset.json"),
    *("schemes/scheme.json", "run/run.json", "results/a.json", "protocol/request.json", "protocol/result.json"),
)


class Originals:
    """A valid file of each kind, and what draws changed ones."""

    def __init__(self, folder: Path, study: Path) -> None:
        """``study`` is the unpacked archive of a reader."""
        import SimpleITK
        from conftest import small_card, write_small_model

        volume = brain()
        found: dict[str, bytes] = {}
        image = SimpleITK.GetImageFromArray(volume.array)
        image.SetSpacing((15.0, 15.0, 15.0))
        for name, packed in (("packed.nrrd", True), ("raw.nrrd", False), ("packed.mha", True), ("raw.mha", False)):
            SimpleITK.WriteImage(image, str(folder / name), packed)
            found[name] = (folder / name).read_bytes()
        write_segments(folder / "a.seg.nrrd", volume, BRATS)
        found["a.seg.nrrd"] = (folder / "a.seg.nrrd").read_bytes()
        write_small_model(folder / "a.safetensors", small_card(BRATS))
        found["a.safetensors"] = (folder / "a.safetensors").read_bytes()
        self.found, self.study = found, study
        #: How many files were refused, by at least one of their readers.
        self.refused = 0

    def strategies(self) -> dict[str, st.SearchStrategy[bytes]]:
        """By the path of the file that the bytes are written to: one of :data:`KINDS`."""
        found, study = self.found, self.study
        dataset = {
            "labels": {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing tumor": 3},
            "channel_names": {"0": "T1", "1": "T1CE", "2": "T2", "3": "FLAIR"},
            "numTraining": 1,
            "file_ending": ".nii.gz",
            "regions_class_order": [1, 2, 3],
        }
        run = {
            "data": {"dataset": "x", "cases": 3, "hash": "0"},
            "machine": {"device": "cpu"},
            "seconds": 1.5,
            "rows": [{"iteration": 1}],
        }
        record = {
            "description": SYNTHETIC,
            "seed": 0,
            "modality": "t1",
            "settings": {"steps": 2},
            "intensities": {"type": "int16", "slope": 0.002, "intercept": -1.0},
            "model": {"name": "a", "hash": "0"},
            "notes": [],
        }
        request = {
            "type": "generate",
            "protocol": 2,
            "id": "a",
            "model": "b",
            "mask": "mask-1.npy",
            "scheme": "brats",
            "seeds": [1],
            "ijk_to_ras": np.eye(4).tolist(),
            "settings": {"steps": 2},
            "modalities": ["t1"],
        }
        result = {
            "type": "result",
            "id": "a",
            "sample": 1,
            "samples": 1,
            "files": {"t1": "result-1.npy"},
            "ijk_to_ras": np.eye(4).tolist(),
            "record": record,
        }
        return {
            "masks/a.nii": nifti(),
            "masks/a.nii.gz": nifti().map(lambda content: gzip.compress(content, 1, mtime=0)),
            "masks/a.nrrd": st.sampled_from(["packed.nrrd", "raw.nrrd"]).flatmap(
                lambda name: nrrd(found[name], _NRRD_VALUES)
            ),
            "masks/a.seg.nrrd": nrrd(found["a.seg.nrrd"], _NRRD_VALUES),
            "masks/a.mha": st.sampled_from(["packed.mha", "raw.mha"]).flatmap(lambda name: meta(found[name])),
            "models/a.safetensors": safetensors_file(found["a.safetensors"]),
            "recipes/a.toml": toml((RESOURCES / "recipes" / "brats.toml").read_bytes()),
            "study/study.toml": toml((study / "study.toml").read_bytes()),
            "order/reader.json": _json_text(json.loads((study / "reader.json").read_bytes())),
            "tables/dataset.json": _json_text(dataset),
            "schemes/scheme.json": _json_text(BRATS.to_dict()),
            "run/run.json": _json_text(run),
            "results/a.json": _json_text(record),
            "protocol/request.json": _json_text(request).map(lambda content: content.replace(b"\n", b" ")),
            "protocol/result.json": _json_text(result).map(lambda content: content.replace(b"\n", b" ")),
        }

    def read(self, path: Path) -> None:
        """Reads what was written to ``path``, in every way in which the program does; only MedDPMError may come."""
        readers: dict[str, tuple[Callable[[], object], ...]] = {
            "masks": (lambda: read_mask(path, BRATS), lambda: read_volume(path)),
            "models": (lambda: read_card(path), lambda: read_bundle(path)),
            "recipes": (lambda: load_recipe(str(path)),),
            "study": (lambda: read_definition(path.parent),),
            "order": (lambda: self._read_order(path),),
            "tables": (lambda: read_table(path), lambda: list(find_cases([path.parent], BRATS, ("t1",)))),
            "schemes": (lambda: LabelScheme.from_dict(read_json(path.read_bytes(), "the scheme")),),
            "run": (lambda: RunFolder(path.parent).history(),),
            "results": (lambda: self._read_result(path),),
            "protocol": (lambda: (decode_request if path.stem == "request" else decode_event)(path.read_bytes()),),
        }
        refused = False
        for read in readers[path.parent.name]:
            try:
                read()
            except MedDPMError as error:
                refused = True
                said = str(error)
                assert "\n" not in said.strip() and len(said) < 4000, f"not a sentence: {said[:300]!r}"
        self.refused += refused

    def _read_order(self, path: Path) -> None:
        for name in ("study.toml", "cases"):
            if not (path.parent / name).exists():
                (path.parent / name).symlink_to(self.study / name)
        read_task(path.parent)

    def _read_result(self, path: Path) -> None:
        from MedDPMLib.imaging.io import write_nifti
        from MedDPMLib.inference.record import read_record

        volume = path.with_suffix(".nii.gz")
        if not volume.exists():
            write_nifti(volume, brain())
        record = read_record(volume)
        if record is not None:
            read_result(volume)
            settings_of(record)


def draw_files(originals: Originals, path: Path, name: str, count: int, number: int) -> Counter:
    """Reads ``count`` files of the kind ``name``, written to ``path`` and drawn from the seed ``number``; how many.

    Prints each failure once, by where it was raised, and counts it under "failures".
    """
    tried, places = Counter(), set()

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(originals.strategies()[name])
    def read(content):
        tried["files"] += 1
        path.write_bytes(content)
        faulthandler.dump_traceback_later(60, exit=True)  # what hangs is a failure, too
        try:
            originals.read(path)
        except Exception as error:
            tried["failures"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = (type(error).__name__, where.filename, where.lineno)
            if key not in places:
                places.add(key)
                kept = path.parent.parent / f"failure-{len(places)}-{path.name}"
                kept.write_bytes(content)
                lines = traceback.format_exception(error)
                said = f"{name}: {type(error).__name__}: {error}"[:400]
                print(said, f"kept as {kept}", *lines[-6:], sep="\n", flush=True)
        finally:
            faulthandler.cancel_dump_traceback_later()

    read()
    return tried


def draw_in_a_process(folder: Path, name: str, count: int, number: int) -> None:
    """What one process of :func:`main` does: a parser that ends its process ends that of one kind of file."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    path = folder / "drawn" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder))
    originals, started = Originals(made, folder / "unpacked"), time.monotonic()
    tried = draw_files(originals, path, name, count, number)
    print(
        f"{name}: {tried['files']} files, {originals.refused} refused, {time.monotonic() - started:.0f} s,"
        f" {tried['failures']} failures",
        flush=True,
    )
    sys.exit(1 if tried["failures"] else 0)


def main(count: int, number: int) -> None:
    from study_cases import make_study

    from MedDPMLib.study.pack import pack, unpack

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    archive = pack(make_study(folder / "study-made", real=3, synthetic=3, readers=("Ada",)), folder)[0]
    unpack(archive, folder / "unpacked")
    failed = []
    for name in KINDS:
        arguments = [folder, name, -(-count // len(KINDS)), number]
        ended = subprocess.run([sys.executable, __file__, *map(str, arguments)])
        if ended.returncode:
            failed.append(name)
        if ended.returncode not in (0, 1):
            print(f"{name}: the process ended with {ended.returncode} at {folder / 'drawn' / name}", flush=True)
    print(f"{-(-count // len(KINDS)) * len(KINDS)} files; failures in {', '.join(failed) or 'none'}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    if len(sys.argv) == 3:
        main(int(sys.argv[1]), int(sys.argv[2]))
    else:
        draw_in_a_process(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
