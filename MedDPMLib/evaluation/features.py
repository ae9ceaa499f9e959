"""Which numbers describe a volume, so that sets of volumes can be compared? Of a network, or without one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.haar import split

#: Levels of the Haar transform: detail of 2, 4, 8 and 16 voxels.
_LEVELS = 4

#: Below this a band has no energy.
_NO_ENERGY = 1e-8


class Features(Protocol):
    """``describe(image, inside)``: the features (F,) float64 of one modality (D, H, W) in [-1, 1].

    ``name`` and ``about`` stand beside each figure: figures of other features cannot be compared.
    """

    name: str
    about: str

    def describe(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray: ...


class HaarFeatures:
    """31 features without a network: mean, standard deviation and skewness inside the brain, and the logarithm of the
    mean energy in the seven details of four levels of the Haar transform."""

    name = "Haar features"
    about = (
        "MedDPM's Haar features (31 for each modality: moments, and energies of four levels of the Haar transform);"
        " figures with them compare only among themselves"
    )

    def describe(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        import torch

        values = image[inside].astype(np.float64)
        if not len(values):
            raise MedDPMError("the mask is empty: there is nothing to compare")
        mean, deviation = values.mean(), values.std()
        skewness = ((values - mean) ** 3).mean() / deviation**3 if deviation > 0 else 0.0
        found = [mean, deviation, skewness]
        pad = [(0, -side % 2**_LEVELS) for side in image.shape]
        part, where = torch.from_numpy(np.pad(image, pad))[None].float(), torch.from_numpy(np.pad(inside, pad))
        for _ in range(_LEVELS):
            blocks = where.view(*(part for side in where.shape for part in (side // 2, 2))).sum(dim=(1, 3, 5))
            part, details = split(part, where)
            energy = details[:, 0].double().square().sum(dim=(1, 2, 3)) / max(1, int((blocks > 0).sum()))
            found += (energy + _NO_ENERGY).log10().tolist()
            where = blocks > 0
        return np.array(found)


class MedicalNetFeatures:
    """The average-pooled last layer of a MedicalNet ResNet (Chen, Ma and Zheng 2019, arXiv 1904.00625), 2,048 features
    of a ResNet-50, with the weights in ``path``. Images are standardized inside the brain, 0 around it.

    Raises :class:`MedDPMError` for a file that holds no such network, and where MONAI is not installed.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from MedDPMLib.runtime.packages import require

        require("MedicalNet's features", "monai")
        self._network, depth = _medicalnet(path)
        self._network.eval().to(device)
        self._device = device
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.name = f"MedicalNet features ({path.name})"
        self.about = (
            f"MedicalNet ResNet with {depth} convolutions, weights {path.name}, SHA-256 {digest}; average-pooled last"
            " layer; intensities standardized inside the brain, 0 around it"
        )

    def describe(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        import torch

        values = image[inside]
        scaled = np.where(inside, (image - values.mean()) / max(float(values.std()), 1e-6), 0).astype(np.float32)
        with torch.inference_mode():
            found = self._network(torch.from_numpy(scaled)[None, None].to(self._device))
        return found[0].double().cpu().numpy()


def _medicalnet(path: Path):
    """The ResNet without its last layer that the weights in ``path`` are of, and its number of convolutions."""
    import torch
    from monai.networks.nets.resnet import ResNet

    wrong = f"{path} does not hold the weights of a MedicalNet ResNet: use resnet_50_23dataset.pth of its authors"
    if not path.is_file():
        raise MedDPMError(f"{path} does not exist: check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {name.removeprefix("module."): value for name, value in state.items()}
        blocks = [len({name.split(".")[1] for name in state if name.startswith(f"layer{n}.")}) for n in range(1, 5)]
        widths = [state[f"layer{n}.0.conv1.weight"].shape[0] for n in range(1, 5)]
        deep = "layer1.0.conv3.weight" in state
        network = ResNet(
            block="bottleneck" if deep else "basic", layers=blocks, block_inplanes=widths, spatial_dims=3,
            n_input_channels=1, feed_forward=False, bias_downsample="layer2.0.downsample.0.bias" in state,
            shortcut_type="B" if "layer2.0.downsample.0.weight" in state else "A",
        )  # fmt: skip
        needed = network.state_dict().keys()
        network.load_state_dict({name: state[name] for name in needed})
    except Exception as error:  # whatever a file that holds something else makes the reader raise
        raise MedDPMError(f"{wrong} ({type(error).__name__})") from error
    return network, 2 + sum(blocks) * (3 if deep else 2)
