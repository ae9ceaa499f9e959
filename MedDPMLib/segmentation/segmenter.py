"""Scans in, mask out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.resample import resample_classes
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.models.segmenter_card import SegmenterCard
from MedDPMLib.models.store import SEGMENTER, ModelStore, load_card_and_state
from MedDPMLib.networks import build_network
from MedDPMLib.networks.segmenter import BLOCK, SegmentationUNet3d, voxel_of_block
from MedDPMLib.runtime.device import Execution, choose_execution
from MedDPMLib.segmentation.checks import doubts
from MedDPMLib.segmentation.scan import Scan, check_same_space, examine, network_geometry, seen, seen_as_named
from MedDPMLib.validation import quoted

#: The segmenter that comes with MedDPM.
BUNDLED_SEGMENTER = "brain-structures"


@dataclass(frozen=True)
class Segmented:
    """``labels`` (values of the card's scheme, uint8) and ``confidence`` (float32, 0 to 1: the probability of the label
    that was chosen) on the geometry of the first scan; ``notes`` say what the reader should know.

    ``volumes`` are those of each label in mm^3.
    """

    labels: Volume
    confidence: Volume
    volumes: dict[int, float]
    notes: tuple[str, ...]


class Segmenter:
    """``card``, ``network`` (float32) and ``hash`` (SHA-256 of its file)."""

    def __init__(self, card: SegmenterCard, network: SegmentationUNet3d, hash: str) -> None:
        self.card, self.hash = card, hash
        self.network = network.eval().requires_grad_(False)
        self._prepared: tuple[Execution, SegmentationUNet3d] | None = None

    def segment(
        self,
        scans: Mapping[str | None, Volume],
        *,
        name: str = "the scan",
        execution: Execution | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Segmented:
        """The mask of one patient's ``scans``: a single one of any contrast under None, or several by modality.

        The network sees them along the patient's axes at its own spacing, once as they are and once mirrored; the
        labels are then brought onto the first scan's voxels. ``progress`` is called with the passes that are done, of
        so many. Raises :class:`MedDPMError` for what is no scan of a brain.
        """
        execution = execution or choose_execution()
        examined = self._examined(scans, name)
        geometry = network_geometry(examined[0], self.card.spacing, self.network.side_multiple)
        check_same_space(examined, geometry)
        asked = self._asks_for_tumor(examined)
        shares = self._classify(self._inputs(examined, geometry), asked, execution, progress)
        target = examined[0].volume.geometry
        labels, confidence = self._labels(shares, geometry, geometry)
        if not target.is_close(geometry):
            on_scan, sure = (Volume(array, target) for array in self._labels(shares, geometry, target))
        else:
            on_scan, sure = Volume(labels, target), Volume(confidence, target)
        values, counts = np.unique(on_scan.array, return_counts=True)
        found = dict(zip(values.tolist(), (counts * target.voxel_volume).tolist(), strict=True))
        volumes = {value: found.get(value, 0.0) for value in (*self.card.structures, *self.card.tumor)}
        notes = [note for scan in examined for note in scan.notes]
        notes += doubts(name, Volume(labels, geometry), confidence, examined[0], self.card.scheme)
        if self.card.tumor and not asked:
            wanted = ", ".join(self.card.modalities)
            notes.append(
                f"no tumor was looked for: that takes {self.card.tumor_modalities} or more of {wanted}, named as such"
            )
        return Segmented(on_scan, sure, volumes, tuple(notes))

    def _examined(self, scans: Mapping[str | None, Volume], name: str) -> list[Scan]:
        if not scans:
            raise MedDPMError("no scan is given")
        for modality in scans:
            if modality is not None and modality not in self.card.modalities:
                known = ", ".join(self.card.modalities) or "none"
                raise MedDPMError(f"{self.card.name} knows no modality {quoted(modality)} by name: it knows {known}")
        return [
            examine(volume, name if modality is None else f"{modality} of {name}", modality)
            for modality, volume in scans.items()
        ]

    def _asks_for_tumor(self, scans: Sequence[Scan]) -> bool:
        named = sum(scan.modality is not None for scan in scans)
        return bool(self.card.tumor) and named >= self.card.tumor_modalities

    def _inputs(self, scans: Sequence[Scan], geometry: Geometry) -> list[np.ndarray]:
        """What the network sees, pass by pass: (inputs, D, H, W)."""
        named = {scan.modality: seen_as_named(scan, geometry) for scan in scans if scan.modality is not None}
        absent = np.zeros(geometry.shape, np.float32)
        known = [named.get(modality, absent) for modality in self.card.modalities]
        return [np.stack([seen(scan, geometry), *known]) for scan in scans]

    @torch.inference_mode()
    def _classify(
        self, passes: Sequence[np.ndarray], asked: bool, execution: Execution, progress: Callable[[int, int], None]
    ) -> list[np.ndarray]:
        """The probabilities (classes, D, H, W), float16, of each output, the tumor's if it is ``asked`` for: means over
        ``passes`` and their mirror images. Beside the largest piece of the brain everything is background."""
        network = self.prepared(execution)
        total = 2 * len(passes) + 1
        features: list[tuple[Tensor, bool]] = []
        for planes in passes:
            x = torch.from_numpy(planes)[None].to(execution.device, execution.dtype)
            for mirrored in (False, True):
                features.append((network(x.flip(-1) if mirrored else x), mirrored))
                progress(len(features), total)
        shape = passes[0].shape[1:]
        shares = []
        for output, count in enumerate(network.classes[: 2 if asked else 1]):
            share = torch.empty((*shape, count), dtype=torch.float16)
            for voxel in range(BLOCK):
                share[voxel_of_block(voxel)] = _probabilities(network, features, output, voxel)
            shares.append(share.movedim(-1, 0).numpy())
        elsewhere = ~_largest_piece(shares[0].argmax(axis=0) > 0)
        for found in shares:
            found[:, elsewhere] = 0
            found[0, elsewhere] = 1
        progress(total, total)
        return shares

    def _labels(self, shares: list[np.ndarray], source: Geometry, target: Geometry) -> tuple[np.ndarray, np.ndarray]:
        """Labels and the probability of each, 0 in the background, on ``target``."""
        labels, confidence = resample_classes(shares[0], [0, *self.card.structures], source, target)
        if len(shares) > 1:
            tumor, certain = resample_classes(shares[1], [0, *self.card.tumor], source, target)
            inside = (tumor > 0) & (labels > 0)
            labels, confidence = np.where(inside, tumor, labels), np.where(inside, certain, confidence)
        return labels, np.where(labels > 0, confidence, np.float32(0))

    def prepared(self, execution: Execution) -> SegmentationUNet3d:
        """The network for inference on the device and in the precision of ``execution``; kept for the next call."""
        if self._prepared is None or self._prepared[0] != execution:
            network = copy.deepcopy(self.network)
            network.to(execution.device, execution.dtype, memory_format=torch.channels_last_3d)
            self._prepared = execution, network
        return self._prepared[1]


def load_segmenter(model: str | os.PathLike | Segmenter) -> Segmenter:
    """The segmenter of that name (bundled or imported), or in that bundle.

    Raises :class:`MedDPMError` for an unknown name, and for a model that is none.
    """
    if isinstance(model, Segmenter):
        return model
    entry = ModelStore().find(model, SEGMENTER)
    card, state = load_card_and_state(entry.path)
    network = build_network(card.network_description)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return Segmenter(card, network, entry.hash)


def _probabilities(
    network: SegmentationUNet3d, features: Sequence[tuple[Tensor, bool]], output: int, voxel: int
) -> Tensor:
    """The probabilities (D/2, H/2, W/2, classes), float16, at one voxel of each block: the mean over all passes."""
    total = torch.zeros(())
    for one, mirrored in features:
        # In a mirrored block left and right voxels have changed places, too.
        scores = network.scores(one, output, voxel ^ 1 if mirrored else voxel)[0].movedim(0, -1)
        found = scores.float().softmax(dim=-1)
        found = found.flip(2) if mirrored else found
        total = found if total.dim() == 0 else total.add_(found)
    return (total / len(features)).to("cpu", torch.float16)


def _largest_piece(brain: np.ndarray) -> np.ndarray:
    """The largest connected piece of ``brain`` (boolean)."""
    import SimpleITK

    if not brain.any():
        return brain
    pieces = SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(brain.astype(np.uint8)))
    pieces = SimpleITK.GetArrayFromImage(SimpleITK.RelabelComponent(pieces, sortByObjectSize=True))
    return pieces == 1
