"""How does a folder of cases become a dataset to train on?

A source holds one folder for each case with ``<case>_<modality>.nii.gz`` files, as BraTS ships them. The
dataset has nnU-Net's raw layout: ``imagesTr/<case>_0000.nii.gz`` (one file a modality, in the recipe's order),
``labelsTr/<case>.nii.gz`` and ``dataset.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import brain_center
from MedDPMLib.labels import load_scheme
from MedDPMLib.masks import Mask
from MedDPMLib.recipe import DATASET_GRID
from MedDPMLib.volume import Volume, read_volume, resample_image, resample_labels, write_nifti, written_whole

#: Intensities between these percentiles of the brain become [-1, 1].
_PERCENTILES = (0.5, 99.5)

_ANATOMY = load_scheme("anatomy")


def prepare(
    sources: Sequence[Path], out: Path, *, anatomy: Path, modalities: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    """Writes every case of ``sources`` into the dataset ``out`` and yields its name with None, or with what is wrong.

    ``anatomy`` holds ``<case>_anatomy.nii.gz`` in each case's geometry. Brain voxels without a structure become the
    rest of the brain; a tumour segmentation (``<case>_seg.nii.gz``, if there is one) goes on top.
    """
    folders = sorted(folder for source in sources for folder in source.iterdir() if folder.is_dir())
    if not folders:
        raise MedDPMError(f"{', '.join(map(str, sources))}: no case folder was found")
    for folder in folders:
        try:
            _prepare_case(folder, anatomy / f"{folder.name}_anatomy.nii.gz", out, modalities)
            yield folder.name, None
        except MedDPMError as error:
            yield folder.name, str(error)
    labels = {"background": 0} | {label.name: label.value for label in _ANATOMY.labels}
    description = {
        "channel_names": {str(index): modality for index, modality in enumerate(modalities)},
        "labels": labels,
        "numTraining": len(list((out / "labelsTr").glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
        "label_scheme": _ANATOMY.name,
    }
    with written_whole(out / "dataset.json") as temporary:
        temporary.write_text(json.dumps(description, indent=2))


def _prepare_case(folder: Path, anatomy_path: Path, out: Path, modalities: Sequence[str]) -> None:
    images = [read_volume(folder / f"{folder.name}_{modality}.nii.gz") for modality in modalities]
    segmentation_path = folder / f"{folder.name}_seg.nii.gz"
    segmentation = read_volume(segmentation_path) if segmentation_path.exists() else None
    labels = compose_anatomy(read_volume(anatomy_path), images, segmentation)
    geometry = DATASET_GRID.place(labels.geometry, brain_center(labels.array > 0, labels.geometry))
    write_nifti(out / "labelsTr" / f"{folder.name}.nii.gz", resample_labels(labels, geometry, _ANATOMY.priority))
    for index, image in enumerate(images):
        normalised = resample_image(normalise(image, labels.array > 0), geometry, fill=-1.0)
        write_nifti(out / "imagesTr" / f"{folder.name}_{index:04d}.nii.gz", normalised)


def compose_anatomy(anatomy: Volume, images: Sequence[Volume], segmentation: Volume | None) -> Volume:
    """One label map of the anatomy scheme out of structures, skull-stripped ``images`` and a tumour ``segmentation``.

    ``anatomy`` has the structures' values. Where any image is brighter than its background (its lowest value)
    and there is no structure, it is the rest of the brain. The tumour, in any BraTS numbering, goes on top: what a
    network takes for anatomy inside a tumour is wrong. All lie on one grid, or :class:`MedDPMError` is raised.
    """
    labels = anatomy.array.astype(np.uint8)
    for volume in (*images, *([segmentation] if segmentation else [])):
        if not volume.geometry.is_close(anatomy.geometry):
            raise MedDPMError("images, anatomy and tumour segmentation do not lie on one grid: resample them first")
    brain = np.any([image.array > image.array.min() for image in images], axis=0)
    labels[brain & (labels == 0)] = _ANATOMY.rest.value
    if segmentation is not None and segmentation.array.any():
        # The brain is known already: what is asked of the mask here is only what its values mean.
        tumour = Mask.from_volume(segmentation, load_scheme("brats"), brain_from=images[0])
        for label in tumour.scheme.tumour:
            labels[tumour.volume.array == label.value] = _ANATOMY.label_by_name(label.name).value
    return Volume(labels, anatomy.geometry)


def normalise(image: Volume, brain: np.ndarray) -> Volume:
    """``image`` with the brain's 0.5 to 99.5 percentiles at -1 and 1, clipped, and -1 outside ``brain``; float32."""
    values = image.array[brain].astype(np.float32)
    low, high = np.percentile(values, _PERCENTILES)
    if not high > low:
        raise MedDPMError("an image is constant inside the brain: it cannot be normalised")
    array = np.full(image.array.shape, -1.0, np.float32)
    array[brain] = np.clip((values - low) / (high - low), 0, 1) * 2 - 1
    return Volume(array, image.geometry)
