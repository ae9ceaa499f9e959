"""What is the next step? A line above the button, gone once the steps are known, and the sections that it needs."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

#: In the application's settings: whether an image has been generated with this panel before.
_KNOWN = "MedDPM/knowsTheSteps"


class Guide:
    def __init__(self, ui) -> None:
        self._ui = ui
        self._results = 0
        self._painted = False
        ui.modelSection.collapsed = True
        ui.generateSection.collapsed = True
        ui.advancedSection.collapsed = True
        ui.resultsSection.collapsed = True

    def show(self, *, usable_model: bool, segmentation: bool, running: bool, results: int) -> None:
        """Says what to do next, and opens the sections that hold it."""
        ui = self._ui
        if not usable_model:
            ui.modelSection.collapsed = False
        if bool(results) != bool(self._results):  # only where that changes: else the user has folded it
            ui.resultsSection.collapsed = not results
        self._results = results
        if not segmentation:
            self._painted = False
        if results:
            qt.QSettings().setValue(_KNOWN, True)
        if str(qt.QSettings().value(_KNOWN, False)).lower() == "true" or running:
            text = ""
        elif not usable_model:
            text = _("First add a model.")
        elif not segmentation:
            text = _("Step 1 of 3: start from a template, or choose a segmentation.")
        elif not self._painted:
            text = _("Step 2 of 3: paint in a slice view, or generate the mask as it is.")
        else:
            text = _("Step 3 of 3: click Generate.")
        ui.hintLabel.text = text
        ui.hintLabel.visible = bool(text)

    def painted(self) -> None:
        """Something has been painted."""
        self._painted = True
