"""What do the recipes of all kinds of models have in common?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from MedDPMLib.diffusion.names import CASCADE_LEVELS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.scheme_files import find_scheme
from MedDPMLib.masks.schemes import LabelScheme, load_scheme, scheme_names
from MedDPMLib.recipes.standard import standard
from MedDPMLib.validation import Rule, field, flag, list_of, number, one_of, quoted, table, text, whole

OPTIMIZERS = ("adam", "adamw")

#: Sides of a box of voxels, in (i, j, k) order.
_SIDES = list_of(whole(1), 3, 3)


def _scheme(value: Any, what: str) -> Any:
    """The name of a scheme that ships with the package, or the table of any other."""
    if isinstance(value, Mapping):
        return LabelScheme.from_dict(value).to_dict()
    if not isinstance(value, str):
        raise MedDPMError(f"{what} must be the name of a label scheme, the path of its file, or its table")
    found = find_scheme(value)
    return value if value in scheme_names() else found.to_dict()


#: The rule of a recipe's scheme.
SCHEME = Rule("the name of a label scheme, the path of its file, or its table", _scheme)


@dataclass(frozen=True)
class Stage:
    """``iterations`` on a grid of ``size`` (i, j, k) voxels that spans the dataset's box.

    The examples are whole volumes, or patches of ``patch`` (i, j, k) voxels of that grid; ``batch`` of them at a time.
    """

    size: tuple[int, int, int] = field(_SIDES)
    iterations: int = field(whole(1))
    batch: int = field(whole(1))
    patch: tuple[int, int, int] | None = field(_SIDES, default=None)

    @property
    def example_size(self) -> tuple[int, int, int]:
        """The voxels (i, j, k) of one example."""
        return self.patch or self.size


@dataclass(frozen=True)
class Level:
    """How one level of a cascade is trained: each iteration takes ``batch`` patches of ``patch`` (i, j, k) voxels."""

    name: str = field(one_of(*CASCADE_LEVELS))
    iterations: int = field(whole(1))
    batch: int = field(whole(1))
    learning_rate: float = field(number(0, open_low=True))
    #: Mean and standard deviation of the logarithm of the noise, in units of what is drawn.
    noise: tuple[float, float] = field(list_of(number(), 2, 2))
    #: The coarser image gets noise of r^2 times this, r uniform, in its own deviations: so that the level copes with
    #: the faults of the one that draws it.
    coarser_noise: float = field(number(0))
    #: Whether examples are rotated, scaled, moved and bent, which interpolates; mirrored they are in any case.
    varied: bool = field(flag())
    patch: tuple[int, int, int] = field(_SIDES)


@dataclass(frozen=True)
class Optimization:
    """How the weights follow the gradient, and which cases they see."""

    seed: int = field(whole(0))
    optimizer: str = field(one_of(*OPTIMIZERS))
    learning_rate: float = field(number(0, open_low=True))
    #: The learning rate falls along half a cosine to this fraction of itself; 1 keeps it constant.
    min_lr_ratio: float = field(number(0, 1))
    #: From this iteration it falls as the inverse square root of the iteration instead, down to the same fraction, so
    #: that a run may be made longer; 0 is the cosine.
    inverse_sqrt_from: int = field(whole(0), default=0, kw_only=True)
    #: Decay of the mean square of the gradients in the optimizer.
    beta2: float = field(number(0, 1, open_high=True), default=0.999, kw_only=True)
    #: Number of iterations in which the learning rate rises linearly.
    warm_up: int = field(whole(0))
    weight_decay: float = field(number(0))
    #: The norm of the gradient is clipped to this; 0 disables clipping.
    max_grad_norm: float = field(number(0))
    #: Number of batches in one iteration; several processes share them.
    gradient_accumulation_steps: int = field(whole(1))
    #: Decay of the moving average of the weights, which becomes the model, at most; over n iterations it is 1 - 9/n at
    #: most, so that a decay near 1 averages over a fixed share of them. And the iteration from which it starts.
    ema: float = field(number(0, 1, open_high=True))
    ema_start: int = field(whole(0))
    #: Share of the cases that is held out for validation; 0 is none.
    held_out: float = field(number(0, 1, open_high=True))


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation: standard deviations of normal distributions; lengths in mm, angles in degrees."""

    flip: float = field(number(0, 1))
    rotation: float = field(number(0))
    scaling: float = field(number(0))
    translation: float = field(number(0))
    elastic: float = field(number(0))
    elastic_points: int = field(whole(2, 64))
    gamma: float = field(number(0))
    bias: float = field(number(0))
    bias_points: int = field(whole(2, 64))


@dataclass(frozen=True)
class Monitor:
    """What is written how often, in iterations; 0 is never."""

    #: A checkpoint, from which the run can resume; the last ``keep`` of them are kept, and the best.
    checkpoint_every: int = field(whole(1))
    keep: int = field(whole(1))
    #: A picture of generated volumes.
    montage_every: int = field(whole(0))


def card_fields(own: Mapping[str, Any], training: str, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a recipe's ``own`` card, with the sentences ``training`` on the run after its own, and ``data`` as
    what was trained on unless it lists that itself."""
    given = dict(own)
    sentence = text(least=0).read(given.pop("training", ""), '[card]: "training"')
    given["training"] = " ".join(filter(None, [sentence, training])) or "Not trained yet."
    data = list_of(table(), 0, 100).read(given.pop("training_data", data), '[card]: "training_data"')
    given["training_data"] = data or ({"name": "none", "license": "none", "cases": None},)
    return given


class Staged:
    """A recipe of ``stages`` on the standard grid of its ``scheme``."""

    name: str
    #: The name of a scheme that ships with the package, or the table of one of your own.
    scheme: Any
    #: The grid of the dataset; None: that of a scheme that ships with the package.
    dataset_grid: Grid | None
    stages: tuple[Stage, ...]
    #: The levels of a cascade, and which of them is trained: one by one.
    levels: tuple[Level, ...] = ()
    level: str | None = None

    def at_level(self, name: str) -> Any:
        """The recipe of one level of the cascade; :class:`MedDPMError` where there is none of this name."""
        raise MedDPMError(f"the recipe {self.name} has no level {quoted(name)}: it is not that of a cascade")

    @property
    def label_scheme(self) -> LabelScheme:
        return load_scheme(self.scheme) if isinstance(self.scheme, str) else LabelScheme.from_dict(self.scheme)

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    @property
    def grid(self) -> Grid:
        """The grid of the dataset; the grids of all stages span its box."""
        if self.dataset_grid is not None:
            return self.dataset_grid
        if isinstance(self.scheme, str):
            return standard(self.scheme).grid
        raise MedDPMError(
            f'the scheme "{self.scheme["name"]}" has no grid of its own: give the recipe a table [dataset_grid] with'
            " size, spacing and orientation"
        )

    def stage_grid(self, stage: Stage) -> Grid:
        """The whole grid of ``stage``: the dataset's box in its voxels."""
        lengths = [n * spacing for n, spacing in zip(self.grid.size, self.grid.spacing, strict=True)]
        spacing = tuple(length / n for length, n in zip(lengths, stage.size, strict=True))
        return Grid(stage.size, spacing, self.grid.orientation)
