"""Draws the pictures of the documentation with the bundled model: ``python -m bench.pictures FOLDER`` in Testing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image

from bench import start_application

MODULE = Path(__file__).parents[2] / "MedDPM" / "MedDPM.py"

#: Millimeters above the origin: through the tumor of the template.
HEIGHT = 25.0
#: Pixels along a side of a slice's picture.
SIDE = 440
#: Pixels of the whole window, with the panel beside the views.
WINDOW = 1366, 768
#: The step at which the forming image is shown.
STEP = 5


def main(folder: Path) -> None:
    sys.path.insert(0, str(MODULE.parents[1]))
    app = start_application()
    import slicer

    def wait_until(condition) -> None:
        end = time.monotonic() + 1200
        while not condition():
            app.processEvents()
            time.sleep(0.005)
            assert time.monotonic() < end

    def draw(name: str) -> None:
        widget.sliceLogic().SetSliceOffset(HEIGHT)
        app.processEvents()
        picture = Image.fromarray(widget.sliceView().picture())
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(folder / name, optimize=True)

    app.moduleManager().load(MODULE)
    app.mainWindow().show()
    slicer.util.selectModule("MedDPM")
    panel = slicer.util.getModuleWidget("MedDPM")
    panel.models.choose("brain-anatomy")
    panel.ui.templateBox.currentIndex = panel.ui.templateBox.findData("glioma")
    panel.ui.templateButton.click()
    wait_until(lambda: not panel.mask.busy)
    app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    widget = app.layoutManager().sliceWidget("Red")
    wait_until(lambda: widget.mrmlSliceCompositeNode().GetBackgroundVolumeID())
    widget.sliceLogic().FitSliceToBackground()
    draw("painted.png")
    panel.ui.generateButton.click()
    wait_until(lambda: panel.logic.generator.order is None)
    draw("generated.png")
    print(panel.ui.messageLabel.text or "drawn")

    app.mainWindow().resize(*WINDOW)
    app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    panel.ui.generateButton.click()
    wait_until(lambda: f"Step {STEP} " in panel.ui.statusLabel.text)
    app.processEvents()
    app.mainWindow().grab().save(str(folder / "panel.png"))
    app.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
