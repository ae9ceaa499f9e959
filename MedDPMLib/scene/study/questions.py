"""What is asked of a case, and what has been answered so far? Buttons in place of keys, keys in place of buttons."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from MedDPMLib.study.definition import RATINGS, SCORES, Tasks
from MedDPMLib.study.order import PAIR, Presentation

_BUTTON = "QPushButton { min-height: 30px; text-align: left; padding: 2px 8px; font-size: 13px; }" \
          "QPushButton:checked { background: #0072B2; color: white; font-weight: bold; }"  # fmt: skip
_SCORE = "QPushButton { min-height: 24px; min-width: 26px; padding: 0; }" \
         "QPushButton:checked { background: #0072B2; color: white; font-weight: bold; }"  # fmt: skip

#: Stands for the main question, next to the domains.
_MAIN = ""


class Questions:
    """Builds the buttons for each presentation into ``place`` (a widget with a layout); ``changed()`` is called when an
    answer changes. Nothing is locked here."""

    def __init__(self, place, changed) -> None:
        self._layout = place.layout()
        self._changed = changed
        self._rows: dict[str, list] = {}
        self._titles: dict[str, Any] = {}
        self._given: dict[str, int] = {}
        self._names: list[str] = []
        self._kind = ""
        self._cursor = 0

    def ask(self, tasks: Tasks, presentation: Presentation) -> None:
        self.clear()
        self._kind = presentation.kind
        if presentation.kind == PAIR:
            self._add_main(_("Which one is synthetic?"), [(0, _("Left")), (1, _("Right"))], ("\u2190", "\u2192"), 2)
        else:
            if tasks.real_or_synthetic:
                keys = [str(rating) for rating, _words in RATINGS]
                # The column on the left is real, the one on the right synthetic.
                self._add_main(_("Real or synthetic?"), [(rating, _(words)) for rating, words in RATINGS], keys, 2)
            for domain in tasks.likert:
                self._add_domain(domain)
            if tasks.likert:
                legend = qt.QLabel(", ".join(f"{score} {_(words)}" for score, words in SCORES))
                legend.wordWrap = True
                self._layout.addWidget(legend)
        self._show_cursor()

    def clear(self) -> None:
        while self._layout.count():
            widget = self._layout.takeAt(0).widget()
            widget.hide()
            widget.deleteLater()
        self._rows, self._titles, self._given, self._names, self._cursor = {}, {}, {}, [], 0

    def lock(self) -> None:
        """The answers stay visible and cannot be changed."""
        self._names = []
        for row in self._rows.values():
            for _value, button in row:
                button.enabled = False

    @property
    def given(self) -> dict[str, Any]:
        """As :meth:`Reading.answer` takes it."""
        found: dict[str, Any] = {}
        if _MAIN in self._given:
            found["side" if self._kind == PAIR else "rating"] = self._given[_MAIN]
        scores = {name: value for name, value in self._given.items() if name != _MAIN}
        return found | ({"scores": scores} if scores else {})

    def press(self, number: int) -> None:
        """A number key: answers the current question and moves to the next."""
        if self._kind == PAIR or not self._names:
            return
        name = self._names[self._cursor]
        values = [value for value, _button in self._rows[name]]
        if number in values:
            self._choose(name, number)
            self.move(1)

    def choose_side(self, side: int) -> None:
        """An arrow key: the left or the right one of a pair."""
        if self._kind == PAIR and self._names:
            self._choose(_MAIN, side)

    def move(self, questions: int) -> None:
        """Moves to another question."""
        if self._names:
            self._cursor = min(max(self._cursor + questions, 0), len(self._names) - 1)
            self._show_cursor()

    def _add_main(self, title: str, values: list, keys, columns: int) -> None:
        self._add_title(_MAIN, title, 15)
        box = qt.QWidget()
        grid = qt.QGridLayout(box)
        grid.setContentsMargins(0, 0, 0, 0)
        rows = -(-len(values) // columns)
        self._rows[_MAIN] = []
        for index, ((value, words), key) in enumerate(zip(values, keys, strict=True)):
            button = self._button(f"{key}   {words}", _BUTTON, _MAIN, value)
            grid.addWidget(button, index % rows, index // rows)
        self._layout.addWidget(box)

    def _add_domain(self, domain: str) -> None:
        row = qt.QWidget()
        line = qt.QHBoxLayout(row)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(3)
        self._rows[domain] = []
        self._names.append(domain)
        title = qt.QLabel(domain)
        title.wordWrap = True
        self._titles[domain] = title
        line.addWidget(title, 1)
        for score, words in SCORES:
            button = self._button(str(score), _SCORE, domain, score)
            button.toolTip = _(words)
            line.addWidget(button)
        self._layout.addWidget(row)

    def _add_title(self, name: str, text: str, size: int) -> None:
        title = qt.QLabel(text)
        title.wordWrap = True
        title.setStyleSheet(f"font-size: {size}px")
        self._titles[name] = title
        self._names.append(name)
        self._layout.addWidget(title)

    def _button(self, text: str, style: str, name: str, value: int):
        button = qt.QPushButton(text)
        button.checkable = True
        button.setStyleSheet(style)
        button.setFocusPolicy(qt.Qt.NoFocus)  # space locks the answer, it does not press a button
        button.clicked.connect(lambda checked=None: self._choose(name, value))
        self._rows[name].append((value, button))
        return button

    def _choose(self, name: str, value: int) -> None:
        self._given[name] = value
        for other, button in self._rows[name]:
            button.checked = other == value
        if name in self._names:
            self._cursor = self._names.index(name)
            self._show_cursor()
        self._changed()

    def _show_cursor(self) -> None:
        """The question that the number keys answer is bold."""
        for name, title in self._titles.items():
            font = title.font
            font.setBold(bool(self._names) and name == self._names[self._cursor])
            title.setFont(font)
