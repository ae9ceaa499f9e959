"""Damaged files: no flipped bit of compressed data goes unnoticed, and whatever a file holds, it is read or refused.

Run as a program, it tries as many files as it is asked to: ``python Testing/test_damaged_files.py 20000``.
"""

from __future__ import annotations

import bz2
import gzip
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.checksums import gunzip
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import SYNTHETIC, read_result
from MedDPMLib.masks.label_tables import read_table
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.scheme_files import read_scheme
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.masks.seg_nrrd import write_segments
from MedDPMLib.models.bundle import read_card
from MedDPMLib.recipes.recipe import load_recipe
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.study.definition import parse_definition

BRATS = load_scheme("brats")


def glioma(side: int = 24) -> Volume:
    """A brain of 1.2 l with a tumor of three layers, as labels of the scheme brats."""
    spacing = 150 / side
    k, j, i = np.mgrid[:side, :side, :side] + 0.5 - side / 2
    labels = np.where((k**2 + j**2 + i**2) * spacing**2 < 66**2, 4, 0).astype(np.uint8)
    away = np.sqrt((k - side / 8) ** 2 + j**2 + (i - side / 8) ** 2) * spacing
    for value, radius in ((2, 30), (3, 22), (1, 14)):
        labels[away < radius] = value
    return Volume(labels, Geometry((side,) * 3, np.diag([-spacing, -spacing, spacing, 1.0])))


def save(path: Path, volume: Volume, *, compressed: bool = True) -> Path:
    if path.name.endswith((".nii", ".nii.gz")):
        write_nifti(path, volume)
    elif path.name.endswith(".seg.nrrd"):
        write_segments(path, volume, BRATS)
    else:
        image = SimpleITK.GetImageFromArray(volume.array)
        image.SetSpacing(volume.geometry.spacing.tolist())
        SimpleITK.WriteImage(image, str(path), compressed)
    return path


def data_begins(path: Path) -> int:
    """Where the compressed part of a file with a header of text begins."""
    content = path.read_bytes()
    if path.name.endswith(".mha"):
        return content.index(b"\n", content.index(b"ElementDataFile")) + 1
    return content.index(b"\n\n") + 2 if path.name.endswith(".nrrd") else 0


# Checksums -------------------------------------------------------------------------------------------

COMPRESSED = [".nii.gz", ".mha", ".nrrd", ".seg.nrrd"]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_no_flipped_bit_changes_a_mask_silently(tmp_path, suffix):
    silent = count_silent_changes(tmp_path, suffix, 150, seed=1)
    assert silent == 0


def count_silent_changes(folder: Path, suffix: str, flips: int, seed: int) -> int:
    """How many of ``flips`` flipped bits in compressed data give another mask without an error."""
    path = save(folder / f"whole{suffix}", glioma())
    expected = read_mask(path, BRATS).volume.array
    content, start = path.read_bytes(), data_begins(path)
    generator = np.random.default_rng(seed)
    damaged, silent = folder / f"damaged{suffix}", 0
    for place in generator.integers(start, len(content), flips):
        changed = bytearray(content)
        changed[place] ^= 1 << generator.integers(8)
        damaged.write_bytes(changed)
        try:
            silent += not np.array_equal(read_mask(damaged, BRATS).volume.array, expected)
        except MedDPMError:
            pass
    return silent


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 4), st.data())
def test_members_of_gzip_are_joined_and_each_is_checked(data, members, draw):
    pieces = [data[n::members] for n in range(members)]
    packed = b"".join(gzip.compress(piece) for piece in pieces)
    assert gunzip(packed) == b"".join(pieces) == gunzip(packed + b"\0" * 512)
    cut = draw.draw(st.integers(0, len(packed) - 1))
    boundaries = {len(b"".join(gzip.compress(p) for p in pieces[:n])) for n in range(1, members)}
    if cut not in boundaries and not any(cut == b + 1 for b in boundaries):
        with pytest.raises(ValueError, match="cut off|damaged"):
            gunzip(packed[:cut])
    with pytest.raises(ValueError, match="follow the end"):
        gunzip(packed + b"more")


def test_what_unpacks_to_more_than_the_header_promises_is_refused():
    with pytest.raises(ValueError, match="unpacks to more"):
        gunzip(gzip.compress(bytes(10_000_000)), 1_000_000)


