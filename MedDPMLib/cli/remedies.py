"""Remedies for errors, by their code, in the words of the command line."""

from __future__ import annotations

from MedDPMLib.errors import MedDPMError

_FILL = "paint it, or fill it from any skull-stripped image with --brain-from IMAGE"

_REMEDIES = {
    "ambiguous-labels": "choose the label convention with --labels: {choices}",
    "card-needed": "describe it in a card: meddpm models card FILE writes one to be filled in, and meddpm models import"
    " FILE --card CARD takes it",
    "lone-region": 'say which label it is with --labels, as in --labels "{example}"',
    "model-name-taken": "install this one under another name with meddpm models import {file} --name NAME",
    "no-brain-area": _FILL,
    "no-brain-area-or-other-convention": f"{_FILL}, or choose another label convention with --labels",
    "no-rest-label": "leave out --brain-from",
    "two-places": "find out which is right, and choose it with --geometry sform or --geometry qform",
    "unknown-segment": 'rename it after its label, or say which label it is with --labels "{example}"',
    "unknown-labels": 'define each value with --labels "{example}", or use a model with another scheme',
}


def worded(error: MedDPMError) -> str:
    """``error`` in one sentence with the remedy for the command line."""
    return error.worded(_REMEDIES)
