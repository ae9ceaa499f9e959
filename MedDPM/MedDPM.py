"""MedDPM: a painted mask becomes an MRI. The module's four classes; the work is done in MedDPMLib."""

from __future__ import annotations

import enum
import importlib
import os
import sys
from contextlib import suppress
from functools import partial
from typing import Annotated

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

try:
    import MedDPMLib
except ModuleNotFoundError:  # run from the source tree: the library lies beside this module's folder
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import MedDPMLib

from MedDPMLib.inference.settings import SETTINGS, GenerationSettings  # needs no PyTorch

#: The settings of the section Advanced, in the order of its rows.
ADVANCED = ("sampler", "steps", "device", "precision", "memory", "guidance", "space", "appearance")

#: Libraries that take a tenth of a second and more to import.
_LIBRARIES = ("SimpleITK", "nibabel")

#: The brain of medium width, for the module's test.
_SAMPLE = "ventricles-medium"

#: Milliseconds between opening the module, or choosing a model, and the start of the worker, which loads it meanwhile.
_WARM_UP = 500


class MedDPM(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MedDPM")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Image Synthesis")]
        parent.dependencies = ["Segmentations", "SegmentEditor", "SubjectHierarchy", "Volumes"]
        parent.contributors = ["The MedDPM developers"]
        parent.helpText = _(
            "Turns a segmentation of the brain with its tumor into synthetic MRI volumes: paint, click Generate,"
            " review. The volumes do not depict real people and are not for diagnosis. Version {version}."
        ).format(version=MedDPMLib.__version__)
        parent.acknowledgementText = _(
            "The method is Med-DDPM (Dorjsembe et al., 2024): a diffusion model that sees the mask at every denoising"
            " step."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)
        slicer.app.connect("startupCompleted()", watchVolumes)


def watchVolumes():
    """An exported volume that is loaded is marked as synthetic in the views, also before the panel is opened."""
    from MedDPMLib.scene.watch import watch

    watch.start()
    slicer.app.connect("aboutToQuit()", watch.stop)


def registerSampleData():
    """Offers the bundled templates as segmentations in the module Sample Data; nothing is downloaded."""
    import SampleData

    from MedDPMLib.masks.templates import templates

    icon = os.path.join(os.path.dirname(os.path.abspath(__file__)), "Resources", "Icons", "MedDPM.png")
    for template in templates():
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="MedDPM",
            sampleName=template.title,
            uris=template.path.as_uri(),
            fileNames=template.path.name,
            nodeNames=template.title,
            thumbnailFileName=icon,
            customDownloader=lambda source, name=template.name: addTemplate(name),
        )


def addTemplate(name):
    """The bundled template called ``name`` as a segmentation in the scene, with the labels of its own scheme.

    None, after a message, if it cannot be read."""
    from MedDPMLib.errors import MedDPMError
    from MedDPMLib.scene import dependencies
    from MedDPMLib.scene.background_work import run_responsive
    from MedDPMLib.scene.painting import starting
    from MedDPMLib.scene.views import show_background, show_only
    from MedDPMLib.scene.volumes import sheet_of

    try:
        dependencies.ensure(torch=False)
        segmentation, _center = run_responsive(starting(name))
    except MedDPMError as error:
        slicer.util.errorDisplay(str(error))
        return None
    show_only(segmentation)
    show_background(sheet_of(segmentation), fit=True)
    return segmentation


def importing():
    """The work of importing what painting and export need: in a thread, which leaves the application responsive."""

    def load(library):
        with suppress(ImportError):  # asked for when it is needed
            importlib.import_module(library)

    for library in _LIBRARIES:
        yield partial(load, library)


def choices(name):
    """The choices of the setting called ``name`` as an enumeration, whose names a saved scene keeps."""
    setting = SETTINGS[name]
    titles = {choice.value: choice.title for choice in setting.choices}
    made = enum.Enum(name.title(), [(choice.name, choice.value) for choice in setting.choices], module=__name__)
    made.label = staticmethod(lambda choice: _(titles[choice.value]))
    return made


Quality, Sampler, Appearance, Device, Precision, Memory, Space = map(
    choices, ("quality", "sampler", "appearance", "device", "precision", "memory", "space")
)


DEFAULTS = GenerationSettings()


