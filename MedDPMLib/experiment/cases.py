"""Which cases does an experiment have, and who is trained on, who chooses the weights, and who is the judge?

Patients are divided, not cases: several scans of one patient are on one side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Subset

from MedDPMLib.data import Case, read_dataset
from MedDPMLib.data.cases import is_one_of
from MedDPMLib.errors import MedDPMError
from MedDPMLib.experiment.design import PHANTOMS, SYNTHETIC
from MedDPMLib.experiment.phantoms import phantoms
from MedDPMLib.experiment.recipe import AnyRecipe

Cases = Dataset | Sequence[Case]

#: How later scans of one patient are named since BraTS 2023: BraTS-GLI-00005-101.
_FOLLOW_UP = re.compile(r"(BraTS-[A-Z]+-\d+)-\d{3}")

#: Streams of random numbers.
_SPLIT, _SUBSET = range(2)


@dataclass(frozen=True)
class Split:
    """Names of the patients on each side, and the ``real`` and ``synthetic`` cases of each; ``left_out`` are synthetic
    cases that were made from masks of patients who are not trained on."""

    test_patients: tuple[str, ...]
    validation_patients: tuple[str, ...]
    training_patients: tuple[str, ...]
    #: For each real and synthetic case its patient, in the order of the cases.
    test: Cases
    validation: Cases
    real: Cases
    real_patients: tuple[str, ...]
    synthetic: Cases | None
    left_out: tuple[str, ...] = field(default=())

    def training(self, data: Sequence[str], count: int, seed: int) -> list[Case]:
        """What an arm with this ``data`` is trained on, with ``count`` real patients (0: all), drawn by ``seed``."""
        chosen: list[Case] = []
        if "real" in data:
            patients = set(self.subset(count, seed))
            indices = [index for index, patient in enumerate(self.real_patients) if patient in patients]
            chosen += [self.real[index] for index in indices]
        if SYNTHETIC in data:
            assert self.synthetic is not None  # checked when the experiment was opened
            chosen += [self.synthetic[index] for index in range(len(self.synthetic))]
        return chosen

    def subset(self, count: int, seed: int) -> list[str]:
        """``count`` of the patients to train on (0: all): of the same ``seed``, smaller sets are parts of larger."""
        order = np.random.default_rng((seed, _SUBSET)).permutation(len(self.training_patients))
        return sorted(self.training_patients[index] for index in order[: count or None])


def open_cases(recipe: AnyRecipe) -> Split:
    """The cases of ``recipe``, divided; :class:`MedDPMError` for folders and names that do not fit together."""
    real = _read(recipe, recipe.real, "real")
    patients = [patient_of(real[index].name, recipe.patient) for index in range(len(real))]
    everyone = sorted(set(patients))
    random = np.random.default_rng((recipe.split_seed, _SPLIT))
    test = _choose(recipe.test, everyone, random, "test")
    others = [patient for patient in everyone if patient not in test]
    validation = _choose(recipe.validation, others, random, "validation")
    training = [patient for patient in others if patient not in validation]
    if not test:
        raise MedDPMError(f'{recipe.real}: nobody is left to judge by: "test" must name or leave some of the patients')
    if len(training) < max(1, *recipe.real_cases):
        raise MedDPMError(
            f'{recipe.real} has {len(training)} patients to train on, "real_cases" asks for {max(recipe.real_cases)}:'
            " lower it, or hold out fewer"
        )

    def of(names: Sequence[str]) -> Subset:
        return Subset(real, [index for index, patient in enumerate(patients) if patient in set(names)])

    synthetic, left_out = None, []
    if any(SYNTHETIC in arm.data for arm in recipe.arms):
        made = _read(recipe, recipe.synthetic, "synthetic")
        names = [made[index].name for index in range(len(made))]
        held_out = [*test, *validation]
        left_out = [name for name in names if is_one_of(name, held_out)]
        kept = [index for index, name in enumerate(names) if name not in set(left_out)]
        if not kept:
            raise MedDPMError(
                f"{recipe.synthetic}: every synthetic case was made from the mask of a patient who is held out:"
                " generate some from masks of other patients"
            )
        if made[0].labels.shape != real[0].labels.shape or not np.allclose(made[0].spacing, real[0].spacing, rtol=1e-3):
            raise MedDPMError(
                f"{recipe.synthetic} has another grid than {recipe.real}: prepare both with the same settings"
            )
        synthetic = Subset(made, kept)
    trained = of(training)
    return Split(
        tuple(test), tuple(validation), tuple(training), of(test), of(validation), trained,
        tuple(patients[index] for index in trained.indices), synthetic, tuple(left_out),
    )  # fmt: skip


def patient_of(case: str, pattern: str | None) -> str:
    """The patient in the name of a ``case``: the first group of ``pattern`` or, without one, the name but for the
    number of a follow-up in BraTS' naming. :class:`MedDPMError` if ``pattern`` does not fit."""
    if pattern is None:
        found = _FOLLOW_UP.fullmatch(case)
        return found[1] if found else case
    matched = re.match(pattern, case)
    if matched is None or not matched[1]:
        raise MedDPMError(f'"patient" ({pattern}) says of which patient most cases are, but not {case}: correct it')
    return matched[1]


def _read(recipe: AnyRecipe, folder: str | None, what: str) -> Cases:
    if folder is None:
        raise MedDPMError(f"the recipe names no {what} cases: say where they are with --set {what}=FOLDER")
    if folder == PHANTOMS:
        return phantoms(recipe.label_scheme, len(recipe.modalities), synthetic=what == SYNTHETIC)
    return read_dataset(Path(folder), recipe.modalities, scheme=recipe.label_scheme)


def _choose(
    wanted: float | Sequence[str], patients: Sequence[str], random: np.random.Generator, what: str
) -> list[str]:
    """The ``wanted`` ones of ``patients``: by name or, of a share, at least one if it is above 0."""
    if isinstance(wanted, float):
        count = min(len(patients), max(1, round(wanted * len(patients)))) if wanted else 0
        return sorted(patients[index] for index in random.permutation(len(patients))[:count])
    names = [patient_of(name, None) for name in wanted]
    chosen = [patient for patient in patients if is_one_of(patient, names)]
    unknown = [name for name in names if not any(is_one_of(patient, [name]) for patient in patients)]
    if unknown:
        raise MedDPMError(f'"{what}" names {unknown[0]}, who is not among the patients: {", ".join(patients[:5])}, ...')
    return chosen
