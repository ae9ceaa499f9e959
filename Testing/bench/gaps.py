"""How long does each action of the panel hold up the event loop, with the views shown?

``python -m bench.gaps`` in Testing prints for each action the longest gap between two rounds of the event loop, the
longest without drawing and without waiting for a processor (what the panel itself takes), and how long the action took.
Beside the bundled models it needs nothing.

Compare gaps within one run only: the views are drawn by Mesa, on the processors that compute the image.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

MODULE = Path(__file__).parents[2] / "MedDPM" / "MedDPM.py"

#: Milliseconds between two beats of the timer that is held up, and seconds between two looks at what runs.
_BEAT, _LOOK = 5, 0.01

#: Where strokes and stamps go (RAS, mm): in the white matter of the right frontal lobe.
_PLACE = (24.0, 30.0, 25.0)

#: Seconds after which an action has failed.
_LONGEST = 1200.0

#: So many calls are printed of each line of the code.
_DEPTH = 6


#: Seconds of drawing since the last beat, and of these the seconds of waiting for a processor.
_drawn = [0.0, 0.0]


def _now() -> tuple[float, float]:
    """Seconds, and seconds that this thread has waited for a processor."""
    return time.monotonic(), int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _timed(draw):
    """``draw``, a method of a view, whose time counts as drawing."""

    def drawing(view):
        before = _now()
        draw(view)
        for index, (start, end) in enumerate(zip(before, _now(), strict=True)):
            _drawn[index] += end - start

    return drawing


class Loop:
    """Runs the event loop and measures its gaps."""

    def __init__(self, qt, where: bool) -> None:
        self._qt, self._where = qt, where
        self._beat = qt.QTimer()
        self._beat.interval = _BEAT
        self._beat.timeout.connect(self._on_beat)
        self._loop = qt.QEventLoop()
        self._condition = None
        self._last = (0.0, 0.0)
        self.longest, self.own = 0.0, 0.0
        self._looks: Counter[str] = Counter()
        #: What ran during the longest gap: lines of the code by the milliseconds spent there.
        self.spent: Counter[str] = Counter()
        self._looked = 0.0
        if where:
            signal.signal(signal.SIGALRM, self._on_look)
            signal.setitimer(signal.ITIMER_REAL, _LOOK)

    def run(self, action, condition) -> float:
        """Does ``action`` in the event loop and lets it run until ``condition``; the seconds that it took."""
        self.longest, self.own, self.spent = 0.0, 0.0, Counter()
        self._condition, started = condition, time.monotonic()
        self._last = _now()
        _drawn[:] = 0.0, 0.0
        self._looks.clear()
        self._beat.start()
        self._qt.QTimer.singleShot(0, action)
        self._end = started + _LONGEST
        self._done = False
        self._loop.exec()
        self._beat.stop()
        if not self._done:
            raise SystemExit("nothing came in time")
        return time.monotonic() - started

    def _on_beat(self) -> None:
        now = _now()
        gap = 1000 * (now[0] - self._last[0]) - _BEAT
        if gap > self.longest:
            self.longest = gap
            self.spent = Counter(self._looks)
        waited = now[1] - self._last[1] - _drawn[1]
        self.own = max(self.own, gap - 1000 * (_drawn[0] + waited))
        _drawn[:] = 0.0, 0.0
        self._looks.clear()
        self._last = _now()
        self._done = bool(self._condition())
        if self._done or now[0] > self._end:
            self._loop.quit()

    def _on_look(self, _signal, frame) -> None:
        """Python sees the signal when a call into C++ has ended: all the time since the last look was spent there."""
        now, lines = time.monotonic(), []
        while frame is not None and len(lines) < _DEPTH:
            code = frame.f_code
            if code.co_filename != __file__:
                lines.append(f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}")
            frame = frame.f_back
        self._looks[" < ".join(lines)] += 1000 * (now - self._looked)
        self._looked = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, _LOOK)


class Actions:
    """What a user does, each with the condition that ends it; in the order in which they need each other."""

    def __init__(self, application, slicer, model: str, quality: str) -> None:
        self.app, self.slicer, self.model, self.quality = application, slicer, model, quality
        self.panel = None
        self.folder = tempfile.mkdtemp()
        self._moved = 0

    def names(self) -> list[str]:
        return [name for name in vars(type(self)) if name not in ("names",) and not name.startswith("_")]

    @property
    def _ui(self):
        return self.panel.ui

    def _painted(self) -> bool:
        return not self.panel.mask.busy

    def _generated(self) -> bool:
        return self.panel.logic.generator.order is None and not self.panel._surfaces.busy

    def open_the_panel(self):
        def act():
            self.slicer.util.selectModule("MedDPM")
            self.panel = self.slicer.util.getModuleWidget("MedDPM")
            self.panel.models.choose(self.model)
            self.panel._warmUp.stop()

        return act, lambda: self.panel is not None

    def start_the_worker(self):
        def act():
            self.panel.onWarmUp()

        return act, lambda: not self.panel.logic.client.busy

    def template(self):
        def act():
            self._ui.templateBox.currentIndex = self._ui.templateBox.findData("glioma")
            self._ui.templateButton.click()

        return act, self._painted

    def stroke(self):
        """A ball of 8 mm, as the brush leaves it."""
        import numpy as np

        from MedDPMLib.scene.painting import paint
        from MedDPMLib.scene.segmentation import painted_geometry

        node = self._ui.segmentationSelector.currentNode()
        ids = list(node.GetSegmentation().GetSegmentIDs())
        geometry = painted_geometry(node)
        first = np.round(geometry.to_ijk(np.array(_PLACE)) - 8 / geometry.spacing).astype(int)
        size = np.ceil(16 / geometry.spacing).astype(int)
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) + first
        ball = (np.linalg.norm(geometry.to_ras(grid) - np.array(_PLACE), axis=-1) < 8).transpose(2, 1, 0)
        self._moved += 1
        first = first + [0, self._moved, 0]  # each somewhere else
        return lambda: paint(node, self.panel.mask.editor.currentSegmentID(), ball, first=first, over=ids), lambda: True

    def stamp_40_mm(self):
        def act():
            self._ui.stampSlider.value = 40
            scene = self.slicer.mrmlScene
            node = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
            node = node or scene.AddNewNodeByClass("vtkMRMLCrosshairNode")
            node.SetCrosshairRAS(*_PLACE)
            self._ui.stampButton.click()

        return act, self._painted

    def generate(self):
        def act():
            node = self.panel.logic.getParameterNode()
            node.quality = type(node.quality)(self.quality)
            node.samples = 1
            self._ui.generateButton.click()

        return act, self._generated

    def three_drafts(self):
        def act():
            node = self.panel.logic.getParameterNode()
            node.samples, node.seed = 3, 10
            self._ui.generateButton.click()

        return act, self._generated

    def generate_while_painting(self):
        """A stroke each half second; the gaps are those of painting while the worker computes."""
        import qt

        begin, ended = self.generate()
        strokes = qt.QTimer()
        strokes.interval = 500
        strokes.timeout.connect(lambda: self.stroke()[0]())

        def act():
            begin()
            strokes.start()

        def condition():
            done = ended()
            if done:
                strokes.stop()
            return done

        return act, condition

    def next_modality(self):
        return self.panel.results.next_modality, lambda: True

    def compare(self):
        def act():
            tree = self._ui.resultsTree
            runs = [tree.topLevelItem(row) for row in range(min(2, tree.topLevelItemCount))]
            tree.clearSelection()
            for run in runs:
                run.setSelected(True)
            self._ui.compareButton.click()

        return act, lambda: not self.panel.results.busy

    def end_comparison(self):
        return lambda: self._ui.endCompareButton.click(), lambda: True

    def export(self):
        from bench import dialogs

        dialogs.reply_with(self.folder)
        return lambda: self._ui.exportButton.click(), lambda: "Written" in self._ui.resultMessage.text

    def sample_data(self):
        import SampleData

        sources = SampleData.SampleDataLogic.sources
        return lambda: sources[0]["customDownloader"](sources[0]), lambda: True

    def surfaces_from_elsewhere(self):
        """Slicer's own surfaces, made in another module, are replaced by the panel's: what follows their making."""
        self.panel.ui.segmentationSelector.currentNode().CreateClosedSurfaceRepresentation()
        return lambda: None, self._generated

    def stroke_after_them(self):
        return self.stroke()


def _small_model() -> str:
    """A folder with the model "small": four modalities on the grid of brain-anatomy, hardly any weights."""
    from conftest import small_card, write_small_model

    from MedDPMLib.imaging.geometry import Grid
    from MedDPMLib.masks.schemes import load_scheme

    folder = tempfile.mkdtemp()
    card = small_card(load_scheme("anatomy"), grid=Grid((192, 192, 144), (1.0, 1.0, 1.0), "LPS"))
    card = dataclasses.replace(card, modalities=("t1", "t1ce", "t2", "flair"))
    write_small_model(Path(folder) / "small.safetensors", card)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gaps", description="Gaps of the event loop by action.")
    parser.add_argument("--where", action="store_true", help="print what the longest gap was spent on")
    parser.add_argument("--only", action="append", help="an action, instead of all")
    parser.add_argument("--runs", type=int, default=1, help="how often each action is done")
    parser.add_argument("--quality", default="draft", help="of the images: draft, standard or reference")
    parser.add_argument(
        "--small", action="store_true", help="a tiny network on the grid of brain-anatomy: what the application takes"
    )
    parser.add_argument("--worker", action="append", default=[], help="NAME=VALUE for the worker's environment")
    options = parser.parse_args()
    sys.path[:0] = [str(MODULE.parents[1])]
    os.environ.update(dict(pair.split("=", 1) for pair in options.worker))
    if options.small:
        os.environ["MEDDPM_MODELS"] = _small_model()
    from bench import start_application, views

    views.VTKView.forceRender = _timed(views.VTKView.forceRender)
    views.VTKView.paintEvent = lambda view, event: None  # copies the picture, as no window of the application does
    app = start_application()
    import qt
    import slicer

    window = app.mainWindow()
    window.resize(1366, 768)
    window.show()
    app.moduleManager().load(MODULE)
    app.emit("startupCompleted()")
    app.processEvents()
    loop, actions = (
        Loop(qt, options.where),
        Actions(app, slicer, "small" if options.small else "brain-anatomy", options.quality),
    )
    needed = ("open_the_panel", "template", *(options.only or ()))
    print(f"{'action':22}{'longest gap':>13}{'panel itself':>15}{'takes':>10}")
    for name in actions.names():
        if options.only and name not in needed:
            continue
        gaps = []
        for _ in range(1 if name in ("open_the_panel", "start_the_worker") else options.runs):
            seconds = loop.run(*getattr(actions, name)())
            # What it has set off goes on for a moment: lists are filled, views are drawn.
            gap, own, spent = loop.longest, loop.own, loop.spent
            until = time.monotonic() + 0.3
            loop.run(lambda: None, lambda until=until: time.monotonic() > until)
            own = max(own, loop.own)
            if loop.longest > gap:
                gap, spent = loop.longest, loop.spent
            gaps.append((gap, own, seconds, spent))
        gap, _own, seconds, spent = max(gaps, key=lambda found: found[0])
        own = max(found[1] for found in gaps)
        median = f" (median {statistics.median(found[0] for found in gaps):.0f})" if len(gaps) > 1 else ""
        for line in (actions._ui.maskMessage, actions._ui.messageLabel, actions._ui.resultMessage):
            if line.text:
                print(f"({line.text})")
        print(f"{name.replace('_', ' '):22}{gap:10.0f} ms{own:12.0f} ms{seconds:8.1f} s{median}", flush=True)
        if options.where:
            for line, milliseconds in spent.most_common(4):
                print(f"    {milliseconds:6.0f} ms  {line}", flush=True)
    if options.where:
        signal.setitimer(signal.ITIMER_REAL, 0)
    app.quit()


if __name__ == "__main__":
    main()
