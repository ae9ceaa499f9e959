"""Do the views say which volumes are synthetic, whoever has loaded them? From the start of the application on."""

from __future__ import annotations

import qt
import slicer

from MedDPMLib.scene.comparison import register_layouts
from MedDPMLib.scene.recognition import Recognition
from MedDPMLib.scene.views import SyntheticMarks


class Watch:
    """Recognizes exported volumes that are loaded again, and keeps the marks in the views; the panel need not be open.

    Nothing is looked at before a volume comes into the scene.
    """

    def __init__(self) -> None:
        self.recognition, self.marks = Recognition(), SyntheticMarks()
        self.recognition.recognized.connect(self.marks.update)
        self._tags: list[int] = []
        self._soon: qt.QTimer | None = None

    @property
    def started(self) -> bool:
        return bool(self._tags)

    def start(self) -> None:
        if self.started:
            return
        register_layouts()
        self._soon = qt.QTimer()  # a scene is not settled at its last event
        self._soon.setSingleShot(True)
        self._soon.interval = 0
        self._soon.timeout.connect(self.marks.update)
        scene = slicer.mrmlScene
        for event in (scene.EndImportEvent, scene.EndBatchProcessEvent, scene.EndCloseEvent):
            self._tags.append(scene.AddObserver(event, self._on_scene))
        self.recognition.start()
        self.marks.start()

    def stop(self) -> None:
        """Takes the marks away and looks at nothing more."""
        if not self.started:
            return
        for tag in self._tags:
            slicer.mrmlScene.RemoveObserver(tag)
        self._tags = []
        self._soon.stop()
        self.recognition.stop()
        self.marks.stop()

    def _on_scene(self, scene, event) -> None:
        self._soon.start()


#: That of the application.
watch = Watch()
