"""What to do on the command line about mistakes whose remedy depends on where they are made, by their code."""

from __future__ import annotations

from MedDPMLib.errors import MedDPMError

_FILL = "paint it, or have it filled from any skull-stripped image with --brain-from IMAGE"

_REMEDIES = {
    "ambiguous-labels": "say which label convention it is with --labels: {choices}",
    "model-name-taken": "install this one under another name with meddpm models import {file} --name NAME",
    "no-brain-area": _FILL,
    "no-brain-area-or-other-convention": f"{_FILL}, or say with --labels that the file has another label convention",
    "no-rest-label": "leave out --brain-from",
}


def worded(error: MedDPMError) -> str:
    """``error`` in one sentence, for a terminal."""
    return error.worded(_REMEDIES)