@parameterNodeWrapper
class MedDPMParameterNode:
    """The choices in the panel, which a saved scene keeps.

    ``leftOut`` are the modalities that are not wanted; ``steps`` is 0 where the quality decides.
    """

    model: str
    segmentation: slicer.vtkMRMLSegmentationNode
    leftOut: list[str]
    samples: Annotated[int, WithinRange(1, 20)] = 1
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    newSeed: bool = False
    quality: Quality = Quality(DEFAULTS.quality)
    livePreview: bool = True
    surface: bool = True
    autoRegenerate: bool = False
    sampler: Sampler = Sampler(DEFAULTS.sampler)
    steps: Annotated[int, WithinRange(0, SETTINGS["steps"].high)] = 0
    appearance: Appearance = Appearance(DEFAULTS.appearance)
    likeVolume: slicer.vtkMRMLScalarVolumeNode
    device: Device = Device(DEFAULTS.device)
    precision: Precision = Precision(DEFAULTS.precision)
    memory: Memory = Memory(DEFAULTS.memory)
    guidance: Annotated[float, WithinRange(0, SETTINGS["guidance"].high)] = DEFAULTS.guidance
    space: Space = Space(DEFAULTS.space)
    stampRadius: Annotated[float, WithinRange(3, 40)] = 12.0


class MedDPMWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._segmentation = None
        self._imported = False

    def setup(self):
        from MedDPMLib.scene.background_work import BackgroundWork
        from MedDPMLib.scene.panel.appearance import AppearanceRows
        from MedDPMLib.scene.panel.completion import Completion
        from MedDPMLib.scene.panel.display import DisplayRows
        from MedDPMLib.scene.panel.guide import Guide
        from MedDPMLib.scene.panel.mask import MaskSection
        from MedDPMLib.scene.panel.models import ModelSection
        from MedDPMLib.scene.panel.results import ResultsSection
        from MedDPMLib.scene.panel.run import RunSection
        from MedDPMLib.scene.panel.scan import ScanSection
        from MedDPMLib.scene.panel.settings_form import add_rows
        from MedDPMLib.scene.watch import watch

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedDPM.ui"))
        self.layout.addWidget(uiWidget)
        add_rows(slicer.util.childWidgetVariables(uiWidget).advancedSection.layout(), ADVANCED)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        self.logic = MedDPMLogic()
        self.models = ModelSection(self.ui)
        self.mask = MaskSection(self.ui)
        self.scan = ScanSection(self.ui, self.logic.client)
        self.run = RunSection(self.ui, self.logic.generator, self.logic.client, self.makeOrder, self.mask.labels.ask)
        self.appearance = AppearanceRows(self.ui)
        self.results = ResultsSection(self.ui)
        self.guide = Guide(self.ui)  # folds sections: what is hidden in them is so before
        self._surfaces, self._imports = BackgroundWork(), BackgroundWork()
        self.completion = Completion()
        self.completion.ended.connect(self.onCompleted)
        self.ui.completeButton.clicked.connect(self.onComplete)
        self.display = DisplayRows(self.ui)
        self._keys = self.makeKeys(uiWidget)
        # Slicer continues with a scene after its last event: the segment editor forgets its segmentation.
        self._settle = qt.QTimer()
        self._settle.setSingleShot(True)
        self._settle.interval = 0
        self._settle.timeout.connect(self.onSettled)
        self._sweep = qt.QTimer()
        self._sweep.setSingleShot(True)
        self._sweep.interval = 0
        self._sweep.timeout.connect(self.showSurfaces)
        self._warmUp = qt.QTimer()
        self._warmUp.setSingleShot(True)
        self._warmUp.interval = _WARM_UP
        self._warmUp.timeout.connect(self.onWarmUp)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.models.changed.connect(self.onModelChanged)
        self.models.removing.connect(self.onModelRemoving)
        self.models.added.connect(self.scan.show)
        self.mask.started.connect(self.onStartedFromTemplate)
        self.scan.started.connect(self.onStartedFromScan)
        self.mask.edited.connect(self.onMaskEdited)
        self.mask.surfaced.connect(self.onSlowSurfaces)
        self.results.again.connect(self.onAgain)
        self.ui.undoButton.clicked.connect(self.onUndo)
        self.ui.releaseButton.clicked.connect(self.onRelease)
        self.ui.surfaceBox.toggled.connect(self.onSurface)
        self.logic.generator.progressed.connect(self.onProgressed)
        self.logic.generator.ended.connect(self.onEnded)
        self.ui.segmentationSelector.currentNodeChanged.connect(self.onSegmentationChanged)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneImported)
        self.addObserver(scene, scene.EndBatchProcessEvent, self.onSceneChanged)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        slicer.app.connect("aboutToQuit()", self.logic.stop)
        watch.start()  # where the module was loaded after the start of the application
        watch.recognition.recognized.connect(self.onRecognized)
        self.initializeParameterNode()

    # Life cycle

    def cleanup(self):
        from MedDPMLib.scene.watch import watch

        slicer.app.disconnect("aboutToQuit()", self.logic.stop)
        self.setParameterNode(None)
        self.logic.stop()
        self.removeObservers()
        for timer in (self._warmUp, self._settle, self._sweep):
            timer.stop()
        for shortcut in self._keys:  # they belong to the main window, which stays
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self.run.disconnect()
        self.logic.generator.progressed.disconnect(self.onProgressed)
        self.logic.generator.ended.disconnect(self.onEnded)
        self.models.stop()
        self.results.stop()
        self.mask.stop()
        self.scan.stop()
        watch.recognition.recognized.disconnect(self.onRecognized)
        self._surfaces.stop()
        self._imports.stop()
        self.completion.stop()

    def enter(self):
        self.models.fill()
        self.scan.show()
        self.initializeParameterNode()
        self.mask.enter()
        self.results.refresh()
        self.enableKeys(True)
        self._warmUp.start()

    def exit(self):
        self._warmUp.stop()
        self._settle.stop()
        self.enableKeys(False)
        self.mask.exit()
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        self._warmUp.stop()
        self._settle.stop()
        self.scan.cancel()
        self.logic.stop()
        self.results.close_scene()
        self._surfaces.stop()
        self.completion.cancel()
        self.setParameterNode(None)
        self.mask.close_scene()

    def onSceneEndClose(self, caller, event):
        self.results.refresh()
        if self.parent.isEntered:
            self.initializeParameterNode()
            self.mask.enter()

    def onSceneImported(self, caller, event):
        self._imported = True
        self.onSceneChanged(caller, event)

    def onSceneChanged(self, caller, event):
        self.results.refresh()
        self._settle.start()

    def onSettled(self):
        """A scene, or a batch of nodes, has come."""
        if self.parent.isEntered and not slicer.mrmlScene.IsClosing():
            if self._imported:
                self.initializeParameterNode()
            self.chooseOnly()
            self.mask.enter()
            self.mask.settle()
        self._imported = False

    def onNodeRemoved(self, caller, event):
        self.results.refresh()
        self.mask.check_source()
        self._sweep.start()

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())
        self.chooseOnly()

    def chooseOnly(self):
        """If nothing is chosen and there is only one segmentation, it is chosen."""
        segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        if self._parameterNode is not None and self._parameterNode.segmentation is None and len(segmentations) == 1:
            self.ui.segmentationSelector.setCurrentNode(segmentations[0])

    def onRecognized(self):
        self.results.refresh()

    # Keys and surfaces

    def makeKeys(self, place):
        """Shortcuts, which work while the panel is open."""
        actions = {
            "Ctrl+Return": self.run.toggle,
            "Ctrl+M": self.results.next_modality,
            "Ctrl+L": self.display.next_outlines,
            "Ctrl+B": self.display.swap_mask,
            "Ctrl+J": self.display.swap_scan,
        }
        keys = []
        for key, action in actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), slicer.util.mainWindow() or place)
            shortcut.activated.connect(action)
            shortcut.setEnabled(False)
            keys.append(shortcut)
        return keys

    def enableKeys(self, enabled):
        for shortcut in self._keys:
            shortcut.setEnabled(enabled)

    def onSurface(self, shown=None):
        self.makeSurfaces()
        self.showSurfaces()

    def showSurfaces(self):
        """The surfaces of the chosen mask, if they are wanted."""
        from MedDPMLib.scene.surface import show_surfaces_of

        if not slicer.mrmlScene.IsClosing():
            shown = self.ui.surfaceBox.checked
            show_surfaces_of(self.ui.segmentationSelector.currentNode() if shown else None)

    def makeSurfaces(self, brain=True):
        """Makes the surfaces of the chosen mask, as it is now; ``brain``: that of the brain anew, if there is one."""
        from MedDPMLib.scene.surface import has_brain, showing

        segmentation = self.ui.segmentationSelector.currentNode()
        if self.ui.surfaceBox.checked and segmentation is not None:
            brain = brain or not has_brain(segmentation)
            work = showing(segmentation, brain=brain)
            self._surfaces.start(work, lambda _nothing: self.showSurfaces(), self.onFailed)

    def onSlowSurfaces(self):
        """Slicer's own surfaces have been removed from the mask: these take their place."""
        self.ui.surfaceBox.checked = True
        self.makeSurfaces()

    def onFailed(self, error):
        raise error

    def showGuide(self):
        self.guide.show(
            usable_model=self.models.card is not None,
            segmentation=self.ui.segmentationSelector.currentNode() is not None,
            running=self.logic.generator.order is not None,
            results=self.results.count,
        )
        self.ui.undoButton.enabled = bool(self.logic.generator.made)

    def setParameterNode(self, parameterNode):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
        self._parameterNode = parameterNode
        if parameterNode is None:
            return
        self.models.choose(parameterNode.model)
        self._guiTag = parameterNode.connectGui(self.ui)
        self.onSegmentationChanged()
        self.onModelChanged()

    # What changes what

    def onModelChanged(self, name=None):
        card = self.models.card
        self.mask.set_scheme(card.scheme if card is not None else None)
        leftOut = list(self._parameterNode.leftOut) if self._parameterNode is not None else []
        self.run.show_modalities(card, leftOut, self.onModalitiesChanged)
        self.run.show_guidance(card)
        self.appearance.show(card)
        self.ui.completeButton.visible = card is not None and card.completion is not None
        self.ui.completeLabel.visible = self.ui.completeButton.visible
        if self._parameterNode is not None and self.models.entry is not None:
            self._parameterNode.model = self.models.entry.name
        if self.parent.isEntered:
            self._warmUp.start()

    def onRelease(self, checked=None):
        self.scan.cancel()  # the worker has ended, and with it what it did

    def onModelRemoving(self):
        if self.logic.generator.order is None and not self.scan.busy:
            self.logic.client.stop()  # no file can be removed on Windows while it is open

    def onWarmUp(self):
        """Starts the worker and has it load the model while the user paints; what is missing is asked for later."""
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.scene import dependencies

        self._imports.start(importing(), lambda _nothing: None, self.onFailed)
        if self.models.card is not None and not self.logic.client.busy and not dependencies.missing():
            with suppress(MedDPMError):  # reported at the next click
                self.logic.client.load(self.models.entry.name)

    def onModalitiesChanged(self, leftOut):
        if self._parameterNode is not None:
            self._parameterNode.leftOut = leftOut

    def onSegmentationChanged(self, node=None):
        segmentation = self.ui.segmentationSelector.currentNode()
        if segmentation is not self._segmentation:  # the message refers to another mask
            self._segmentation = segmentation
            self.run.clear()
        self.logic.generator.looked_at = segmentation
        self.mask.set_segmentation(segmentation)
        self.display.show_mask(segmentation)
        self._sweep.start()
        self.showGuide()

    def onStartedFromTemplate(self, segmentation):
        self.ui.segmentationSelector.setCurrentNode(segmentation)
        self._warmUp.start()

    def onStartedFromScan(self, segmentation, scheme):
        """The new mask is chosen, with a model that sees all of its structures if there is one."""
        if self.models.card is None or self.models.card.scheme != scheme:
            self.models.choose_for(scheme)
        self.onStartedFromTemplate(segmentation)

    # Completing

    def onComplete(self, checked=None):
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.scene import dependencies
        from MedDPMLib.scene.panel.messages import say

        chosen, message = self._parameterNode, self.ui.maskMessage
        try:
            if chosen.segmentation is None:
                raise MedDPMError(_("no segmentation is chosen: choose one, or start from a template"))
            dependencies.ensure(torch=False)
            if not self.mask.labels.ask():
                return
            self.completion.start(chosen.segmentation, self.mask.table, self.models.card, chosen.seed)
        except MedDPMError as error:
            say(message, error)
            return
        self.ui.completeButton.enabled = False
        say(message, _("The mask is being completed ..."))

    def onCompleted(self, segmentation, text):
        """The completed mask is chosen, with a model that sees all of its structures if there is one."""
        from MedDPMLib.scene.panel.messages import say

        self.ui.completeButton.enabled = True
        if segmentation is not None:
            if self.models.card is not None and self.models.card.completion is not None:
                self.models.choose_for(self.models.card.completion)
            self.ui.segmentationSelector.setCurrentNode(segmentation)
        say(self.ui.maskMessage, text)

    # Generating

    def makeOrder(self, seeds=None, into=None):
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.scene.panel.run import new_seed

        chosen = self._parameterNode
        if self.models.card is None:
            raise MedDPMError(_("no usable model is chosen: add one in the section Model"))
        if seeds is None:
            if chosen.newSeed:
                chosen.seed = new_seed()
            seeds = range(chosen.seed, chosen.seed + chosen.samples)
        order = self.logic.makeOrder(chosen, self.models.card, self.mask.table, seeds, into or {})
        return self.appearance.applied(order, chosen.likeVolume)

    def onMaskEdited(self):
        """The newest edit wins: an order in progress is cancelled."""
        from MedDPMLib.errors import MedDPMError

        self.guide.painted()
        self.showGuide()
        self.makeSurfaces(brain=False)
        if self._parameterNode is None or not self._parameterNode.autoRegenerate or self.models.card is None:
            return
        if self.mask.labels.unlabeled_names():  # no question comes up while the user paints
            names = ", ".join(f'"{name}"' for name in self.mask.labels.unlabeled_names())
            self.run.say(
                _("{names} has no label: click Generate, or choose it in the table of labels").format(names=names)
            )
            return
        latest = self.logic.generator.latest
        same = latest is not None and latest.segmentation is self._parameterNode.segmentation
        same = same and latest.card.name == self.models.card.name
        try:
            order = self.makeOrder(latest.seeds, self.logic.generator.nodes) if same else self.makeOrder()
        except MedDPMError as error:
            self.run.say(error)
            return
        self.run.start(order)

    def onAgain(self, nodes):
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.scene.panel.messages import say

        try:
            order = self.logic.makeOrderAgain(nodes)
            self.ui.segmentationSelector.setCurrentNode(order.segmentation)
            if self.models.card is not None and self.models.card.scheme == order.card.scheme:
                if not self.mask.labels.ask():
                    return
                order = self.logic.makeOrderAgain(nodes)
        except MedDPMError as error:
            say(self.ui.resultMessage, error)
            return
        say(self.ui.resultMessage, "")
        self.run.start(order)

    def onUndo(self, checked=None):
        self.logic.generator.undo()
        self.results.fill()
        self.mask.check_source()
        self.showGuide()

    def onProgressed(self, text, part):
        self.showGuide()

    def onEnded(self, message):
        from MedDPMLib.scene.views import shown_background
        from MedDPMLib.scene.volumes import SEGMENTATION_ROLE

        made = list(self.logic.generator.made.values())
        if made and message is None:
            self.makeSurfaces()
            self.display.dress(made)
            self.results.select_newest()
            shown = shown_background() if shown_background() in made else made[0]
            if shown.GetNodeReference(SEGMENTATION_ROLE) is self.ui.segmentationSelector.currentNode():
                self.mask.paint_over(shown)
        else:
            self.results.refresh()
        self.showGuide()