def test_other_compressions_are_checked_too(tmp_path):
    path = save(tmp_path / "a.nhdr", glioma())
    raw = next(tmp_path.glob("a.raw.gz"))
    content = bytearray(raw.read_bytes())
    content[-6] ^= 1  # the checksum
    raw.write_bytes(content)
    with pytest.raises(MedDPMError, match="damaged"):
        read_volume(path)
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: bzip2\n\n"
    (tmp_path / "b.nrrd").write_bytes(header.encode() + bz2.compress(bytes(64))[:-3])
    with pytest.raises(MedDPMError, match="damaged"):
        read_volume(tmp_path / "b.nrrd")
    path = save(tmp_path / "c.mhd", glioma())
    raw = next(tmp_path.glob("c.*raw"))
    assert zlib.decompress(raw.read_bytes())
    content = bytearray(raw.read_bytes())
    content[-1] ^= 1
    raw.write_bytes(content)
    with pytest.raises(MedDPMError, match="damaged"):
        read_volume(path)


def test_voxels_are_read_from_files_alone(tmp_path):
    """A device named in a header would be read without an end."""
    lines = "NDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = "
    for name in ("/dev/zero", "absent.zraw", str(tmp_path)):
        (tmp_path / "a.mhd").write_text(lines + name + "\n")
        with pytest.raises(MedDPMError, match="missing or not a file"):
            read_volume(tmp_path / "a.mhd")
    (tmp_path / "b.nhdr").write_text("NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\ndata file: /dev/zero\n\n")
    with pytest.raises(MedDPMError, match="missing or not a file"):
        read_volume(tmp_path / "b.nhdr")


@pytest.mark.parametrize(
    "change",
    [("NDims = 3", "NDims = 1e5"), ("NDims = 3", "NDims = 0"), ("DimSize = 6 6 6", "DimSize = -1 6 6"),
     ("DimSize = 6 6 6", "DimSize = 6 6"), ("NDims = 3\n", "")],
)  # fmt: skip
def test_a_header_that_ends_the_parser_is_refused_before_it(tmp_path, change):
    """ITK takes axes of any number at their word, and its process ends with a segmentation fault."""
    path = save(tmp_path / "a.mha", glioma(6), compressed=False)
    content = path.read_bytes()
    assert change[0].encode() in content and read_volume(path).array.any()
    path.write_bytes(content.replace(change[0].encode(), change[1].encode(), 1))
    with pytest.raises(MedDPMError, match="its header says that it"):
        read_volume(path)


