"""Is this the name of a region of a tumor, inside which nothing else is named?

Regions lie in each other: the whole tumor holds the tumor core, and that the enhancing tumor. Where the inner ones are
named, too, as in the datasets of BraTS and nnU-Net, a region is what they leave of it: edema, necrosis. Alone it can be
any part, or all, of the tumor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from MedDPMLib.masks.schemes import Label

#: The tissue (:data:`MedDPMLib.masks.schemes.TISSUES`) that has to be named inside a region.
_INSIDE = {"whole tumor": "core", "tumor core": "rim"}


def lone_regions(labels: Mapping[str, Label | None]) -> set[str]:
    """Those of a file's names that are regions and lack a part inside; ``labels`` holds what each name would mean.

    A scheme that has one label for all of the tumor can take any of them.
    """
    tissues = {label.tissue for label in labels.values() if label is not None}
    lone = set()
    for name, label in labels.items():
        inside = _INSIDE.get(_plain(name))
        if inside is not None and inside not in tissues and label is not None and label.tissue is not None:
            lone.add(name)
    return lone


def _plain(name: str) -> str:
    """ "Tumour_core (TC)" is "tumor core"."""
    words = re.sub(r"\([^)]*\)\s*$", "", name.casefold()).replace("tumour", "tumor")
    return " ".join(re.split(r"[\W_]+", words)).strip().removeprefix("the ")
