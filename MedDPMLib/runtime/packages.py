"""Is an optional package installed? Checked before the work that needs it, not after minutes of it."""

from __future__ import annotations

from importlib.util import find_spec

from MedDPMLib.errors import MedDPMError

#: Optional packages by the name they are imported by, each as pip calls it. All come with the extra "train".
OPTIONAL = {
    "accelerate": "accelerate",
    "monai": "monai",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tomli_w": "tomli-w",
}


def require(purpose: str, *modules: str) -> None:
    """Raises :class:`MedDPMError` unless all ``modules`` (of :data:`OPTIONAL`) can be imported.

    Nothing is imported. ``purpose`` is the beginning of the message: "training", "MS-SSIM".
    """
    missing = [OPTIONAL[module] for module in modules if not _is_installed(module)]
    if missing:
        raise MedDPMError(f'{purpose} needs {", ".join(missing)}: install it with pip install "meddpm[train]"')


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # imported by hand, without a specification
        return True
