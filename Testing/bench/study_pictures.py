"""Reads a study by simulated clicks and draws its screens: ``python -m bench.study_pictures ARCHIVE FOLDER``.

ARCHIVE is what ``meddpm study pack`` made for a reader; the answers are the same for every case.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench import dialogs, start_application

MODULE = Path(__file__).parents[2] / "MedDPMStudy" / "MedDPMStudy.py"

#: Pixels of the window: the smallest screen that a study has to fit.
WINDOW = 1280, 800
#: Pixels of the module's panel, as wide as Slicer's.
PANEL = 400


def main(archive: Path, folder: Path) -> None:
    sys.path.insert(0, str(MODULE.parents[1]))
    app = start_application()
    import slicer

    from MedDPMLib.study.order import PAIR

    def draw(name: str) -> None:
        for _ in range(30):
            app.processEvents()
            time.sleep(0.01)
        app.mainWindow().grab().save(str(folder / f"study-{name}.png"))

    def answer() -> None:
        questions = panel.questions
        if panel.reading.current.kind == PAIR:
            questions.choose_side(1)
        else:
            for _ in range(1 + len(panel.task.definition.tasks.likert)):
                questions.press(4)

    folder.mkdir(parents=True, exist_ok=True)
    slicer.mrmlScene.AddNode(slicer.vtkMRMLCrosshairNode())  # the application's own
    app.moduleManager().load(MODULE)
    app.mainWindow().resize(*WINDOW)
    app.mainWindow().centralWidget().setSizes([PANEL, WINDOW[0] - PANEL])
    app.mainWindow().show()
    slicer.util.selectModule("MedDPMStudy")
    module = slicer.util.getModuleWidget("MedDPMStudy")
    panel, ui = module.panel, module.ui
    dialogs.reply_with(str(archive))
    ui.openButton.click()
    draw("start")
    ui.beginButton.click()
    drawn = set()
    while not panel.reading.finished:
        presentation = panel.reading.current
        if not drawn:
            draw("case")
            drawn.add("case")
        if presentation.kind == PAIR and PAIR not in drawn:
            draw("pair")
            drawn.add(PAIR)
        answer()
        if "why" not in drawn:
            ui.whyButton.click()
            ui.reasonText.setPlainText("The vessel ends without a reason.")
            ui.markButton.click()
            draw("why")
            drawn.add("why")
            ui.doneButton.click()
        ui.nextButton.click()
        if presentation.training:
            if "training" not in drawn:
                draw("training")
                drawn.add("training")
                ui.pauseButton.click()
                draw("pause")
                ui.resumeButton.click()
            ui.nextButton.click()
    draw("end")
    ui.closeButton.click()
    app.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
