"""Which model? The first section: what is installed, add, remove, about."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.models.card import Card
from MedDPMLib.models.store import BUNDLED_MODELS, SEGMENTER, ModelEntry, ModelStore
from MedDPMLib.scene import dependencies
from MedDPMLib.scene.panel.describe import DescriptionDialog
from MedDPMLib.scene.panel.messages import show_text
from MedDPMLib.scene.processes import python_process, python_program
from MedDPMLib.scene.worker_client import Signal

#: Installs a model in a process of its own: checking a checkpoint takes PyTorch and time. A bundle is copied as it is.
#: The second argument is a file of answers to what a network's weights do not say; what they say is the output if such
#: answers are needed.
_ADD = """
import json, sys
from pathlib import Path
from MedDPMLib.models.bundle import bundle_hash
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.store import SEGMENTER, ModelStore
path, card = sys.argv[1], None
try:
    if len(sys.argv) > 2:
        from MedDPMLib.models.card_file import card_template
        from MedDPMLib.models.official_checkpoint import open_checkpoint
        answers = Path(sys.argv[2])
        card = answers.with_suffix(".toml")
        values = json.loads(answers.read_text(encoding="utf-8"))
        card.write_text(card_template(open_checkpoint(path), values), encoding="utf-8")
    entry = ModelStore().add(path, None, card)
    kind = "described" if card else "bundle" if bundle_hash(path) == entry.hash else "checkpoint"
    print(SEGMENTER if entry.kind == SEGMENTER else kind)
    print(entry.name)
except MedDPMError as error:
    if error.code != "card-needed":
        sys.exit(str(error))
    from MedDPMLib.models.official_checkpoint import open_checkpoint
    print(json.dumps(open_checkpoint(path).facts()))
    sys.exit(3)
