"""The widgets of CTK that forms of Slicer use: the module ``ctk``."""

from __future__ import annotations

import types

from PySide6.QtCore import Property, Signal

from bench.pythonqt import qt_module, standin

qt = qt_module()


def ctk_module() -> types.ModuleType:
    module = types.ModuleType("ctk", "stand-ins for the Common Toolkit's widgets")
    for cls in (ctkCollapsibleButton, ctkSliderWidget, ctkMessageBox):
        setattr(module, cls.__name__, cls)
    return module


@standin
class ctkMessageBox(qt.QMessageBox):
    """A message box; that it can offer not to be shown again is nothing that a test needs."""


@standin
class ctkCollapsibleButton(qt.QAbstractButton):
    """A titled section that a click folds away. What is hidden while it is folded stays so when it unfolds."""

    contentsCollapsed = Signal(bool)
    _TITLE = 22

    def __init__(self, text="", parent=None):
        if isinstance(text, qt.QWidget):
            text, parent = "", text
        super().__init__(parent)
        self.text = text
        self.checkable = True
        self.checked = True
        self._folded = []  # the children that folding has hidden, and unfolding shows again
        self.toggled.connect(self._on_toggled)
        self.setContentsMargins(0, self._TITLE, 0, 0)
        self.setSizePolicy(qt.QSizePolicy.Preferred, qt.QSizePolicy.Minimum)

    def _collapsed(self):
        return not self.checked

    def _set_collapsed(self, collapsed):
        self.checked = not collapsed

    collapsed = Property(bool, _collapsed, _set_collapsed)

    def _on_toggled(self, checked):
        if checked:
            for child in self._folded:
                if not child.testAttribute(qt.Qt.WA_WState_ExplicitShowHide):  # hidden by folding alone
                    child.show()
            self._folded = []
        else:
            for child in self.children():
                if isinstance(child, qt.QWidget) and not child.isHidden():
                    self._fold(child)
        self.updateGeometry()
        self.contentsCollapsed.emit(not checked)

    def childEvent(self, event):
        if event.added() and self.collapsed and isinstance(event.child(), qt.QWidget):
            self._fold(event.child())

    def _fold(self, child):
        child.hide()
        child.setAttribute(qt.Qt.WA_WState_ExplicitShowHide, False)
        self._folded.append(child)

    def sizeHint(self):
        if self.collapsed or self.layout() is None:
            return qt.QSize(150, self._TITLE)
        return self.layout().totalSizeHint()

    def minimumSizeHint(self):
        if self.collapsed or self.layout() is None:
            return qt.QSize(0, self._TITLE)
        return self.layout().totalMinimumSize()

    def hitButton(self, position):
        return position.y() < self._TITLE

    def paintEvent(self, event):
        painter = qt.QPainter(self)
        bar = qt.QRect(0, 0, self.width, self._TITLE - 2)
        painter.fillRect(bar, self.palette.button())
        painter.drawText(bar.adjusted(20, 0, 0, 0), qt.Qt.AlignVCenter | qt.Qt.AlignLeft, self.text.replace("&&", "&"))
        arrow = qt.QStyleOption()
        arrow.rect = qt.QRect(4, 5, 10, 10)
        arrow.palette = self.palette
        element = qt.QStyle.PE_IndicatorArrowRight if self.collapsed else qt.QStyle.PE_IndicatorArrowDown
        self.style().drawPrimitive(element, arrow, painter, self)
        painter.end()


@standin
class ctkSliderWidget(qt.QWidget):
    """A slider and a spin box that show one number."""

    valueChanged = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = qt.QSlider(qt.Qt.Horizontal, self)
        self._box = qt.QDoubleSpinBox(self)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._on_value)
        self._slider.valueChanged.connect(
            lambda step: self._box.setValue(self._box.minimum + step * self._box.singleStep)
        )
        self._on_range()

    def _of_box(name, kind):
        def set_(self, value):
            setattr(self._box, name, value)
            self._on_range()

        return Property(kind, lambda self: getattr(self._box, name), set_)

    value = _of_box("value", float)
    minimum = _of_box("minimum", float)
    maximum = _of_box("maximum", float)
    singleStep = _of_box("singleStep", float)
    decimals = _of_box("decimals", int)
    suffix = _of_box("suffix", str)
    prefix = _of_box("prefix", str)
    del _of_box

    def setValue(self, value):
        self.value = value

    def _on_range(self):
        blocked = self._slider.blockSignals(True)
        self._slider.maximum = round((self._box.maximum - self._box.minimum) / (self._box.singleStep or 1))
        self._slider.blockSignals(blocked)
        self._show_value()

    def _on_value(self, value):
        self._show_value()
        self.valueChanged.emit(value)

    def _show_value(self):
        blocked = self._slider.blockSignals(True)
        self._slider.value = round((self._box.value - self._box.minimum) / (self._box.singleStep or 1))
        self._slider.blockSignals(blocked)
