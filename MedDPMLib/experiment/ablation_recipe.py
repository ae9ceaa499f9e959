"""Which training recipes of a diffusion model are compared? Arms are changes of one recipe: schedule, loss,
conditioning, prediction, network, number of denoising steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from MedDPMLib.errors import MedDPMError
from MedDPMLib.experiment.design import Arm, Design, Figure, check_arms
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.recipes.recipe import Recipe, load_recipe
from MedDPMLib.validation import build, field, list_of, optional, text, whole

#: What the recipe of an experiment says of its kind.
ABLATION = "ablation"

_CHANGES = list_of(text(), 0, 50)


@dataclass(frozen=True, kw_only=True)
class AblationArm(Arm):
    """The recipe with ``changes``, as meddpm train takes them with --set; sampled in ``steps`` (None: as its standard
    quality says)."""

    changes: tuple[str, ...] = field(_CHANGES, default=())
    steps: int | None = field(optional(whole(1, 1000)), default=None)


@dataclass(frozen=True, kw_only=True)
class AblationRecipe(Design):
    """All that determines an ablation, except what is in the folder of real cases."""

    kind: str = ABLATION
    #: Name or file of the training recipe, and changes for all arms.
    base: str = field(text())
    changes: tuple[str, ...] = field(_CHANGES, default=())

    figures: ClassVar = {
        "ms_ssim": Figure("MS-SSIM", "higher", 3),
        "mse": Figure("MSE", "lower", 4),
        "label_means": Figure("difference of label means", "lower", 3),
    }
    subject: ClassVar = "modality"
    sentence: ClassVar = (
        "Diffusion models that differ in one setting each, compared on volumes of the masks of patients whom none of"
        " them has seen. Synthetic volumes do not depict real people and are not for diagnosis."
    )

    def training_recipe(self, arm: AblationArm, seed: int) -> Recipe:
        """That of an ``arm`` with a ``seed``; :class:`MedDPMError` for changes that make none of a single network."""
        changes = [*self.changes, *arm.changes, f"training.seed={seed}", "monitor.montage_every=0"]
        try:
            recipe = load_recipe(self.base, changes)
        except MedDPMError as error:
            raise MedDPMError(f'the arm "{arm.name}": {error}') from None
        if not isinstance(recipe, Recipe) or recipe.levels:
            raise MedDPMError(f'"base" must be the recipe of a diffusion model of one network, not {self.base}')
        return recipe

    @cached_property
    def _reference(self) -> Recipe:
        return self.training_recipe(self.arm(self.reference), 0)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self._reference.modalities

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.modalities

    @property
    def label_scheme(self) -> LabelScheme:
        return self._reference.label_scheme

    @property
    def iterations(self) -> int:
        return self._reference.iterations

    def described(self) -> dict[str, str]:
        arms = {
            f"arm {arm.name}": ", ".join([*arm.changes, *[f"sampled in {arm.steps} steps"] * bool(arm.steps)])
            for arm in self.arms
            if arm.changes or arm.steps
        }
        return {
            "training recipe": ", ".join([self.base, *self.changes]),
            "budget of every arm": f"{self.iterations:,} iterations, seeds {', '.join(map(str, self.seeds))}",
            **arms,
            "figures": "of a volume and the real one of the same mask, inside the brain, in [-1, 1], on the last grid"
            " of the training: MS-SSIM of its box, mean squared error, and the mean absolute difference of the means of"
            " its labels",
        }


def ablation_from(values: Mapping[str, Any]) -> AblationRecipe:
    """The recipe of the tables ``values``; :class:`MedDPMError` names an invalid field."""
    made = dict(values)
    if "arms" in made:
        if not isinstance(made["arms"], (list, tuple)) or not made["arms"]:
            raise MedDPMError("[[arms]] is empty: give at least one arm with a name")
        made["arms"] = tuple(build(AblationArm, arm, "[[arms]]") for arm in made["arms"])
    for name in ("synthetic", "real_cases"):
        if name in made:
            raise MedDPMError(f'an ablation has no field "{name}": its models are trained on all real cases')
    recipe = build(AblationRecipe, made, "the recipe")
    check_arms(recipe.reference, [arm.name for arm in recipe.arms])
    wanted = recipe.training_recipe(recipe.arm(recipe.reference), 0)
    for arm in recipe.arms:
        found = recipe.training_recipe(arm, 0)
        for name in ("modalities", "label_scheme", "grid", "iterations"):
            if getattr(found, name) != getattr(wanted, name):
                raise MedDPMError(
                    f'the arm "{arm.name}" has other {name.replace("_", " ")} than the reference: arms are compared on'
                    " the same images after the same number of iterations"
                )
        if arm.data != ("real",):
            raise MedDPMError(f'the arm "{arm.name}": the arms of an ablation have no "data"')
    return recipe
