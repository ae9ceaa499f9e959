"""What describes a model? Everything except the weights that is needed to use and to judge it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from MedDPMLib.diffusion.names import CASCADE_LEVELS, MAX_TIMESTEPS, NOISE_LEVELS, PREDICTIONS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.moved import former_attribute
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.validation import (
    Rule,
    build,
    check_fields,
    either,
    field,
    flag,
    increasing_pair,
    list_of,
    matching,
    number,
    one_of,
    optional,
    printable,
    read_json,
    table,
    table_with,
    whole,
    with_current_names,
)

#: Version of the card's JSON; a reader refuses a newer one.
FORMAT = 2

#: What fields were called in format 1, until version 0.1.
_CURRENT = {"licence": "license"}

#: The three settings that a card recommends, the quickest first.
QUALITIES = ("draft", "standard", "reference")

#: Orders of the axes of a network's arrays.
AXES = ("zyx", "xyz")

#: What a card of another program's network says beyond those of ours, and is left out where it says nothing new.
_OF_OTHERS = ("constants", "axes", "image_range", "levels", "weights")

_CARDS = RESOURCES / "cards"

# Bounds on what comes from others' files: far beyond anything in use, far below what hurts.
MAX_JSON = 1_000_000
_MAX_SIDE = 1024

#: Windows opens a device, not a file, for these names, whatever the suffix.
_DEVICES = r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?"
NAME_RULE = matching(
    rf"(?!{_DEVICES}$)[a-z0-9]([a-z0-9._-]{{0,62}}[a-z0-9_-])?",
    '1 to 64 lower-case letters, digits, ".", "_" or "-", beginning with a letter or digit and not ending with "."',
)
TEXT_RULE = printable(10_000, lines=True)
_NUMBER = whole(1, 10**6)
_NUMBERS = either(_NUMBER, list_of(_NUMBER, 0, 32, kind=list))
#: Names of modalities are free.
MODALITIES = list_of(NAME_RULE, 1, 16, unique=True)
#: The file that holds a model's weights, if that is another model's.
_WEIGHTS = table_with(
    {
        "file": matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}\.safetensors", "the name of a .safetensors file"),
        "sha256": matching(r"[0-9a-f]{64}", "64 hexadecimal digits"),
    }
)
#: How one level of a cascade is sampled.
_LEVEL = table_with(
    {
        "steps": number(0, 100, open_low=True),
        "lowest_noise": number(0, open_low=True),
        "highest_noise": number(0, open_low=True),
        "coarser_noise": number(0),
    }
)
#: A grid in a file.
GRID = table_with(
    {"size": list_of(whole(1, _MAX_SIDE), 3, 3), "spacing": list_of(number(), 3, 3), "orientation": printable(3)}
)
_DATA_FIELDS = table_with({"name": TEXT_RULE, "license": TEXT_RULE, "cases": optional(whole(1, 10**9))})
DATA_RULE = Rule(
    _DATA_FIELDS.says, lambda value, what: _DATA_FIELDS.read(with_current_names(value, _CURRENT, what), what)
)


def _scheme(value: object, what: str) -> LabelScheme:
    return value if isinstance(value, LabelScheme) else LabelScheme.from_dict(value)


def _grid(value: object, what: str) -> Grid:
    return value if isinstance(value, Grid) else Grid(**GRID.read(value, what))


def _network(value: object, what: str) -> dict:
    """Checks only the form; :mod:`MedDPMLib.networks` checks whether the numbers define a network."""
    network = {}
    for key, entry in table(32).read(value, what).items():
        NAME_RULE.read(key, f"each name in {what}")
        if key in ("image_channels", "condition_channels", "inputs", "classes"):
            raise MedDPMError(f'{what} must not have "{key}": modalities and labels determine it')
        network[key] = (NAME_RULE if key in ("kind", "conditioning") else _NUMBERS).read(entry, f'{what}: "{key}"')
    if "kind" not in network:
        raise MedDPMError(f'{what} lacks the field "kind"')
    return network


SCHEME_RULE = Rule("a label scheme", _scheme)
NETWORK_RULE = Rule("a table", _network)


def check_name(name: object, what: str = "a model's name") -> str:
    """``name`` if it can name a file on every system: lower-case letters, digits, ".", "_" and "-", at most 64."""
    return NAME_RULE.read(name, what)


def default_qualities(timesteps: int) -> dict[str, dict]:
    """Sampler and steps by quality, for cards without recommendations and a schedule of ``timesteps``."""
    return {
        "draft": {"sampler": "dpm-solver++", "steps": min(8, timesteps)},
        "standard": {"sampler": "dpm-solver++", "steps": min(20, timesteps)},
        "reference": {"sampler": "ddpm", "steps": timesteps},
    }


@dataclass(frozen=True)
class Card:
    """A model card. An invalid value raises :class:`MedDPMError` with a sentence that names the field."""

    #: Its name on the command line and in file names; see :func:`check_name`.
    name: str = field(NAME_RULE)
    title: str = field(TEXT_RULE)
    summary: str = field(TEXT_RULE)
    #: Kind and numbers for :func:`MedDPMLib.networks.build_network`, without the channels of image and condition.
    network: dict = field(NETWORK_RULE)
    #: The labels that the mask may hold, one condition channel each.
    scheme: LabelScheme = field(SCHEME_RULE)
    #: The generated images, one channel each: "t1", "t1ce", "t2", "flair".
    modalities: tuple[str, ...] = field(MODALITIES)
    grid: Grid = field(Rule("a grid", _grid))
    #: Value of a condition channel outside and inside its label.
    mask_encoding: tuple[float, float] = field(increasing_pair())
    #: Lowest and highest intensity of the network's images.
    intensity_range: tuple[float, float] = field(increasing_pair())
    #: ``name`` and ``timesteps`` for :func:`MedDPMLib.diffusion.schedule.make_schedule`.
    schedule: dict = field(table_with({"name": NAME_RULE, "timesteps": whole(1, MAX_TIMESTEPS)}))
    #: What the network predicts: one of :data:`PREDICTIONS`.
    prediction: str = field(one_of(*PREDICTIONS))
    #: How it was trained, in words.
    training: str = field(TEXT_RULE)
    #: For each data set ``name``, ``license`` and ``cases`` (None if unknown).
    training_data: tuple[dict, ...] = field(list_of(DATA_RULE, 1, 100))
    license: str = field(TEXT_RULE)
    intended_use: str = field(TEXT_RULE)
    limitations: str = field(TEXT_RULE)
    #: ``sampler`` and ``steps`` for each of :data:`QUALITIES`; None stands for :func:`default_qualities`.
    qualities: dict[str, dict] = field(optional(table()), default=None)
    #: Whether three more condition channels follow the labels: where each voxel lies on the grid, see
    #: :func:`MedDPMLib.masks.condition.condition`.
    positions: bool = field(flag(), default=False)
    #: The scheme of the network's condition, if it has structures that the mask does not show: they are taken from a
    #: template, see :mod:`MedDPMLib.inference.atlas`. None: the scheme of the mask.
    completion: LabelScheme | None = field(optional(SCHEME_RULE), default=None)
    #: Values of condition channels that follow the labels and are the same everywhere: what a network of another origin
    #: asks for beside a mask, such as an age.
    constants: tuple[float, ...] = field(list_of(number(), 0, 32), default=())
    #: The axes of the network's arrays: "zyx" are those of :mod:`numpy` arrays of volumes, "xyz" run the other way.
    axes: str = field(one_of(*AXES), default=AXES[0])
    #: Lowest and highest intensity of the images that the network was trained on.
    image_range: tuple[float, float] = field(increasing_pair(), default=(-1.0, 1.0))
    #: Share of the training examples in which all labels were removed. Above 0, classifier-free guidance can be used
    #: (Ho and Salimans 2022, arXiv 2207.12598).
    label_dropout: float = field(number(0, 1, open_high=True), default=0.0)

    #: How each level of a cascade is sampled, from coarse to fine: ``steps`` times as many as :attr:`qualities` say,
    #: from the noise ``highest_noise`` to ``lowest_noise``, at which the network's estimate is taken for the image:
    #: further steps would add the grain of what it cannot tell from noise. ``coarser_noise`` is added to the image of
    #: the level before, which hides its faults. In deviations of what is drawn. Empty for networks of timesteps.
    levels: tuple[dict, ...] = field(list_of(_LEVEL, 0, len(CASCADE_LEVELS)), default=())

    #: The bundle beside its own whose weights it uses, ``file`` and ``sha256``: two models may share weights and differ
    #: in their masks. None: its own. :func:`MedDPMLib.models.bundle.write_sharing` sets it.
    weights: dict | None = field(optional(_WEIGHTS), default=None)

    #: The name of :attr:`license` until version 0.1.
    licence = former_attribute("licence", "license")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.positions and self.axes != AXES[0]:
            raise MedDPMError(f'"positions" are known of networks with the axes {AXES[0]} alone')
        _check_completion(self.completion, self.scheme)
        _check_levels(self)
        timesteps = self.schedule["timesteps"]
        # Which samplers there are, MedDPMLib.diffusion says; a newer one must not make the card unreadable.
        quality = table_with({"sampler": printable(100), "steps": whole(1, timesteps)})
        qualities = default_qualities(timesteps) if self.qualities is None else self.qualities
        qualities = table_with(dict.fromkeys(QUALITIES, quality)).read(qualities, '"qualities"')
        object.__setattr__(self, "qualities", qualities)

    @property
    def draws_by_levels(self) -> bool:
        """Whether the network is asked at noise levels instead of timesteps, level by level, and knows appearances."""
        return self.schedule["name"] == NOISE_LEVELS

    @property
    def condition_scheme(self) -> LabelScheme:
        """The labels of the network's condition, which has a channel for each."""
        return self.completion or self.scheme

    @property
    def array_shape(self) -> tuple[int, ...]:
        """The shape of the network's arrays, without channels: (D, H, W), or the other way round (:attr:`axes`)."""
        return self.grid.size if self.axes == "xyz" else self.grid.size[::-1]

    @property
    def network_description(self) -> dict:
        """The argument of :func:`MedDPMLib.networks.build_network`: :attr:`network` with its channels."""
        condition = len(self.condition_scheme.labels) + len(self.constants) + (3 if self.positions else 0)
        channels = {"image_channels": len(self.modalities), "condition_channels": condition}
        return {**self.network, **channels}

    def to_json(self) -> str:
        """The card as one line of JSON; :meth:`from_json` reads it."""
        data = {"format": FORMAT, **{entry.name: getattr(self, entry.name) for entry in fields(self)}}
        for entry in fields(self):
            if entry.name in _OF_OTHERS and data[entry.name] == entry.default:
                del data[entry.name]  # so that older versions read the card
        data["scheme"] = self.scheme.to_dict()
        if self.completion is None:
            del data["completion"]
        else:
            data["completion"] = self.completion.to_dict()
        data["grid"] = {"size": self.grid.size, "spacing": self.grid.spacing, "orientation": self.grid.orientation}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Reads :meth:`to_json`'s text, from a file of unknown origin."""
        if len(text) > MAX_JSON:
            raise MedDPMError(f"the model card is longer than {MAX_JSON:,} characters: the file was not made by MedDPM")
        return cls.from_dict(read_json(text, "the model card"))

    @classmethod
    def from_dict(cls, data: dict) -> Card:
        """Reads what :meth:`to_json` wrote, decoded."""
        version = whole(1).read(data.get("format"), 'the model card\'s "format"')
        if version > FORMAT:
            raise MedDPMError(f"the model card has format {version}, made by a newer version of MedDPM: update MedDPM")
        given = {name: value for name, value in data.items() if name != "format"}
        try:
            return build(cls, with_current_names(given, _CURRENT, "the card"), "the card")
        except MedDPMError as error:
            raise MedDPMError(f"the model card is invalid: {error}") from None

    def describe(self) -> str:
        """The card as text for a terminal or a text field, in lines of at most 100 characters."""
        grid = self.grid
        spacing = " x ".join(f"{mm:g}" for mm in grid.spacing)
        numbers = ", ".join(f"{name} {_spoken(value)}" for name, value in self.network.items() if name != "kind")
        sections = {
            "Modalities": ", ".join(self.modalities),
            "Mask": f"{self.scheme.describe_labels()} (scheme {self.scheme.name})",
            "Completion": f"with structures of a template (scheme {self.completion.name})" if self.completion else "",
            "Grid": f"{' x '.join(map(str, grid.size))} voxels of {spacing} mm, {grid.orientation}",
            "Qualities": "; ".join(f"{name}: {q['sampler']}, {q['steps']} steps" for name, q in self.qualities.items()),
            "Levels": "; ".join(map(_sampled, CASCADE_LEVELS, self.levels)),
            "Network": f"{self.network['kind']} ({numbers}), predicts {self.prediction}",
            "Weights": f"those of {self.weights['file']}" if self.weights else "",
            "Its arrays": _arrays(self),
            "Schedule": f"{self.schedule['name']}, {self.schedule['timesteps']} timesteps",
            "Guidance": "supported" if self.label_dropout else "not supported: always trained with labels",
            **origin_and_use(self),
        }
        return as_lines(f"{self.title} ({self.name})", self.summary, sections)


