"""Which cases are used for training?

A dataset is decoded once: each case is stored as two arrays beside the dataset, which are memory-mapped. A patch reads
only its part, all processes of a machine share the pages, and a dataset may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.masks.distances import FARTHEST, depths
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.validation import matching, optional, quoted, read_json, table, table_of, table_with, text

#: The folder in a dataset for what is decoded.
_DECODED = "decoded"

#: What is needed of the fields of ``dataset.json``; the scheme is nothing that nnU-Net writes.
_DESCRIPTION = table_with(
    {
        "channel_names": table_of(matching(r"\d{1,4}", "a number of digits"), text()),
        "label_scheme": optional(text()),
        "scheme": optional(table()),
    },
    more=True,
)

#: Seconds after which a temporary file is taken to be abandoned.
_ABANDONED = 24 * 3600

#: Rounding in headers; intensities further outside of [-1, 1] were not normalized.
_RANGE_TOLERANCE = 1e-3

#: Relative difference of two spacings that is header rounding.
_SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """``image`` (C, D, H, W) floating point in [-1, 1], ``labels`` (D, H, W) uint8; ``spacing`` (i, j, k) in mm.

    ``file`` is what ``image`` is mapped from, None if it lies in memory.
    """

    name: str
    image: Tensor
    labels: Tensor
    spacing: tuple[float, float, float]
    file: Path | None = None


def read_dataset(
    folder: str | os.PathLike,
    modalities: Sequence[str],
    *,
    scheme: str | LabelScheme | None = None,
    grid: Grid | None = None,
) -> DecodedCases:
    """The cases of the nnU-Net raw dataset in ``folder``, in the order of their names.

    Its channels must be ``modalities``, in this order, its labels those of ``scheme`` (where it says which), and its
    cases must have the size, spacing and orientation of ``grid`` (without it: one and the same); else, and for a case
    that cannot be read, :class:`MedDPMError` is raised. What is decoded is kept in ``folder``, or in the user's cache
    where ``folder`` cannot be written.
    """
    folder = Path(folder)
    try:
        description = _DESCRIPTION.read(
            read_json((folder / "dataset.json").read_bytes(), "dataset.json"), "dataset.json"
        )
    except (OSError, MedDPMError) as error:
        raise MedDPMError(f"{folder} is not a prepared dataset ({error}): make one with meddpm prepare") from error
    names = [name for _, name in sorted(description["channel_names"].items(), key=lambda item: int(item[0]))]
    if names != list(modalities):
        raise MedDPMError(f"{folder} holds {', '.join(names)}, the recipe asks for {', '.join(modalities)}")
    name = scheme.name if isinstance(scheme, LabelScheme) else scheme
    said = description["label_scheme"] or name
    if name is not None and said != name:
        raise MedDPMError(f'{folder} has the labels of the scheme {quoted(said)}, the recipe asks for "{name}"')
    if isinstance(scheme, LabelScheme) and description["scheme"] is not None:
        own = LabelScheme.from_dict(description["scheme"])
        if own.labels != scheme.labels:
            raise MedDPMError(
                f'{folder} was prepared with another version of the scheme "{name}" ({own.describe_labels()}) than the'
                f" recipe's ({scheme.describe_labels()}): prepare it anew, or use that one"
            )
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((folder / "labelsTr").glob("*.nii.gz"))]
    if not cases:
        raise MedDPMError(f"{folder} has no case in labelsTr: prepare one with meddpm prepare")
    cache = _cache_folder(folder)
    # Decompressing takes the time, and that leaves the interpreter free.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(lambda name: _decode(folder, name, len(names), cache), cases))
    expected, by = (decoded[0].grid, decoded[0].name) if grid is None else (grid, "the recipe")
    for one in decoded:
        if not _same_grid(one.grid, expected):
            raise MedDPMError(
                f"{folder}: {one.name} has {_grid_text(one.grid)}, {by} {_grid_text(expected)}: prepare the cases"
                " again, or choose the recipe that fits"
            )
    return DecodedCases(decoded)


def read_label_maps(folder: str | os.PathLike, grid: Grid) -> list[Case]:
    """The label maps without images in the folder ``labelMaps`` of a dataset, on its ``grid``: cases whose image has no
    more than an empty channel. None where there is no such folder."""
    cases = []
    for path in sorted((Path(folder) / "labelMaps").glob("*.nii.gz")):
        labels = read_volume(path)
        geometry = labels.geometry
        spacing = tuple(round(float(s), 6) for s in geometry.spacing)
        found = Grid(geometry.size, spacing, geometry.orientation)
        if not _same_grid(found, grid):
            raise MedDPMError(f"{path} has {_grid_text(found)}, the recipe {_grid_text(grid)}: resample it to that")
        values = torch.from_numpy(labels.array.astype(np.uint8))
        empty = torch.full((1, 1, 1, 1), -1.0, dtype=torch.float16).expand(1, *values.shape)
        cases.append(Case(path.name.removesuffix(".nii.gz"), empty, values, spacing))
    return cases


def _same_grid(one: Grid, other: Grid) -> bool:
    same = one.size == other.size and one.orientation == other.orientation
    return same and np.allclose(one.spacing, other.spacing, rtol=_SPACING_TOLERANCE)


def _grid_text(grid: Grid) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing)
    return f"{' x '.join(map(str, grid.size))} voxels of {spacing} mm in {grid.orientation}"


class DecodedCases(Dataset):
    """The :class:`Case` of each index, mapped into memory when it is asked for. Cheap to send to another process."""

    def __init__(self, decoded: Sequence[_Decoded]) -> None:
        self._decoded = list(decoded)

    def __len__(self) -> int:
        return len(self._decoded)

    def __getitem__(self, index: int) -> Case:
        return self._decoded[index].open()


@dataclass(frozen=True)
class _Decoded:
    """Where a case's arrays lie: ``image`` (C, D, H, W) float16 and ``labels`` (D, H, W) uint8 as ``.npy``."""

    name: str
    image: Path
    labels: Path
    grid: Grid

    def open(self) -> Case:
        image, labels = _mapped(self.image), _mapped(self.labels)
        return Case(self.name, image, labels, self.grid.spacing, self.image)


