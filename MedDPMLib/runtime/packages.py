"""Is an optional package installed? Checked before the work that needs it, not after minutes of it."""

from __future__ import annotations

from importlib.util import find_spec

from MedDPMLib.errors import MedDPMError

#: Optional packages of the extra "train" by the name they are imported by, each as pip calls it.
OPTIONAL = {
    "accelerate": "accelerate",
    "monai": "monai",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tomli_w": "tomli-w",
}

#: What the extra "evaluate" has beside some of them.
_FOR_EVALUATION = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "statsmodels": "statsmodels",
}

#: What both extras have.
_IN_BOTH = {"monai", "scipy"}


def require(purpose: str, *modules: str) -> None:
    """Raises :class:`MedDPMError` unless all ``modules`` (of an extra) can be imported.

    Nothing is imported. ``purpose`` is the beginning of the message: "training", "MS-SSIM".
    """
    known = OPTIONAL | _FOR_EVALUATION
    missing = [known[module] for module in modules if not _is_installed(module)]
    if missing:
        evaluates = _FOR_EVALUATION.keys() & set(modules)
        trains = not evaluates or (OPTIONAL.keys() - _IN_BOTH) & set(modules)
        extra = ",".join(["train"] * bool(trains) + ["evaluate"] * bool(evaluates))
        raise MedDPMError(f'{purpose} needs {", ".join(missing)}: install it with pip install "meddpm[{extra}]"')


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # imported by hand, without a specification
        return True