def origin_and_use(card: Any) -> dict[str, str]:
    """The sections that end the text of a card of any kind: what its model was trained on, and what it is for."""
    return {
        "Training": card.training,
        "Data": "; ".join(
            f"{data['name']} ({data['cases'] or 'an unstated number of'} cases; license: {data['license']})"
            for data in card.training_data
        ),
        "License": card.license,
        "Intended use": card.intended_use,
        "Limitations": card.limitations,
    }


def as_lines(title: str, summary: str, sections: Mapping[str, str]) -> str:
    """A card's text in lines of at most 100 characters; sections that are empty are left out."""
    lines = [title, *textwrap.wrap(summary, 100), ""]
    for heading, text in sections.items():
        if text:
            lines += textwrap.wrap(text, 100, initial_indent=f"{heading:<14}", subsequent_indent=" " * 14)
    return "\n".join(lines)


@lru_cache
def known_cards() -> tuple[Card, ...]:
    """The cards of all published networks that are recognized without one."""
    cards = []
    for path in sorted(_CARDS.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data["scheme"], str):
            data["scheme"] = load_scheme(data["scheme"]).to_dict()
        cards.append(Card.from_dict(data))
    return tuple(cards)


def official_cards() -> tuple[Card, ...]:
    """The cards of the two published Med-DDPM networks."""
    return tuple(card for card in known_cards() if card.name.startswith("med-ddpm"))