@pytest.mark.parametrize(
    "line", ["x" * 5000, "x" * 5000 + ": 1", "no field", "sizes:6 6 6", "type: " + "x" * 5000,
             "kinds: a b " + "c" * 2000, "key: a:=b", "space: " + "LPS" * 700, "space directions: " + "(1,0,0)" * 400,
             "data file: " + "a" * 3000, "data file: %99999d 1 6 1", "data file: LIST", "endian: " + "big " * 500]
)  # fmt: skip
def test_a_line_that_ends_the_parser_of_nrrd_is_refused_before_it(tmp_path, line):
    """It writes what it says about a line into a buffer of 1,025 bytes, whatever the line's length is."""
    path = save(tmp_path / "a.nrrd", glioma(6))
    lines = path.read_bytes().partition(b"\n\n")[0].decode().split("\n")
    name = line.partition(": ")[0]
    lines = [old for old in lines if old.partition(": ")[0] != name] + [line]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + path.read_bytes().partition(b"\n\n")[2])
    with pytest.raises(MedDPMError, match="its header|several files") as caught:
        read_volume(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "line", ["Comment = " + "x" * 400, "N" * 300 + " = 1", "no field", "DimSize = 6 6 6", "Offset = 0 0",
             "ElementSpacing =", "HeaderSize = -5", "BinaryData = maybe", "ElementType = MET_STRING",
             "ElementDataFile = LIST", "ElementDataFile = a%9999d.raw 1 6 1", "ElementDataFile = " + "a" * 300]
)  # fmt: skip
def test_a_line_that_misleads_the_parser_of_metaimage_is_refused_before_it(tmp_path, line):
    """It copies texts to buffers of 255 bytes, and reads numbers that are missing from the lines below."""
    path = save(tmp_path / "a.mha", glioma(6), compressed=False)
    content = path.read_bytes()
    name = line.partition(" = ")[0]
    last = [name] if name in ("ElementDataFile", "ElementType", "Offset", "ElementSpacing", "BinaryData") else []
    lines = content.partition(b"LOCAL\n")[0].decode().split("\n")
    kept = [old for old in lines if old.partition(" = ")[0] not in last]
    kept.insert(len(kept) if name == "ElementDataFile" else 4, line)
    end = b"\n" if name == "ElementDataFile" else b"LOCAL\n"
    path.write_bytes("\n".join(kept).encode() + end + content.partition(b"LOCAL\n")[2])
    with pytest.raises(MedDPMError, match="its header|several files"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("sizes", ["6 6 7", "6 6 5", "6 5 6", "999999 999999 999999"])
def test_sizes_that_the_voxels_do_not_have_are_refused(tmp_path, suffix, compressed, sizes):
    path = save(tmp_path / f"a{suffix}", glioma(6), compressed=compressed)
    name, mark = ("sizes", ": ") if suffix == ".nrrd" else ("DimSize", " = ")
    content = path.read_bytes()
    old = f"{name}{mark}6 6 6\n".encode()
    assert old in content
    path.write_bytes(content.replace(old, f"{name}{mark}{sizes}\n".encode()))
    with pytest.raises(MedDPMError, match="its header promises"):
        read_volume(path)


HEADERS = {
    "all of nrrd": "NRRD0005\r\ntype: uint8\r\ndimension: 3\r\nspace: RAS\r\nsizes: 2 3 4\r\n"
    "space directions: (2,0,0)(0, 2,0) (0,0,2)\r\nencoding: raw\r\nlabels: \"x\" \"y: z\" \"\"\r\n"
    "space units: \"mm\" \"mm\" \"mm\"\r\nkinds: space space ???\r\nthicknesses: NaN nan 1.5e0\r\n"
    + "# " + "x" * 9000 + "\r\nkey:=b: c\r\ncontent: " + "x" * 9000 + "\r\n\r\n",
    "list": "NRRD0004\ntype: unsigned char\ndimension: 4\nspace dimension: 3\nsizes: 1 2 3 4\n"
    "space directions: none (2,0,0) (0,2,0) (0,0,2)\nmeasurement frame: (1,0,0) (0,1,0) (0,0,1)\n"
    "kinds: list domain domain domain\nencoding: raw\nbyteskip: -1\n\n# any\n",
    "old": "NRRD0001\ncontent: a\nnumber: 24\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nspacings: 2 2 2\n"
    "centerings: cell cell cell\nold min: 0\nencoding: raw\nlineskip: 1\n\nskipped\n",
    "metaimage": "ObjectType = Image\r\nNDims = 3\r\nDimSize = 2 3 4\r\nElementSize = 2 2 2\r\n"
    "ElementSpacing = 2 2 2\r\n0010|0010 = a: b = c\r\nPosition = 0 0 0\r\nElementType = MET_UCHAR\r\n"
    "ElementDataFile = LOCAL\n",
    "colons": "NDims: 3\n\nDimSize: 2 3 4\nElementSpacing := 2 2 2\nAnatomicalOrientation = ???\n"
    "ElementNumberOfChannels = 1\nElementType = MET_CHAR\nBinaryData = T\nHeaderSize = 0\n"
    "ElementDataFile = LOCAL\n",
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_of_other_programs_are_read(tmp_path, header):
    path = tmp_path / ("a.nrrd" if header.startswith("NRRD") else "a.mha")
    path.write_bytes(header.encode() + bytes(range(24)))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array.ravel(), range(24))
    assert volume.array.shape == (4, 3, 2)
    np.testing.assert_allclose(volume.geometry.spacing, 2)


@pytest.mark.parametrize("value", ["1" + "0" * 5000, '"' + "x" * 5000 + '"', "[" * 3000, '["' + "é" * 5000 + '"]'])
@pytest.mark.parametrize("field", ["format", "scheme", "title", "readers"])
def test_a_value_of_any_length_is_refused_in_a_short_sentence(tmp_path, field, value):
    text = f"{field} = {value}\n"
    (tmp_path / "a.toml").write_text(text)
    readers = (
        lambda: parse_definition(text, "the study"), lambda: load_recipe(str(tmp_path / "a.toml")),
        lambda: read_scheme(tmp_path / "a.toml"),
    )  # fmt: skip
    for read in readers:
        with pytest.raises(MedDPMError) as caught:
            read()
        assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("line", [5, [], {"slope": "x", "intercept": 0}, {"slope": float("nan"), "intercept": 0}])
def test_a_damaged_record_gives_no_intensities(tmp_path, line):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, Volume(glioma(6).array.astype(np.int16), glioma(6).geometry))
    (tmp_path / "a.json").write_text(json.dumps({"description": SYNTHETIC, "intensities": line}))
    with pytest.raises(MedDPMError, match="a.nii.gz: .* record are damaged"):
        read_result(path)


# Anything --------------------------------------------------------------------------------------------

