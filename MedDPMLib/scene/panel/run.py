"""How is it generated? The settings, and the footer that is always in sight: one button, progress, messages."""

from __future__ import annotations

import secrets

import qt
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.settings import SETTINGS
from MedDPMLib.models.card import Card
from MedDPMLib.scene import dependencies
from MedDPMLib.scene.generator import Generator, Order
from MedDPMLib.scene.panel.messages import say, show_text
from MedDPMLib.scene.worker_client import WorkerClient

#: The largest seed that fits into the box; half of it, so that the seeds of further samples fit, too.
_SEEDS = 2**30


class RunSection:
    """``make_order(seeds)`` gives an order of the panel's current choices, ``None`` for their own seeds; ``ask()`` puts
    the questions that it leaves open, and returns whether to continue."""

    def __init__(self, ui, generator: Generator, client: WorkerClient, make_order, ask) -> None:
        self._ui, self._generator, self._client, self._make_order, self._ask = ui, generator, client, make_order, ask
        self._boxes: dict[str, qt.QCheckBox] = {}
        ui.generateButton.clicked.connect(self._on_button)
        ui.installButton.clicked.connect(self._on_install)
        ui.releaseButton.clicked.connect(self._on_release)
        ui.logButton.clicked.connect(self._on_log)
        client.state_changed.connect(self._show_worker)
        generator.progressed.connect(self._on_progress)
        generator.ended.connect(self._on_ended)
        self._show_running(False)
        self._show_worker()
        self.say("")

    def disconnect(self) -> None:
        """Disconnects from generator and client."""
        self._client.state_changed.disconnect(self._show_worker)
        self._generator.progressed.disconnect(self._on_progress)
        self._generator.ended.disconnect(self._on_ended)

    # Modalities --------------------------------------------------------------------------------------

    def show_modalities(self, card: Card | None, left_out, on_change) -> None:
        """A box for each of the model's modalities, ticked unless it is in ``left_out``; ``on_change(left_out)``."""
        layout = self._ui.modalitiesPlace.layout()
        while layout.count():
            box = layout.takeAt(0).widget()
            box.hide()
            box.deleteLater()
        self._boxes = {}

        def changed(checked=None):
            on_change([name for name, box in self._boxes.items() if not box.checked])

        for name in card.modalities if card is not None else ():
            box = qt.QCheckBox(name.upper())
            box.checked = name not in left_out
            box.toolTip = _("Keep this modality")
            box.toggled.connect(changed)
            layout.addWidget(box)
            self._boxes[name] = box
        self._ui.generateButton.enabled = card is not None

    def show_guidance(self, card: Card | None) -> None:
        """Enables guidance for a model that was trained for it."""
        box = self._ui.guidanceBox
        box.enabled = card is not None and card.label_dropout > 0
        box.toolTip = (
            _(SETTINGS["guidance"].help)
            if box.enabled
            else _("This model does not support guidance, because it was never trained without labels")
        )  # fmt: skip

    # Running -----------------------------------------------------------------------------------------

    def start(self, order: Order) -> None:
        """Starts, or reports why not."""
        self.say("")
        try:
            dependencies.ensure()
            self._generator.start(order)
        except MedDPMError as error:
            self.say(error)
            return
        self._show_running(True)

    def _on_button(self) -> None:
        if self._generator.order is not None:
            self._generator.cancel()
            return
        try:
            dependencies.ensure()  # before any question about the mask
            if not self._ask():
                return
            order = self._make_order(None)
        except MedDPMError as error:
            self.say(error)
            return
        self.start(order)

    def toggle(self) -> None:
        """The same as a click on the button."""
        if self._ui.generateButton.enabled:
            self._on_button()

    def clear(self) -> None:
        """Clears the message, which referred to another mask."""
        self.say("")

    def _on_progress(self, text: str, part: float) -> None:
        self._show_running(True)
        self._ui.progressBar.value = round(1000 * part)
        self._ui.statusLabel.text = text

    def _on_ended(self, message: str | MedDPMError | None) -> None:
        self._show_running(False)
        self.say(message or "\n".join(self._generator.notes))

    def say(self, message: str | MedDPMError) -> None:
        say(self._ui.messageLabel, message)

    def _show_running(self, running: bool) -> None:
        ui = self._ui
        ui.generateButton.text = _("Cancel") if running else _("Generate")
        stop, start = _("Stop; finished volumes are kept"), _("Generate images from the mask (Ctrl+Enter)")
        ui.generateButton.toolTip = stop if running else start
        ui.progressBar.visible = running
        ui.statusLabel.visible = running
        if not running:
            ui.progressBar.value = 0

    def _show_worker(self) -> None:
        self._ui.releaseButton.enabled = self._client.running

    # Tools -------------------------------------------------------------------------------------------

    def _on_install(self) -> None:
        try:
            dependencies.ensure(torch=False)
            dependencies.ensure()
        except MedDPMError as error:
            self.say(error)
        else:
            self.say(_("All packages are installed."))

    def _on_release(self) -> None:
        self._generator.cancel()
        self._client.stop()

    def _on_log(self) -> None:
        show_text(_("MedDPM log"), "\n".join([dependencies.describe(), "", *self._client.log]))


def new_seed() -> int:
    return secrets.randbelow(_SEEDS)