def _mapped(path: Path) -> Tensor:
    try:
        # Copy on write: whatever is done to the tensor stays in this process.
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError) as error:
        raise MedDPMError(f"{path.parent} is damaged ({error}): delete this folder, it is created again") from error


def _cache_folder(folder: Path) -> Path:
    """The folder for what is decoded of the dataset in ``folder``."""
    beside = folder / _DECODED
    try:
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    except OSError:
        pass
    import platformdirs

    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("meddpm", appauthor=False)) / _DECODED / key


# MONAI's PersistentDataset does the same, but loads a whole case for each patch, and a run that was killed while it
# moved a file from the temporary folder leaves a damaged one that ends every later run.
def _decode(folder: Path, name: str, channels: int, cache: Path) -> _Decoded:
    """Writes the arrays of the case ``name`` into ``cache``, unless they are there for these very files."""
    labels_path = folder / "labelsTr" / f"{name}.nii.gz"
    image_paths = [folder / "imagesTr" / f"{name}_{index:04d}.nii.gz" for index in range(channels)]
    try:
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (labels_path, *image_paths)]
    except OSError as error:
        raise MedDPMError(
            f"{error.filename} cannot be read ({error.strerror}): prepare the case {name} again"
        ) from error
    key = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    own = cache / name
    image, labels, about = (own / f"{key}.{what}" for what in ("image.npy", "labels.npy", "json"))
    if (grid := _described(about, image, labels)) is None:
        stacked, values, grid = _read_arrays(labels_path, image_paths, name)
        for path, array in ((image, stacked), (labels, values)):
            with atomic_write(path) as temporary:
                np.save(temporary, array)
        with atomic_write(about) as temporary:
            temporary.write_text(json.dumps(vars(grid)))
        for old in own.iterdir():  # of files that have changed since
            if not old.name.startswith((key, ".")):
                old.unlink(missing_ok=True)
    for left in own.glob(".*"):  # half-written by a process that was killed; another may be writing right now
        with suppress(FileNotFoundError):  # which has just finished
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    return _Decoded(name, image, labels, grid)


def _described(about: Path, image: Path, labels: Path) -> Grid | None:
    """The grid of the arrays in ``image`` and ``labels`` as ``about`` says; None where they have to be made again."""
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        grid = Grid(tuple(said["size"]), tuple(said["spacing"]), said["orientation"])
        shapes = [np.load(path, mmap_mode="r").shape[-3:] for path in (image, labels)]
    except Exception:  # a cache that is damaged in any way is no loss
        return None
    return grid if shapes == [grid.shape] * 2 else None