"""

#: What :data:`_ADD` exits with if the model has to be described.
_UNDESCRIBED = 3


class ModelSection:
    """Signals: ``changed`` when another model is chosen, by its name; ``removing`` before a model's file is deleted;
    ``added`` when a segmenter was installed, which is not among the models to choose from."""

    def __init__(self, ui) -> None:
        self._ui = ui
        self.changed, self.removing, self.added = Signal(), Signal(), Signal()
        self._entries: list[ModelEntry] = []
        self._owner = qt.QObject()
        self._adding: qt.QProcess | None = None
        self._path = ""
        self._description: DescriptionDialog | None = None
        self._answers: tempfile.TemporaryDirectory | None = None
        ui.modelBox.currentIndexChanged.connect(self._on_index)
        ui.addModelButton.clicked.connect(self._on_add)
        ui.removeModelButton.clicked.connect(self._on_remove)
        ui.aboutModelButton.clicked.connect(self._on_about)
        ui.modelProgress.visible = False
        self.fill()

    @property
    def entry(self) -> ModelEntry | None:
        """The chosen model."""
        index = self._ui.modelBox.currentIndex
        return self._entries[index] if 0 <= index < len(self._entries) else None

    @property
    def card(self) -> Card | None:
        """The chosen model's card; None if there is no model, or if its file is broken."""
        entry = self.entry
        return entry.generator_card if entry is not None and entry.problem is None else None

    def fill(self, chosen: str | None = None) -> None:
        """Looks for what is installed, and chooses the model called ``chosen`` (None: the one before)."""
        before = self.entry
        chosen = before.name if chosen is None and before is not None else chosen
        box = self._ui.modelBox
        blocked = box.blockSignals(True)
        box.clear()
        # Of two models with one name the user's own is meant, which comes last.
        self._entries = list({entry.name: entry for entry in _installed()}.values())
        for index, entry in enumerate(self._entries):
            box.addItem(entry.card.title if entry.problem is None else _("{name} (broken)").format(name=entry.name))
            box.setItemData(index, entry.problem or summary(entry.generator_card), qt.Qt.ToolTipRole)
        names = [entry.name for entry in self._entries]
        box.currentIndex = names.index(chosen) if chosen in names else 0 if names else -1
        box.blockSignals(blocked)
        self._show()
        if self.entry is not None and (before is None or before.name != self.entry.name):
            self.changed.emit(self.entry.name)

    def choose(self, name: str) -> None:
        """Chooses the model called ``name``; reports it if it is no longer installed."""
        if self.entry is not None and self.entry.name == name:
            return
        names = [entry.name for entry in self._entries]
        if name in names:
            self._ui.modelBox.currentIndex = names.index(name)
        elif name:
            text = _('The model "{name}" is not installed: add it, or use this one.')
            self._ui.modelSummary.text = text.format(name=name)
            self._ui.modelSection.collapsed = False

    def choose_for(self, scheme: LabelScheme) -> None:
        """Chooses a model whose masks have the labels of ``scheme``, if there is one."""
        for entry in self._entries:
            if entry.problem is not None:
                continue
            card = entry.generator_card
            if card.scheme == scheme and card.completion is None:
                self.choose(entry.name)
                return

    def stop(self) -> None:
        """Ends what is still running."""
        if self._adding is not None:
            self._adding.kill()
            self._adding.waitForFinished(500)
            self._adding = None
        self._forget_answers()

    def _on_index(self, index: int) -> None:
        self._show()
        if self.entry is not None:
            self.changed.emit(self.entry.name)

    def _show(self, before: str = "") -> None:
        """The chosen model in a line; ``before`` is the text before it."""
        ui, entry = self._ui, self.entry
        ui.removeModelButton.enabled = entry is not None and not entry.bundled
        ui.aboutModelButton.enabled = self.card is not None
        if entry is None:
            ui.modelSummary.text = _("No model is installed yet: add one.")
        else:
            ui.modelSummary.text = before + (entry.problem or summary(entry.generator_card))
        usable = self.card is not None
        ui.modelSection.text = _("Model: {title}").format(title=self.card.title) if usable else _("Model")

    def _on_add(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Add a model"), "",
            _("Models (*.safetensors *.pt *.pth *.ckpt);;All files (*)"),
        )  # fmt: skip
        if not path:
            return
        try:
            dependencies.ensure()
        except MedDPMError as error:
            self._ui.modelSummary.text = str(error)
            return
        self._end_description()
        self._begin(path)

    def _begin(self, path: str, answers: dict[str, Any] | None = None) -> None:
        """Installs the model in ``path``, with ``answers`` to what its weights do not say."""
        self.stop()
        self._path, arguments = path, [path]
        if answers is not None:
            self._answers = tempfile.TemporaryDirectory(prefix="MedDPM-", dir=slicer.app.temporaryPath)
            file = Path(self._answers.name) / "card.json"
            file.write_text(json.dumps(answers), encoding="utf-8")
            arguments.append(str(file))
        self._adding = python_process(self._owner)
        self._adding.finished.connect(self._on_added)
        self._adding.start(python_program(), ["-c", _ADD, *arguments])
        self._show_adding(True)
        self._ui.modelSummary.text = _("Checking {path} ...").format(path=path)

    def _describe(self, problem: str = "") -> None:
        """Asks for what the weights do not say, again with the ``problem`` of the last answers."""
        answers = self._description.ask(problem)
        if answers is None:
            self._end_description()
            self._show(_("Nothing was added.") + "\n")
        else:
            self._begin(self._path, answers)

    def _on_added(self, code: int) -> None:
        process, self._adding = self._adding, None
        self._show_adding(False)
        if process is None:
            return
        self._forget_answers()
        lines = process.readAllStandardOutput().data().decode("utf-8", "replace").splitlines()
        fault = process.readAllStandardError().data().decode("utf-8", "replace").strip().splitlines()
        process.deleteLater()
        if code == 0 and len(lines) >= 2:
            self._end_description()
            kind, name = lines[-2:]
            if kind == SEGMENTER:
                self._ui.modelSummary.text = _('Added; it is a segmenter, which "Start from scan" uses.')
                self.added.emit()
                return
            self.fill(name)
            kinds = {
                "bundle": _("a MedDPM bundle"),
                "checkpoint": _("a published checkpoint"),
                "described": _("a network of Med-DDPM's family, as you described it"),
            }
            self._show(_("Added; it was recognized as {kind}.").format(kind=kinds[kind]) + "\n")
        elif code == _UNDESCRIBED and lines:
            self._description = DescriptionDialog(json.loads(lines[-1]))
            self._describe()
        elif self._description is not None and fault:
            # The card is a file that only this panel has seen.
            self._describe(re.sub(r"^.*card\.toml(, line \d+)?: ", "", fault[-1]))
        else:
            self._ui.modelSummary.text = fault[-1] if fault else _("The model could not be added: try again.")

    def _end_description(self) -> None:
        if self._description is not None:
            self._description.close()
            self._description = None

    def _forget_answers(self) -> None:
        if self._answers is not None:
            self._answers.cleanup()
            self._answers = None

    def _show_adding(self, adding: bool) -> None:
        ui = self._ui
        ui.modelProgress.visible = adding
        ui.addModelButton.enabled = ui.modelBox.enabled = not adding

    def _on_remove(self) -> None:
        entry = self.entry
        question = _('Delete the model "{name}" ({path}) from this computer?').format(name=entry.name, path=entry.path)
        if not slicer.util.confirmOkCancelDisplay(question, _("Remove model")):
            return
        self.removing.emit()
        try:
            ModelStore().remove(entry.name)
        except MedDPMError as error:
            self._ui.modelSummary.text = str(error)
            return
        self.fill()

    def _on_about(self) -> None:
        show_text(self.card.title, self.card.describe())


def summary(card: Card) -> str:
    """One line on a model: modalities, grid, spacing, labels, and whether it invents structures."""
    spacing = " x ".join(f"{mm:g}" for mm in card.grid.spacing)
    line = _("{modalities}; {size} voxels of {spacing} mm; {count} labels ({scheme})").format(
        modalities=", ".join(name.upper() for name in card.modalities),
        size=" x ".join(map(str, card.grid.size)), spacing=spacing, count=len(card.scheme.labels),
        scheme=card.scheme.title,
    )  # fmt: skip
    if card.completion is None:
        return line
    return line + _("; invents the structures of the brain, from a template that the seed selects")


def _installed() -> list[ModelEntry]:
    try:
        return ModelStore().list()
    except ModuleNotFoundError:  # the package that locates a user's data is not installed yet
        return ModelStore(BUNDLED_MODELS).list()