def _check_completion(completion: LabelScheme | None, scheme: LabelScheme) -> None:
    """Only a scheme with a label for the rest of the brain and every tumor label of ``scheme`` can complete it."""
    if completion is None:
        return
    if any(label.role == "structure" for label in scheme.labels):
        raise MedDPMError(f'the scheme "{scheme.name}" has structures of its own: there is nothing to complete')
    lacking = [label.name for label in scheme.tumor if completion.label_by_name(label.name) is None]
    if lacking or completion.rest is None:
        raise MedDPMError(
            f'"completion" lacks {lacking[0] if lacking else "a label for the rest of the brain"}: it cannot complete'
            f' masks of the scheme "{scheme.name}"'
        )


def _check_levels(card: Card) -> None:
    """A cascade says how each of its levels is sampled; no other network does."""
    count = len(CASCADE_LEVELS) if card.draws_by_levels else 0
    if len(card.levels) != count:
        schedule = card.schedule["name"]
        raise MedDPMError(f'"levels" has {count} tables for the schedule {schedule}, not {len(card.levels)}')
    for name, level in zip(CASCADE_LEVELS, card.levels, strict=False):
        if level["lowest_noise"] >= level["highest_noise"]:
            raise MedDPMError(f'"levels": the lowest noise of the level {name} must be below its highest')


def _arrays(card: Card) -> str:
    """What is unusual about the network's arrays, for :meth:`Card.describe`."""
    low, high = card.image_range
    said = [
        f"axes {', '.join(card.axes)}" if card.axes != AXES[0] else "",
        f"images from {low:g} to {high:g}" if (low, high) != (-1, 1) else "",
        f"after the labels, channels of {', '.join(f'{value:g}' for value in card.constants)}"
        if card.constants
        else "",
    ]
    return "; ".join(filter(None, said))


def _sampled(name: str, level: Mapping[str, float]) -> str:
    """How a level is sampled, for :meth:`Card.describe`."""
    return f"{name}: {level['steps']:g} times the steps, to a noise of {level['lowest_noise']:g}"


def _spoken(value: int | list[int]) -> str:
    return "/".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
