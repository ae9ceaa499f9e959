"""What do the weights of a network not say? Asked for in one dialog, beside what was read in the file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.diffusion.names import MAX_TIMESTEPS, PREDICTIONS, SCHEDULES
from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.scheme_files import find_scheme
from MedDPMLib.masks.schemes import LabelScheme, scheme_names
from MedDPMLib.models.card import AXES

_ORIENTATIONS = ("LPS", "RAS", "LAS", "RPS", "LPI", "RAI", "LAI", "RPI")

#: Pairs of values that are in use, for mask channels and for intensities.
_ENCODINGS = ((0, 1), (-1, 1))

#: Nobody's grid is larger.
_LONGEST_SIDE = 1024


class DescriptionDialog:
    """Asks for the card of a checkpoint. ``facts`` is what was read: ``network``, ``schedule`` (None: it is asked
    for), ``described`` (a text) and ``name``."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._scheme: LabelScheme | None = None
        self._path = ""
        self.dialog = qt.QDialog(slicer.util.mainWindow())
        self.dialog.setWindowTitle(_("Describe the model"))
        layout = qt.QVBoxLayout(self.dialog)
        text = _("This network is none of the published ones. Read in the file: {facts}.")
        self.read = _wrapped(text.format(facts=facts["described"]))
        layout.addWidget(self.read)
        form = qt.QFormLayout()
        layout.addLayout(form)
        network = facts["network"]
        self.name = qt.QLineEdit(facts["name"])
        self.modalities, self.channels = qt.QLineEdit(), qt.QLineEdit()
        self.modalities.placeholderText = _("{count} names, such as t1, ct").format(count=network["image_channels"])
        self.channels.placeholderText = _("label or number of each of {count} channels, in order").format(
            count=network["condition_channels"]
        )
        self.scheme = _choice([*scheme_names(), _("File...")])
        self.size = [qt.QSpinBox() for _axis in range(3)]
        self.spacing = [qt.QDoubleSpinBox() for _axis in range(3)]
        for box in self.size:
            box.setRange(0, _LONGEST_SIDE)
            box.singleStep = 2 ** (len(network["multipliers"]) - 1)
        for box in self.spacing:
            box.setRange(0, 100)
            box.decimals = 4
            box.suffix = " mm"
        self.orientation, self.axes = _choice(_ORIENTATIONS), _choice([", ".join(axes) for axes in AXES])
        self.encoding = _choice([_("{low} and {high}").format(low=low, high=high) for low, high in _ENCODINGS])
        self.image_range = _choice([_("{low} to {high}").format(low=low, high=high) for low, high in _ENCODINGS])
        self.prediction, self.schedule = _choice(PREDICTIONS), _choice(SCHEDULES)
        self.timesteps = qt.QSpinBox()
        self.timesteps.setRange(0, MAX_TIMESTEPS)
        rows = [
            (_("Name:"), self.name, _("Small letters, digits and hyphens")),
            (_("Modalities:"), self.modalities, _("What each image channel shows, in order")),
            (_("Labels:"), self.scheme, _("The labels of the masks: a label scheme, or a file with one of your own")),
            (_("Mask channels:"), self.channels, _("A number is for a channel that has the same value everywhere")),
            (_("Voxels (x, y, z):"), self.size, _("Size of the volumes that it was trained on")),
            (_("Voxel size:"), self.spacing, ""),
            (_("Orientation:"), self.orientation, _("Where x, y and z run to")),
            (_("Axes of its arrays:"), self.axes, _("z, y, x as in Med-DDPM's own networks")),
            (_("Mask values:"), self.encoding, _("Outside and inside a label")),
            (_("Intensities:"), self.image_range, _("Of the images that it was trained on")),
            (_("It predicts:"), self.prediction, _("Networks of Med-DDPM predict the noise")),
        ]
        if facts["schedule"] is None:
            rows += [(_("Noise schedule:"), self.schedule, ""), (_("Timesteps:"), self.timesteps, "")]
        for title, field, tip in rows:
            parts = field if isinstance(field, list) else [field]
            row = qt.QHBoxLayout()
            for part in parts:
                part.toolTip = tip
                row.addWidget(part)
            form.addRow(title, row)
        self.prediction.currentIndex = self.prediction.findText("noise")
        self.message = _wrapped("")
        layout.addWidget(self.message)
        self.buttons = qt.QDialogButtonBox()
        self.buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
        self.buttons.accepted.connect(self.dialog.accept)
        self.buttons.rejected.connect(self.dialog.reject)
        layout.addWidget(self.buttons)
        self.scheme.currentIndexChanged.connect(self._on_scheme)
        for line in (self.name, self.modalities, self.channels):
            line.textChanged.connect(self._check)
        for box in (*self.size, *self.spacing, self.timesteps):
            box.valueChanged.connect(self._check)
        for choice in (self.orientation, self.axes, self.encoding, self.image_range, self.prediction, self.schedule):
            choice.currentIndexChanged.connect(self._check)
        self._check()

    def ask(self, problem: str = "") -> dict[str, Any] | None:
        """The fields of the card, None if the user cancels; ``problem`` says what was wrong with the last answer."""
        if problem:
            self.message.text = problem
        accepted = self.dialog.exec_() == qt.QDialog.Accepted
        return self.answers() if accepted else None

    def close(self) -> None:
        self.dialog.deleteLater()

    def answers(self) -> dict[str, Any]:
        schedule = self._facts["schedule"] or {
            "name": self.schedule.currentText,
            "timesteps": self.timesteps.value,
        }
        return {
            "name": self.name.text.strip(),
            "title": self.name.text.strip(),
            "modalities": _listed(self.modalities.text),
            "scheme": self._path or self.scheme.currentText,
            "channels": [self._channel(part) for part in _listed(self.channels.text)],
            "axes": AXES[self.axes.currentIndex],
            "mask_encoding": list(_ENCODINGS[self.encoding.currentIndex]),
            "image_range": list(_ENCODINGS[self.image_range.currentIndex]),
            "prediction": self.prediction.currentText,
            "grid": {
                "size": [box.value for box in self.size],
                "spacing": [box.value for box in self.spacing],
                "orientation": self.orientation.currentText,
            },
            "schedule": dict(schedule),
        }

    def _on_scheme(self, index: int) -> None:
        """Fills in the labels of the chosen scheme, in its own order, and 0 for channels that are left over."""
        self._path, self._scheme = "", None
        if index < 0:
            return
        name = self.scheme.currentText
        if index == len(scheme_names()):
            self._path = name = qt.QFileDialog.getOpenFileName(
                self.dialog, _("Label scheme"), "", _("Label schemes (*.toml *.json)")
            )
        try:
            if not name:
                raise MedDPMError(_("choose the file of a label scheme"))
            self._scheme = find_scheme(Path(name) if self._path else name)
        except MedDPMError as error:
            self.scheme.currentIndex = -1
            self.message.text = str(error)
            return
        names = [label.name for label in self._scheme.labels]
        over = max(0, self._facts["network"]["condition_channels"] - len(names))
        self.channels.text = _line([*names, *["0"] * over])
        self._check()

    def _channel(self, text: str) -> str | float:
        """A label of the scheme, or else a number."""
        try:
            return text if self._scheme and self._scheme.label_by_name(text) else float(text)
        except ValueError:
            return text

    def _check(self, _changed: object = None) -> None:
        """Says what is still missing; only a description that is complete can be accepted."""
        missing = self._missing()
        self.message.text = _("Still missing: {what}").format(what=missing) if missing else ""
        self.buttons.button(qt.QDialogButtonBox.Ok).enabled = not missing

    def _missing(self) -> str:
        network = self._facts["network"]
        counted = (
            (self.modalities, network["image_channels"], _("modalities ({there} of {count})")),
            (self.channels, network["condition_channels"], _("mask channels ({there} of {count})")),
        )
        found = [] if self.name.text.strip() else [_("name")]
        for line, count, text in counted:
            if (there := len(_listed(line.text))) != count:
                found.append(text.format(there=there, count=count))
        found += [] if self._scheme else [_("labels")]
        found += [] if all(box.value for box in (*self.size, *self.spacing)) else [_("voxels")]
        choices = {_("orientation"): self.orientation, _("axes"): self.axes, _("mask values"): self.encoding}
        choices |= {_("intensities"): self.image_range, _("what it predicts"): self.prediction}
        if self._facts["schedule"] is None:
            choices[_("noise schedule")] = self.schedule
            found += [] if self.timesteps.value else [_("timesteps")]
        return ", ".join([*found, *(what for what, choice in choices.items() if choice.currentIndex < 0)])


def _choice(texts) -> qt.QComboBox:
    """A list in which nothing is chosen yet: what is not known is not guessed."""
    box = qt.QComboBox()
    for text in texts:
        box.addItem(text)
    box.currentIndex = -1
    return box


def _wrapped(text: str) -> qt.QLabel:
    label = qt.QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
    return label


def _listed(text: str) -> list[str]:
    """What is between commas; a name that has one stands in quotation marks."""
    parts = next(csv.reader([text], skipinitialspace=True), [])
    return [part.strip() for part in parts if part.strip()]


def _line(parts: Sequence[str]) -> str:
    """The text that :func:`_listed` reads."""
    return ", ".join('"' + part.replace('"', '""') + '"' if {",", '"'} & {*part} else part for part in parts)
