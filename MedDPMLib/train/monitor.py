"""How is a run monitored? Scalars and pictures, for TensorBoard and as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from MedDPMLib.data import Case
from MedDPMLib.figures.montage import draw_montage
from MedDPMLib.imaging.io import SYNTHETIC
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.generation import generate
from MedDPMLib.masks.mask import Mask
from MedDPMLib.models.model import Model
from MedDPMLib.networks import build_network
from MedDPMLib.recipes.recipe import Recipe, generator_card
from MedDPMLib.runtime.device import Execution
from MedDPMLib.runtime.files import atomic_write


class Monitor:
    """Writes into the folder of a ``run``; what an earlier process wrote after ``iteration`` is removed."""

    def __init__(self, run: Path, iteration: int) -> None:
        self.run = run
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=iteration + 1)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def montage(
        self, recipe: Recipe, weights: Mapping[str, Tensor], case: Case, execution: Execution, iteration: int
    ) -> Path:
        """A picture of what the averaged ``weights`` make of the labels of ``case``, with seed 0 in draft quality."""
        card = generator_card(recipe)
        scheme = recipe.label_scheme
        network = build_network(card.network_description)
        network.load_state_dict(weights)
        labels = Volume(case.labels.numpy().copy(), recipe.grid.centered_on(np.zeros(3)))
        mask = Mask.from_volume(labels, scheme, name=case.name, numbering=scheme.own_numbering)
        generated = generate(
            Model(card, network, hash=""),
            mask,
            device=execution.device,
            precision=execution.precision,
            **card.qualities["draft"],
        )
        caption = f"{SYNTHETIC}, {recipe.name}, iteration {iteration:,}, labels of {case.name}"
        picture = draw_montage(generated, labels, scheme, caption=caption)
        path = self.run / "montages" / f"iteration-{iteration:09d}.png"
        with atomic_write(path) as temporary:
            picture.save(temporary)
        self._writer.add_image("montage", np.asarray(picture), iteration, dataformats="HWC")
        return path

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