class MedDPMLogic(ScriptedLoadableModuleLogic):
    """Also generates without the panel::

    logic = MedDPMLogic()
    order = logic.makeOrder(logic.getParameterNode(), card, table, seeds=[0])
    logic.generator.start(order)  # returns at once; logic.generator.ended is emitted at its end
    """

    def __init__(self):
        from MedDPMLib.scene.generator import Generator
        from MedDPMLib.scene.worker_client import WorkerClient

        ScriptedLoadableModuleLogic.__init__(self)
        self.client = WorkerClient()
        self.generator = Generator(self.client)

    def getParameterNode(self):
        return MedDPMParameterNode(super().getParameterNode())

    def makeOrder(self, chosen, card, table, seeds, into=None):
        """What the parameters ``chosen`` ask of the model with ``card``; ``table`` is segment ID to label value."""
        from MedDPMLib.scene.generator import Order

        return Order(
            segmentation=chosen.segmentation,
            card=card,
            table=table,
            modalities=[name for name in card.modalities if name not in chosen.leftOut],
            seeds=list(seeds),
            settings=self.settings(chosen, card),
            preview=chosen.livePreview,
            into=into or {},
        )

    def settings(self, chosen, card):
        """The settings that the parameters ``chosen`` say, as the model with ``card`` takes them."""
        values = {name: getattr(chosen, name) for name in SETTINGS}
        values = {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}
        values["steps"] = values["steps"] or None
        if not card.label_dropout:  # settings for another model do not keep this one from generating
            values["guidance"] = SETTINGS["guidance"].default
        if not card.draws_by_levels:
            values["appearance"] = SETTINGS["appearance"].default
        return GenerationSettings(**values).for_card(card)

    def makeOrderAgain(self, nodes):
        """The order that made ``nodes``, results of one run, for the mask as it is now; it goes into the same nodes.

        Raises MedDPMError if the segmentation is not there any more, or the model is not or is another one by now.
        """
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.inference.record import settings_of
        from MedDPMLib.models.store import ModelStore
        from MedDPMLib.scene.generator import Order
        from MedDPMLib.scene.segmentation import table_of
        from MedDPMLib.scene.volumes import SEGMENTATION_ROLE, record_of

        by_modality = {record_of(node)["modality"]: node for node in nodes}
        record, segmentation = record_of(nodes[0]), nodes[0].GetNodeReference(SEGMENTATION_ROLE)
        if segmentation is None:
            raise MedDPMError(_("the segmentation of this result is no longer in the scene: choose another result"))
        entry = ModelStore().find(record["model"]["name"])
        if entry.hash != record["model"]["hash"]:
            raise MedDPMError(
                _(
                    "the model {name} is not the one that generated this result: use Generate to create a new one"
                ).format(name=entry.name)
            )
        return Order(
            segmentation=segmentation,
            card=entry.card,
            table=table_of(segmentation, entry.card.scheme),
            modalities=[name for name in entry.card.modalities if name in by_modality],
            seeds=[record["seed"]],
            settings=settings_of(record),
            into={(record["seed"], modality): node for modality, node in by_modality.items()},
        )

    def stop(self):
        """Ends the worker and drops the scene: no process, no file and no unfinished volume is left."""
        self.generator.forget()
        self.client.stop()


