"""What do the views show? The rows above the button: mask, image or scan, the window, the outlines; and their keys."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from MedDPMLib.scene import look, volumes
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.views import OUTLINES, outlines_of, set_outlines, shown_background

_NO_SCAN = _("no scan of your own is loaded, or several are: show the one that you mean in the views")


class DisplayRows:
    def __init__(self, ui) -> None:
        self._ui = ui
        #: By modality the window that was chosen for it, which its later images get, too.
        self._windows: dict[str, look.Preset] = {}
        self._outlines = dict(zip(OUTLINES, (ui.outlinesTumor, ui.outlinesAll, ui.outlinesNone), strict=True))
        for style, button in self._outlines.items():
            button.clicked.connect(self._chooser(style))
        ui.showMaskButton.clicked.connect(self._on_mask)
        ui.showImageButton.clicked.connect(self._on_image)
        ui.showScanButton.clicked.connect(self._on_scan)
        self._menu = qt.QMenu(ui.windowButton)
        self._menu.aboutToShow.connect(self._fill_menu)
        ui.windowButton.setMenu(self._menu)
        ui.windowButton.setPopupMode(qt.QToolButton.InstantPopup)

    def show_mask(self, segmentation) -> None:
        """Another mask has been chosen."""
        if segmentation is not None:
            self._outlines[outlines_of(segmentation)].checked = True

    def dress(self, nodes) -> None:
        """Gives new images the windows that were chosen for their modalities."""
        for node in nodes:
            preset = self._windows.get(volumes.modality_of(node))
            if preset is not None:
                look.apply_preset(node, preset)

    # Mask, image, scan -------------------------------------------------------------------------------

    @property
    def _segmentation(self):
        return self._ui.segmentationSelector.currentNode()

    def swap_mask(self) -> None:
        if self._segmentation is not None:
            look.swap_mask(self._segmentation)

    def swap_scan(self) -> None:
        if self._segmentation is not None and not look.swap_scan(self._segmentation):
            say(self._ui.messageLabel, _NO_SCAN)

    def _on_mask(self, _checked=None) -> None:
        if self._segmentation is not None:
            look.show_mask(self._segmentation)

    def _on_image(self, _checked=None) -> None:
        if self._segmentation is not None and not look.show_image(self._segmentation):
            say(self._ui.messageLabel, _("no image has been generated from this mask yet: click Generate"))

    def _on_scan(self, _checked=None) -> None:
        if self._segmentation is not None and not look.show_scan(self._segmentation):
            say(self._ui.messageLabel, _NO_SCAN)

    # Outlines ----------------------------------------------------------------------------------------

    def _chooser(self, style: str):
        def choose(_checked=None):
            self.set_outlines(style)

        return choose

    def set_outlines(self, style: str) -> None:
        if self._segmentation is not None:
            set_outlines(self._segmentation, style)
        self._outlines[style].checked = True

    def next_outlines(self) -> None:
        now = next((style for style, button in self._outlines.items() if button.checked), OUTLINES[0])
        self.set_outlines(OUTLINES[(OUTLINES.index(now) + 1) % len(OUTLINES)])

    # Windows -----------------------------------------------------------------------------------------

    def _fill_menu(self) -> None:
        """The windows for the modality that is looked at."""
        self._menu.clear()
        modality = volumes.modality_of(shown_background())
        if modality is None:
            self._menu.addAction(_("Show a generated image first")).setEnabled(False)
            return
        for preset in look.presets_of(modality):
            action = self._menu.addAction(f"{modality.upper()}: {preset.title}")
            action.triggered.connect(self._setter(modality, preset))

    def _setter(self, modality: str, preset: look.Preset):
        def choose(_checked=None):
            self._windows[modality] = preset
            self.dress(node for node in volumes.results() if volumes.modality_of(node) == modality)

        return choose
