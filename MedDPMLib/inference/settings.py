"""With which settings are volumes generated? One value that library, command line, panel and worker share.

The table of settings is data (:data:`SETTINGS`): title, help and valid values of each setting. Command line and panel
build their options and controls from it, so that a new setting needs a field here, its effect in
:mod:`MedDPMLib.inference.generation`, and for the panel a parameter in ``MedDPM/MedDPM.py``. Does not import PyTorch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from MedDPMLib.diffusion.names import LEVELS_METHOD, MAX_TIMESTEPS, METHOD_TITLES, METHODS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import QUALITIES, Card
from MedDPMLib.runtime.names import DEVICES, PRECISIONS, SHORT_PRECISIONS
from MedDPMLib.validation import (
    Rule,
    as_python,
    build,
    check_fields,
    converted,
    field,
    matching,
    number,
    one_of,
    optional,
    whole,
)

#: Whose look a brain gets, of models that know several, if it is not that of a scan.
APPEARANCES = ("random", "typical")

#: What a file of a scan's appearance is called at its end.
APPEARANCE_SUFFIX = ".json"

#: Where the result lies: on the model's own grid, or resampled onto the mask's.
SPACES = ("model", "mask")

#: Beyond this an image is nothing but contrast.
MAX_GUIDANCE = 20.0

_GIGABYTES = r"\s*(\d+(?:\.\d+)?)\s*[Gg][Bb]\s*"


@dataclass(frozen=True)
class Choice:
    """A ``value`` of a setting; ``name`` identifies it in a saved scene, ``title`` is displayed."""

    value: str | None
    name: str
    title: str


@dataclass(frozen=True)
class Setting:
    """What a setting is: its ``title``, what it does (``help``), and its ``choices`` or, for a number, its range."""

    name: str
    default: Any
    title: str
    help: str
    choices: tuple[Choice, ...] = ()
    low: float | None = None
    high: float | None = None


#: Where a field holds what is displayed of it.
_SHOWN = "shown"


def _setting(default: Any, title: str, help: str, rule: Rule, **more: Any) -> Any:
    return field(rule, default=default, metadata={_SHOWN: {"title": title, "help": help, **more}})


_STEPS = as_python(whole(1, MAX_TIMESTEPS))
_GUIDANCE = as_python(number(0, MAX_GUIDANCE))
_DEVICE = converted(
    str, matching(rf"({'|'.join(DEVICES)})|cuda:[0-9]{{1,3}}", f"one of {', '.join(DEVICES)} or cuda:1")
)
_PRECISION = converted(lambda value: SHORT_PRECISIONS.get(str(value), value), one_of(*PRECISIONS))
_APPEARANCE = converted(
    str,  # a path names itself
    matching(
        rf"{'|'.join(APPEARANCES)}|.*{re.escape(APPEARANCE_SUFFIX)}",
        f"{', '.join(APPEARANCES)} or the {APPEARANCE_SUFFIX} file of a scan's appearance",
    ),
)
_MEMORY = matching(rf"auto|low|{_GIGABYTES}", '"auto", "low" or a number of gigabytes such as "4 GB"')


def memory_limit(memory: str) -> int | None:
    """The bytes that ``memory`` ("4 GB", 10^9 bytes each) allows, None for "auto" and "low"; :class:`MedDPMError` for
    anything else."""
    limit = re.fullmatch(_GIGABYTES, _MEMORY.read(memory, "the memory"))
    return int(float(limit[1]) * 1e9) if limit else None


def _member(name: str) -> str:
    """ "DpmSolver" of "dpm-solver++"."""
    return "".join(part.capitalize() for part in re.findall("[a-z0-9]+", name))


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How volumes are generated from a mask. Each field is validated: :class:`MedDPMError` names it, its value and the
    valid ones.

    ``sampler`` and ``steps`` are None if the ``quality`` determines them; :meth:`for_card` fills them in.
    """

    quality: str = _setting(
        "standard",
        "Quality",
        "Draft is the fastest, standard is recommended by the model card, reference uses all denoising steps of the"
        " training",
        one_of(*QUALITIES),
        choices=(
            Choice("draft", "Draft", "Draft"),
            Choice("standard", "Standard", "Standard"),
            Choice("reference", "Reference", "Reference (all steps)"),
        ),
    )
    sampler: str | None = _setting(
        None,
        "Sampling algorithm",
        "Sampling algorithm; by default the one that belongs to the quality",
        optional(one_of(*METHODS)),
        choices=(
            Choice(None, "Recommended", "Same as quality"),
            *(Choice(method, _member(method), title) for method, title in METHOD_TITLES.items()),
        ),
    )
    steps: int | None = _setting(
        None,
        "Steps",
        "Number of denoising steps; by default the one that belongs to the quality",
        optional(_STEPS),
        low=1,
        high=MAX_TIMESTEPS,
    )
    guidance: float = _setting(
        1.0,
        "Guidance",
        "Classifier-free guidance scale: above 1 follows the mask more closely, in twice the time; only for models that"
        " were trained for it",
        _GUIDANCE,
        low=0.0,
        high=MAX_GUIDANCE,
    )
    appearance: str = _setting(
        "random",
        "Appearance",
        "Whose look the brain gets, of models that know several: that of a training brain drawn by the seed, the"
        " typical one, or the file of a scan's appearance",
        _APPEARANCE,
        choices=(Choice("random", "Random", "Random patient"), Choice("typical", "Typical", "Typical patient")),
    )
    device: str = _setting(
        "auto",
        "Device",
        "Where the network runs; by default on an NVIDIA GPU if PyTorch supports one here, otherwise on the CPU",
        _DEVICE,
        choices=(
            Choice("auto", "Automatic", "Automatic"),
            Choice("cpu", "Cpu", "CPU"),
            Choice("cuda", "Cuda", "GPU (CUDA)"),
            Choice("mps", "Mps", "GPU (Apple)"),
        ),
    )
    precision: str = _setting(
        "auto",
        "Precision",
        "Numerical precision; by default the fastest that the device computes correctly",
        _PRECISION,
        choices=(
            Choice("auto", "Automatic", "Automatic"),
            Choice("float32", "Float32", "float32"),
            Choice("bfloat16", "Bfloat16", "bfloat16"),
            Choice("float16", "Float16", "float16"),
        ),
    )
    memory: str = _setting(
        "auto",
        "Memory",
        "How much memory may be used: by default what is free; low uses less but is slower; or a limit such as 4GB",
        _MEMORY,
        choices=(Choice("auto", "Automatic", "Automatic"), Choice("low", "Low", "Low (slower)")),
    )
    space: str = _setting(
        "model",
        "Output grid",
        "Grid of the result: that of the model, or resampled to that of the mask",
        one_of(*SPACES),
        choices=(Choice("model", "Model", "Model"), Choice("mask", "Segmentation", "Segmentation")),
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is used, which evaluates the network twice a step."""
        return self.guidance != 1

    def changed(self, **values: Any) -> GenerationSettings:
        """These settings with other ``values``; :class:`MedDPMError` for a name that is no setting's."""
        return self.from_dict({**self.to_dict(), **values})

    def for_card(self, card: Card) -> GenerationSettings:
        """These settings with ``sampler`` and ``steps`` as a model's ``card`` recommends where they are None.

        Raises :class:`MedDPMError` for what that model cannot do.
        """
        recommended = card.qualities[self.quality]
        timesteps = card.schedule["timesteps"]
        settings = replace(
            self,
            sampler=recommended["sampler"] if self.sampler is None else self.sampler,
            steps=recommended["steps"] if self.steps is None else self.steps,
        )
        if settings.steps > timesteps:
            raise MedDPMError(
                f"the number of denoising steps is 1 to {timesteps} for the model {card.name}, not {settings.steps}"
            )
        if settings.guided and not card.label_dropout:
            raise MedDPMError(
                f"the model {card.name} does not support guidance, because it was never trained without labels",
                remedy="leave the guidance scale at 1",
            )
        if card.draws_by_levels:
            if settings.sampler != LEVELS_METHOD:
                raise MedDPMError(f"the model {card.name} is sampled by {LEVELS_METHOD}, not by {settings.sampler}")
        elif settings.appearance != SETTINGS["appearance"].default:
            raise MedDPMError(f"the model {card.name} knows no appearances", remedy="leave the appearance at random")
        return settings

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; :meth:`from_dict` reads it."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_dict(cls, data: object) -> GenerationSettings:
        """Reads :meth:`to_dict`'s data; settings that are missing have their defaults."""
        return build(cls, data, "the table of settings")


#: Every setting by its name.
SETTINGS: dict[str, Setting] = {
    entry.name: Setting(entry.name, entry.default, **entry.metadata[_SHOWN]) for entry in fields(GenerationSettings)
}