class MedDPMTest(ScriptedLoadableModuleTest):
    """A first use, inside 3D Slicer; needs an installed model and PyTorch."""

    def setUp(self):
        from MedDPMLib.scene import dependencies

        missing = dependencies.missing()
        if missing and slicer.app.testingEnabled():  # no test installs anything into the application
            self.skipTest(f"missing: {', '.join(missing)}")
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_FromTemplateToVolume()

    def test_FromTemplateToVolume(self):
        from MedDPMLib.scene import volumes

        self.delayDisplay("Start from a template")
        slicer.util.selectModule("MedDPM")
        widget = slicer.util.getModuleWidget("MedDPM")
        ui = widget.ui
        self.assertIsNotNone(widget.models.card, "no model is installed")
        ui.templateBox.currentIndex = ui.templateBox.findData(_SAMPLE)
        ui.templateButton.click()
        self.waitUntil(lambda: not widget.mask.busy, 60)
        segmentation = ui.segmentationSelector.currentNode()
        self.assertIsNotNone(segmentation, ui.maskMessage.text)
        self.assertEqual(sorted(widget.mask.table.values()), sorted(widget.models.card.scheme.values))

        self.delayDisplay("Generate a draft")
        widget.logic.getParameterNode().quality = Quality.Draft
        ui.generateButton.click()
        self.assertEqual(ui.generateButton.text, _("Cancel"), ui.messageLabel.text)
        self.waitUntil(lambda: widget.logic.generator.order is None, 600)
        made = volumes.results()
        self.assertEqual(len(made), len(widget.models.card.modalities), ui.messageLabel.text)
        for node in made:
            self.assertEqual(volumes.record_of(node)["seed"], 0)
        background = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID()
        self.assertEqual(background, made[0].GetID())

        self.delayDisplay("Cancel another one")
        ui.generateButton.click()
        ui.generateButton.click()
        self.assertEqual(ui.generateButton.text, _("Generate"))
        self.assertEqual(len(volumes.results()), len(made))

        self.delayDisplay("Close the scene")
        slicer.mrmlScene.Clear()
        self.assertFalse(widget.logic.client.running)
        self.delayDisplay("Done")

    def waitUntil(self, condition, seconds):
        import time

        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.01)
        self.assertTrue(condition(), "nothing came in time")
