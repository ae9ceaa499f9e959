"""With which settings are volumes generated? One value that library, command line, panel and worker share.

The table of settings is data (:data:`SETTINGS`): title, help and valid values of each setting. Command line and panel
build their options and controls from it, so that a new setting needs a field here, its effect in
:mod:`MedDPMLib.inference.generation`, and for the panel a parameter in ``MedDPM/MedDPM.py``. Does not import PyTorch.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from MedDPMLib.diffusion.names import LEVELS_METHOD, MAX_TIMESTEPS, METHOD_TITLES, METHODS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import QUALITIES, Card
from MedDPMLib.runtime.names import DEVICES, PRECISIONS, SHORT_PRECISIONS

#: Whose look a brain gets, of models that know several, if it is not that of a scan.
APPEARANCES = ("random", "typical")

#: What a file of a scan's appearance is called at its end.
APPEARANCE_SUFFIX = ".json"

#: Where the result lies: on the model's own grid, or resampled onto the mask's.
SPACES = ("model", "mask")

#: Beyond this an image is nothing but contrast.
MAX_GUIDANCE = 20.0

_DEVICE = re.compile(rf"({'|'.join(DEVICES)})|cuda:[0-9]{{1,3}}")
_MEMORY_LIMIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*GB\s*", re.IGNORECASE)


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
    check: Callable[[Any], Any]
    choices: tuple[Choice, ...] = ()
    low: float | None = None
    high: float | None = None


def _setting(default: Any, title: str, help: str, check: Callable[[Any], Any], **more: Any) -> Any:
    return field(default=default, metadata={"title": title, "help": help, "check": check, **more})


def _one_of(what: str, names: tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise MedDPMError(f'there is no {what} "{value}"', remedy=f"use one of {', '.join(names)}")
        return value

    return check


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def check_whole(what: str, value: object, low: int, high: int) -> int:
    """``value`` as Python's own integer, which generators and JSON need; those of numpy count."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or not low <= whole <= high:
        raise MedDPMError(f"the {what} is a whole number from {low} to {high}, not {value!r:.50}")
    return whole


def _check_steps(value: Any) -> int:
    return check_whole("number of denoising steps", value, 1, MAX_TIMESTEPS)


def _check_guidance(value: Any) -> float:
    try:
        guidance = float(value)
    except (TypeError, ValueError):
        raise MedDPMError(f"the guidance scale is a number from 0 to {MAX_GUIDANCE:g}, not {value!r:.50}") from None
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise MedDPMError(f"the guidance scale is a number from 0 to {MAX_GUIDANCE:g}, not {guidance:g}")
    return guidance


def _check_device(value: Any) -> str:
    name = str(value)  # a torch.device names itself
    if not _DEVICE.fullmatch(name):
        raise MedDPMError(f'there is no device "{name:.50}"', remedy=f"use one of {', '.join(DEVICES)} or cuda:1")
    return name


def _check_precision(value: Any) -> str:
    return _one_of("precision", PRECISIONS)(SHORT_PRECISIONS.get(value, value) if isinstance(value, str) else value)


def _check_appearance(value: Any) -> str:
    text = str(value)  # a path names itself
    if text not in APPEARANCES and not text.endswith(APPEARANCE_SUFFIX):
        raise MedDPMError(
            f'there is no appearance "{text:.50}"',
            remedy=f"use {', '.join(APPEARANCES)} or the {APPEARANCE_SUFFIX} file of a scan's appearance",
        )
    return text


def _check_memory(value: Any) -> str:
    memory_limit(value)
    return value


def memory_limit(memory: str) -> int | None:
    """The bytes that ``memory`` ("4 GB", 10^9 bytes each) allows, None for "auto" and "low"; :class:`MedDPMError` for
    anything else."""
    match = _MEMORY_LIMIT.fullmatch(memory) if isinstance(memory, str) else None
    if match:
        return int(float(match[1]) * 1e9)
    if memory not in ("auto", "low"):
        raise MedDPMError(f'the memory is "auto", "low" or a number of gigabytes such as "4 GB", not {memory!r:.50}')
    return None


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
        _one_of("quality", QUALITIES),
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
        _or_none(_one_of("sampler", METHODS)),
        choices=(
            Choice(None, "Recommended", "Same as quality"),
            *(Choice(method, _member(method), title) for method, title in METHOD_TITLES.items()),
        ),
    )
    steps: int | None = _setting(
        None,
        "Steps",
        "Number of denoising steps; by default the one that belongs to the quality",
        _or_none(_check_steps),
        low=1,
        high=MAX_TIMESTEPS,
    )
    guidance: float = _setting(
        1.0,
        "Guidance",
        "Classifier-free guidance scale: above 1 follows the mask more closely, in twice the time; only for models that"
        " were trained for it",
        _check_guidance,
        low=0.0,
        high=MAX_GUIDANCE,
    )
    appearance: str = _setting(
        "random",
        "Appearance",
        "Whose look the brain gets, of models that know several: that of a training brain drawn by the seed, the"
        " typical one, or the file of a scan's appearance",
        _check_appearance,
        choices=(Choice("random", "Random", "Random patient"), Choice("typical", "Typical", "Typical patient")),
    )
    device: str = _setting(
        "auto",
        "Device",
        "Where the network runs; by default on an NVIDIA GPU if PyTorch supports one here, otherwise on the CPU",
        _check_device,
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
        _check_precision,
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
        _check_memory,
        choices=(Choice("auto", "Automatic", "Automatic"), Choice("low", "Low", "Low (slower)")),
    )
    space: str = _setting(
        "model",
        "Output grid",
        "Grid of the result: that of the model, or resampled to that of the mask",
        _one_of("space", SPACES),
        choices=(Choice("model", "Model", "Model"), Choice("mask", "Segmentation", "Segmentation")),
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, entry.metadata["check"](getattr(self, entry.name)))

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is used, which evaluates the network twice a step."""
        return self.guidance != 1

    def changed(self, **values: Any) -> GenerationSettings:
        """These settings with other ``values``; :class:`MedDPMError` for a name that is no setting's."""
        _check_names(values)
        return replace(self, **values)

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
        if not isinstance(data, Mapping):
            raise MedDPMError(f"settings are a table, not {data!r:.50}")
        _check_names(data)
        return cls(**data)


def _check_names(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in SETTINGS:
            raise MedDPMError(f"there is no setting {name!r:.50}", remedy=f"use {', '.join(SETTINGS)}")


#: Every setting by its name.
SETTINGS: dict[str, Setting] = {
    entry.name: Setting(entry.name, entry.default, **entry.metadata) for entry in fields(GenerationSettings)
}