def _read_arrays(labels_path: Path, image_paths: Sequence[Path], name: str) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Image (C, D, H, W) float16, labels (D, H, W) uint8, and the grid they lie on, wherever it was placed."""
    labels = read_volume(labels_path)
    stacked = np.empty((len(image_paths), *labels.array.shape), np.float16)
    for channel, path in zip(stacked, image_paths, strict=True):
        image = read_volume(path)
        if not image.geometry.is_close(labels.geometry):
            raise MedDPMError(f"{path} does not lie on the grid of its labels, {labels_path}: prepare {name} again")
        low, high = float(image.array.min()), float(image.array.max())
        if low < -1 - _RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            raise MedDPMError(f"{path} has intensities from {low:g} to {high:g}, not -1 to 1: use meddpm prepare")
        channel[:] = image.array
    values = labels.array
    if values.min() < 0 or values.max() > 255:
        raise MedDPMError(f"{labels_path} has values from {values.min():g} to {values.max():g}, not labels of 0 to 255")
    spacing = tuple(round(float(s), 6) for s in labels.geometry.spacing)
    return stacked, values.astype(np.uint8), Grid(labels.geometry.size, spacing, labels.geometry.orientation)


def smoothed_for(case: Case, shape: Sequence[int]) -> Case:
    """``case`` with the image blurred to the resolution of a grid of ``shape`` (D, H, W) over the same box.

    A Gaussian takes the point spread from one source voxel to one target voxel (full width at half maximum),
    so that a coarser grid sees what a scanner with larger voxels would.
    """
    ratios = [side / target for side, target in zip(case.image.shape[1:], shape, strict=True)]
    if max(ratios) <= 1:
        return case
    from scipy.ndimage import gaussian_filter1d  # a convolution of PyTorch rounds by the number of threads

    image = case.image.float().numpy()
    for axis, ratio in enumerate(ratios, start=1):
        if ratio > 1:
            sigma = (ratio**2 - 1) ** 0.5 / 2.355
            image = gaussian_filter1d(image, sigma, axis=axis, mode="nearest", radius=int(np.ceil(3 * sigma)))
    return replace(case, image=torch.from_numpy(image).to(case.image.dtype))


class DerivedCases(Dataset, ABC):
    """The ``cases`` with the images that :meth:`derive` makes of each, computed once, when it is first used.

    What is derived of a decoded case is kept beside it under ``name`` and mapped, as the case itself is: a dataset may
    be larger than the memory, and all processes share the pages.
    """

    def __init__(self, cases: Sequence[Case] | Dataset, name: str) -> None:
        self.cases, self.name = cases, name
        self._in_memory: dict[int, Case] = {}

    @abstractmethod
    def derive(self, case: Case) -> Case:
        """``case`` with other images."""

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case:
        if index in self._in_memory:
            return self._in_memory[index]
        case = self.cases[index]
        if case.file is None:
            return self._in_memory.setdefault(index, self.derive(case))
        path = case.file.with_suffix(f".{self.name}.npy")
        if not path.is_file():
            derived = self.derive(case)
            try:
                with atomic_write(path) as temporary:
                    np.save(temporary, derived.image.numpy())
            except MedDPMError:  # no space, or no permission: no reason to end a run, nor to fill the memory instead
                return derived
        return replace(case, image=_mapped(path), file=path)


class SmoothedCases(DerivedCases):
    """The ``cases`` as :func:`smoothed_for` makes them for ``shape``."""

    def __init__(self, cases: Sequence[Case] | Dataset, shape: Sequence[int]) -> None:
        super().__init__(cases, f"smoothed-{'x'.join(map(str, reversed(shape)))}")
        self.shape = tuple(shape)

    def derive(self, case: Case) -> Case:
        return smoothed_for(case, self.shape)


def with_depths(case: Case, scheme: LabelScheme) -> Case:
    """``case`` with -1 for whatever lies outside its labels, and three more images in [-1, 1]: 1 inside of them, and
    the two depths of :func:`MedDPMLib.masks.distances.depths`, as shares of the greatest."""
    inside = case.labels > 0
    depth = torch.from_numpy(depths(case.labels.numpy(), scheme)) / FARTHEST
    image = torch.where(inside, case.image, -torch.ones((), dtype=case.image.dtype))
    more = torch.cat([inside[None] * 2.0 - 1, depth]).to(image.dtype)
    return replace(case, image=torch.cat([image, more]))


class CasesWithDepths(DerivedCases):
    """The ``cases`` as :func:`with_depths` makes them."""

    def __init__(self, cases: Sequence[Case] | Dataset, scheme: LabelScheme) -> None:
        super().__init__(cases, f"depths-{scheme.name}")
        self.scheme = scheme

    def derive(self, case: Case) -> Case:
        return with_depths(case, self.scheme)