TABLES = {
    "a.ctbl": b"# Color table\n1 Necrosis 255 0 0 255\n2 Edema 0 255 0 255\n",
    "a.txt": b'0     0    0    0        0  0  0    "Clear Label"\n1   255    0    0        1  1  1    "Necrosis"\n',
    "a.csv": b"LabelValue,Name,Color_R\n1,Necrosis,255\n",
    "dataset.json": b'{"labels": {"background": 0, "edema": 1, "whole tumor": [1, 2]}, "channel_names": {"0": "T1"}}',
}


def seeds(folder: Path) -> dict[str, bytes]:
    """A valid file of every kind that is read, by the name that it has."""
    found = dict(TABLES)
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".seg.nrrd"):
        found[f"mask{suffix}"] = save(folder / f"seed{suffix}", glioma(10)).read_bytes()
    found["raw.mha"] = save(folder / "raw.mha", glioma(10), compressed=False).read_bytes()
    found["raw.nrrd"] = save(folder / "raw.nrrd", glioma(10), compressed=False).read_bytes()
    header = (RESOURCES / "models" / "brain-brats.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    found["model.safetensors"] = header[: 8 + length]
    found["recipe.toml"] = (RESOURCES / "recipes" / "brats.toml").read_bytes()
    found["scheme.json"] = json.dumps(BRATS.to_dict()).encode()
    return found


def apart(folder: Path, name: str) -> Path:
    """A place for the file ``name``: masks lie apart from tables, which would speak for them."""
    place = folder / ("masks" if name.startswith(("mask", "raw")) else "others") / name
    place.parent.mkdir(exist_ok=True)
    return place


def damage(content: bytes, name: str, seed: int) -> bytes:
    """``content`` with something wrong with it, most often in its header; the same for the same ``seed``."""
    generator = np.random.default_rng(seed)
    packed = name.endswith(".nii.gz")
    if packed and generator.random() < 0.8:
        # Behind a checksum that is right, as if a program had written it so.
        return gzip.compress(_changed(gzip.decompress(content), 352, generator), 1)
    return _changed(content, 400 if name.endswith(".nii") else min(len(content), 3000), generator)


def _changed(content: bytes, header: int, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        kind, place = generator.integers(6), int(generator.integers(min(header, len(changed)) or 1))
        length = int(generator.integers(1, 9))
        if kind == 0:
            changed[place : place + 1] = bytes([generator.integers(256)])
        elif kind == 1:
            changed[place : place + length] = generator.bytes(length)
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = bytes(changed[place : place + 4 * length]) * 2
        elif kind == 4:
            del changed[int(generator.integers(len(changed) + 1)) :]
        else:
            odd = [b"nan", b"-1", b"999999999999", b"\xff\xfe", b"0", b"\0" * 8, b"\xe9", b"{", b'"', b"]", b"\r\n\r\n"]
            changed[place : place + length] = odd[generator.integers(len(odd))]
    return bytes(changed)


def read_anything(path: Path) -> None:
    """Reads ``path`` as what its name says. Only :class:`MedDPMError` may come."""
    name = path.name
    try:
        if name == "scheme.json":
            LabelScheme.from_dict(json.loads(path.read_bytes().decode("utf-8", "replace")))
        elif name.endswith((".ctbl", ".txt", ".csv", ".json")):
            read_table(path)
        elif name.endswith(".safetensors"):
            read_card(path)
        elif name.endswith(".toml"):
            load_recipe(str(path))
        else:
            read_mask(path, BRATS)
    except json.JSONDecodeError:
        assert name == "scheme.json"
    except MedDPMError as error:
        assert "\n" not in str(error).strip() and len(str(error)) < 3000, str(error)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return seeds(tmp_path_factory.mktemp("seeds"))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(0, 2**32 - 1))
def test_whatever_is_in_a_file_is_read_or_refused_in_a_sentence(originals, tmp_path_factory, data, seed):
    name = data.draw(st.sampled_from(sorted(originals)))
    path = apart(tmp_path_factory.getbasetemp(), name)
    path.write_bytes(damage(originals[name], name, seed))
    read_anything(path)


def main(count: int) -> None:
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        valid = seeds(Path(folder))
        names = sorted(valid)
        for number in range(count):
            name = names[number % len(names)]
            path = apart(Path(folder), name)
            path.write_bytes(damage(valid[name], name, number))
            try:
                read_anything(path)
            except Exception as error:
                failures += 1
                print(f"{name}, number {number}: {type(error).__name__}: {error}"[:300], flush=True)
            if number % 1000 == 999:
                print(f"{number + 1} files, {failures} failures", flush=True)
        for suffix in COMPRESSED:
            silent = count_silent_changes(Path(folder), suffix, 1000, seed=7)
            print(f"{suffix}: {silent} silent changes in 1,000 flips", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
