"""How are settings shown? A row for each, made from the table of settings."""

from __future__ import annotations

from collections.abc import Sequence

import qt
from slicer.i18n import tr as _

from MedDPMLib.inference.settings import SETTINGS, Setting


def add_rows(form: qt.QFormLayout, names: Sequence[str]) -> None:
    """Rows for the settings called ``names`` at the top of ``form``; each box is called after its setting.

    The property SlicerParameterName ties a box to the parameter of its setting's name.
    """
    for row, name in enumerate(names):
        setting = SETTINGS[name]
        box = _box(setting)
        box.setObjectName(f"{name}Box")
        box.setProperty("SlicerParameterName", name)
        box.setToolTip(_(setting.help))
        form.insertRow(row, qt.QLabel(f"{_(setting.title)}:"), box)


def _box(setting: Setting) -> qt.QWidget:
    if setting.choices:
        return qt.QComboBox()  # filled with the parameter's choices when it is tied to it
    if isinstance(setting.default, float):
        box = qt.QDoubleSpinBox()
        box.setDecimals(1)
        box.setSingleStep(0.5)
        return box
    box = qt.QSpinBox()
    box.setSpecialValueText(_("Same as quality"))  # of 0, which stands for None
    return box
