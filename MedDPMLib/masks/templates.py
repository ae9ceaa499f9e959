"""Which masks ship with the package? Anatomies to paint on, and one with a tumor for the demo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.numberings import numberings
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.masks.tumor import paint_tumor
from MedDPMLib.moved import former_attribute
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.validation import quoted

_FOLDER = RESOURCES / "templates"

#: The scheme, and the numbering of it, that the files of all templates hold.
_SCHEME = "anatomy"


@dataclass(frozen=True)
class Template:
    """A mask that ships with the package: ``name``, ``title`` for a menu, ``notes`` on what it shows, and its file.

    ``tumor`` says how the tumor was painted: on which template, where (RAS, mm), how large (mm), which seed.
    """

    name: str
    title: str
    notes: str
    path: Path
    tumor: tuple[str, tuple[float, float, float], float, int] | None = None

    #: The name of :attr:`tumor` until version 0.1.
    tumour = former_attribute("tumour", "tumor")


@lru_cache
def templates() -> tuple[Template, ...]:
    """All templates, in the order in which they are offered."""
    entries = json.loads((_FOLDER / "templates.json").read_text(encoding="utf-8"))
    found = []
    for entry in entries:
        tumor = entry.get("tumor")
        if tumor:
            tumor = (tumor["on"], tuple(tumor["center"]), tumor["radius"], tumor["seed"])
        path = _FOLDER / f"{entry['name']}.nii.gz"
        found.append(Template(entry["name"], entry["title"], entry["notes"], path, tumor))
    return tuple(found)


def template_names() -> list[str]:
    """The names of all templates, in the order in which they are offered."""
    return [template.name for template in templates()]


def find_template(name: str) -> Template:
    """The template called ``name``; :class:`MedDPMError` if there is none."""
    for template in templates():
        if template.name == name:
            return template
    raise MedDPMError(f"there is no template {quoted(name)}: use one of {', '.join(template_names())}")


def load_template(name: str, scheme: LabelScheme | None = None) -> Mask:
    """The template called ``name`` in the values of ``scheme``, the anatomy scheme if none is given.

    Raises :class:`MedDPMError` for an unknown name and for a scheme that has no numbering for anatomies.
    """
    return read_mask(find_template(name).path, scheme or load_scheme(_SCHEME), numbering=_SCHEME)


def can_hold_templates(scheme: LabelScheme) -> bool:
    """Whether the templates, which are brains, can be brought into ``scheme``: whether it has a label for a brain."""
    return any(numbering.name == _SCHEME for numbering in numberings(scheme))


def demo_mask(scheme: LabelScheme | None = None) -> Mask:
    """The first template with a tumor, see :func:`load_template`."""
    return load_template(next(template.name for template in templates() if template.tumor), scheme)


def repaint_template(name: str) -> Volume:
    """The template called ``name``, which has a tumor, painted anew: how its file came about.

    ``write_nifti(path, repaint_template(name))`` makes the file again.
    """
    template = find_template(name)
    if template.tumor is None:
        raise MedDPMError(f"the template {quoted(name)} has no painted tumor")
    on, center, radius, seed = template.tumor
    below = load_template(on)
    labels = paint_tumor(below.volume.array, below.volume.geometry, below.scheme, np.array(center), radius, seed=seed)
    return Volume(labels, below.volume.geometry)
