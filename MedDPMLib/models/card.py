"""What does a model say about itself? Everything that is needed to use it, and to judge it, beside the weights."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from MedDPMLib.diffusion.names import MAX_TIMESTEPS, PREDICTIONS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.runtime.paths import RESOURCES

#: Version of the card's JSON; a reader refuses a newer one.
FORMAT = 1

#: The three settings that a card recommends, the quickest first.
QUALITIES = ("draft", "standard", "reference")

_CARDS = RESOURCES / "cards"

# Bounds on what nobody vouches for: far beyond anything in use, far below what hurts.
_MAX_JSON = 1_000_000
_MAX_TEXT = 10_000
_MAX_SIDE = 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
#: Windows opens a device, not a file, for these names, whatever the suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def check_name(name: object, what: str = "a model's name") -> str:
    """``name`` if it can name a file on every system: lower-case letters, digits, ".", "_" and "-", at most 64."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICES.fullmatch(name) or name.endswith("."):
        raise MedDPMError(
            f'{what} must be 1 to 64 lower-case letters, digits, ".", "_" or "-", beginning with a letter or digit,'
            f" not {name!r:.100}"
        )
    return name


def default_qualities(timesteps: int) -> dict[str, dict]:
    """Sampler and steps by quality, for cards that recommend none themselves and a schedule of ``timesteps``."""
    return {
        "draft": {"sampler": "dpm-solver++", "steps": min(8, timesteps)},
        "standard": {"sampler": "dpm-solver++", "steps": min(20, timesteps)},
        "reference": {"sampler": "ddpm", "steps": timesteps},
    }


@dataclass(frozen=True)
class Card:
    """A model's card. Each mistake raises :class:`MedDPMError` with a sentence that names the field."""

    #: What it is called on the command line and in file names; see :func:`check_name`.
    name: str
    title: str
    summary: str
    #: Kind and numbers for :func:`MedDPMLib.networks.build_network`, without the channels of image and condition.
    network: dict
    #: The labels that the mask may hold, one condition channel each.
    scheme: LabelScheme
    #: The images made, one channel each: "t1", "t1ce", "t2", "flair".
    modalities: tuple[str, ...]
    grid: Grid
    #: Value of a condition channel outside and inside its label.
    mask_encoding: tuple[float, float]
    #: Lowest and highest intensity of the network's images.
    intensity_range: tuple[float, float]
    #: ``name`` and ``timesteps`` for :func:`MedDPMLib.diffusion.schedule.make_schedule`.
    schedule: dict
    #: What the network predicts: one of :data:`PREDICTIONS`.
    prediction: str
    #: How it was trained, in words.
    training: str
    #: For each data set ``name``, ``licence`` and ``cases`` (None where it is not known).
    training_data: tuple[dict, ...]
    licence: str
    intended_use: str
    limitations: str
    #: ``sampler`` and ``steps`` for each of :data:`QUALITIES`; None stands for :func:`default_qualities`.
    qualities: dict[str, dict] | None = None
    #: Whether three more condition channels follow the labels: where each voxel lies on the grid, see
    #: :func:`MedDPMLib.masks.condition.condition`.
    positions: bool = False
    #: The scheme of the network's condition, where it has structures that the mask leaves open: they are taken from a
    #: template, see :mod:`MedDPMLib.inference.atlas`. None is the mask's own.
    completion: LabelScheme | None = None
    #: Share of the training in which all labels were taken away. Above 0, the model knows what it draws without
    #: labels, and can be guided towards them (Ho and Salimans 2022, arXiv 2207.12598).
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.name, '"name"')
        for field in ("title", "summary", "training", "licence", "intended_use", "limitations"):
            _text(field, getattr(self, field))
        if not isinstance(self.scheme, LabelScheme):
            raise MedDPMError('"scheme" must be a label scheme')
        _check_completion(self.completion, self.scheme)
        if not isinstance(self.grid, Grid):
            raise MedDPMError('"grid" must be a grid')
        if self.prediction not in PREDICTIONS:
            raise MedDPMError(f'"prediction" must be one of {", ".join(PREDICTIONS)}, not {self.prediction!r:.50}')
        if not isinstance(self.positions, bool):
            raise MedDPMError(f'"positions" must be true or false, not {self.positions!r:.50}')
        if not 0 <= _finite('"label_dropout"', self.label_dropout) < 1:
            raise MedDPMError(f'"label_dropout" must be at least 0 and below 1, not {self.label_dropout:g}')
        schedule = _table("schedule", self.schedule, ("name", "timesteps"))
        check_name(schedule["name"], '"schedule": "name"')
        timesteps = _whole('"schedule": "timesteps"', schedule["timesteps"], 1, MAX_TIMESTEPS)
        qualities = default_qualities(timesteps) if self.qualities is None else self.qualities
        checked = {
            "network": _network(self.network),
            "modalities": _modalities(self.modalities),
            "mask_encoding": _pair("mask_encoding", self.mask_encoding),
            "intensity_range": _pair("intensity_range", self.intensity_range),
            "schedule": schedule,
            "training_data": _training_data(self.training_data),
            "qualities": _qualities(qualities, timesteps),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)

    @property
    def condition_scheme(self) -> LabelScheme:
        """The labels that the network's condition has a channel for each of."""
        return self.completion or self.scheme

    @property
    def network_description(self) -> dict:
        """What :func:`MedDPMLib.networks.build_network` takes: :attr:`network` with its channels."""
        condition = len(self.condition_scheme.labels) + (3 if self.positions else 0)
        channels = {"image_channels": len(self.modalities), "condition_channels": condition}
        return {**self.network, **channels}

    def to_json(self) -> str:
        """The card as one line of JSON; :meth:`from_json` reads it."""
        data = {"format": FORMAT, **{field.name: getattr(self, field.name) for field in fields(self)}}
        data["scheme"] = self.scheme.to_dict()
        if self.completion is None:
            del data["completion"]  # a card without it is read by older versions, too
        else:
            data["completion"] = self.completion.to_dict()
        data["grid"] = {"size": self.grid.size, "spacing": self.grid.spacing, "orientation": self.grid.orientation}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Reads :meth:`to_json`'s text, from a file that nobody vouches for."""
        if len(text) > _MAX_JSON:
            raise MedDPMError(
                f"the model card is longer than {_MAX_JSON:,} characters: the file was not made by MedDPM"
            )
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MedDPMError(f"the model card is not JSON: the file is damaged ({str(error):.80})") from None
        return cls._from_dict(data)

    @classmethod
    def _from_dict(cls, data: object) -> Card:
        if not isinstance(data, dict):
            raise MedDPMError("the model card is not a table: the file is damaged")
        version = _whole('the model card\'s "format"', data.get("format"), 1, 10**9)
        if version > FORMAT:
            raise MedDPMError(f"the model card has format {version}, made by a newer version of MedDPM: update MedDPM")
        known = [field.name for field in fields(cls)]
        try:
            values = _table(
                "the model card", data, ("format", *known),
                optional=("qualities", "positions", "completion", "label_dropout"),
            )  # fmt: skip
            del values["format"]
            values["scheme"] = LabelScheme.from_dict(values["scheme"])
            if "completion" in values:
                values["completion"] = LabelScheme.from_dict(values["completion"])
            values["grid"] = _grid(values["grid"])
            return cls(**values)
        except MedDPMError as error:
            raise MedDPMError(f"the model card is not sound: {error}") from None

    def describe(self) -> str:
        """The card in plain words, for a terminal or a text field: lines of at most 100 characters."""
        grid = self.grid
        spacing = " x ".join(f"{mm:g}" for mm in grid.spacing)
        numbers = ", ".join(f"{name} {_spoken(value)}" for name, value in self.network.items() if name != "kind")
        sections = {
            "Makes": ", ".join(self.modalities),
            "From": f"a mask with {self.scheme.describe_labels()} (scheme {self.scheme.name})",
            "Completed": f"by a template's structures (scheme {self.completion.name})" if self.completion else "",
            "Grid": f"{' x '.join(map(str, grid.size))} voxels of {spacing} mm, {grid.orientation}",
            "Qualities": "; ".join(f"{name}: {q['sampler']}, {q['steps']} steps" for name, q in self.qualities.items()),
            "Network": f"{self.network['kind']} ({numbers}), predicts {self.prediction}",
            "Schedule": f"{self.schedule['name']}, {self.schedule['timesteps']} timesteps",
            "Guidance": "can be guided towards its labels" if self.label_dropout else "none: trained with labels only",
            "Training": self.training,
            "Data": "; ".join(
                f"{data['name']} ({data['cases'] or 'an unstated number of'} cases; licence: {data['licence']})"
                for data in self.training_data
            ),
            "Licence": self.licence,
            "Intended use": self.intended_use,
            "Limitations": self.limitations,
        }
        lines = [f"{self.title} ({self.name})", *textwrap.wrap(self.summary, 100), ""]
        for heading, text in sections.items():
            if not text:
                continue
            lines += textwrap.wrap(text, 100, initial_indent=f"{heading:<14}", subsequent_indent=" " * 14)
        return "\n".join(lines)


@lru_cache
def official_cards() -> tuple[Card, ...]:
    """The cards of the two published Med-DDPM networks."""
    cards = []
    for path in sorted(_CARDS.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        cards.append(Card._from_dict({**data, "scheme": load_scheme(data["scheme"]).to_dict()}))
    return tuple(cards)


# Checking what nobody vouches for --------------------------------------------------------------------


def _table(field: str, value: object, keys: Sequence[str], optional: Sequence[str] = ()) -> dict:
    """``value`` copied, if it is a table with exactly these ``keys``."""
    if not isinstance(value, Mapping):
        raise MedDPMError(f'"{field}" must be a table with {", ".join(keys)}')
    for key in keys:
        if key not in value and key not in optional:
            raise MedDPMError(f'"{field}" lacks "{key}"')
    for key in value:
        if key not in keys:
            raise MedDPMError(f'"{field}" has the unknown entry {key!r:.50}')
    return dict(value)


def _check_completion(completion: object, scheme: LabelScheme) -> None:
    """Only a scheme that has a rest, and every tumour label of the mask's, can complete it."""
    if completion is None:
        return
    if not isinstance(completion, LabelScheme):
        raise MedDPMError('"completion" must be a label scheme')
    if any(label.role == "structure" for label in scheme.labels):
        raise MedDPMError(f'the scheme "{scheme.name}" has structures of its own: there is nothing to complete')
    lacking = [label.name for label in scheme.tumour if completion.label_by_name(label.name) is None]
    if lacking or completion.rest is None:
        raise MedDPMError(
            f'"completion" lacks {lacking[0] if lacking else "a label for the rest of the brain"}: it cannot complete'
            f' masks of the scheme "{scheme.name}"'
        )


def _text(field: str, value: object) -> str:
    # Control characters would reach a terminal.
    if (
        not isinstance(value, str)
        or not value.strip()
        or len(value) > _MAX_TEXT
        or not value.replace("\n", " ").isprintable()
    ):
        raise MedDPMError(f'"{field}" must be a printable text of 1 to {_MAX_TEXT:,} characters')
    return value


def _whole(what: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise MedDPMError(f"{what} must be a whole number from {low} to {high}, not {value!r:.50}")
    return value


def _finite(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9 or math.isnan(value):
        raise MedDPMError(f"{what} must be a finite number, not {value!r:.50}")
    return float(value)


def _items(field: str, value: object, low: int, high: int) -> Sequence:
    if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
        raise MedDPMError(f'"{field}" must be a list of {low if low == high else f"{low} to {high}"} entries')
    return value


def _pair(field: str, value: object) -> tuple[float, float]:
    low, high = (_finite(f'"{field}"', entry) for entry in _items(field, value, 2, 2))
    if low >= high:
        raise MedDPMError(f'"{field}" must be a lower and a higher number, not {low:g} and {high:g}')
    return low, high


def _modalities(value: object) -> tuple[str, ...]:
    names = tuple(check_name(name, 'each of "modalities"') for name in _items("modalities", value, 1, 16))
    if len(set(names)) != len(names):
        raise MedDPMError('"modalities" must not name one twice')
    return names


def _network(value: object) -> dict:
    """Only the form: whether the numbers make a network, :mod:`MedDPMLib.networks` says."""
    if not isinstance(value, Mapping) or not 1 <= len(value) <= 32:
        raise MedDPMError('"network" must be a table with "kind" and the numbers of that kind')
    network = {}
    for key, number in value.items():
        check_name(key, 'each entry of "network"')
        if key in ("image_channels", "condition_channels"):
            raise MedDPMError(f'"network" must not have "{key}": modalities and labels decide it')
        what = f'"network": "{key}"'
        if key in ("kind", "conditioning"):
            network[key] = check_name(number, what)
        elif isinstance(number, (list, tuple)):
            network[key] = [_whole(what, entry, 1, 10**6) for entry in _items(f"network: {key}", number, 0, 32)]
        else:
            network[key] = _whole(what, number, 1, 10**6)
    if "kind" not in network:
        raise MedDPMError('"network" lacks "kind"')
    return network


def _grid(value: object) -> Grid:
    grid = _table("grid", value, ("size", "spacing", "orientation"))
    size = tuple(_whole('"grid": "size"', side, 1, _MAX_SIDE) for side in _items("grid: size", grid["size"], 3, 3))
    spacing = tuple(_finite('"grid": "spacing"', mm) for mm in _items("grid: spacing", grid["spacing"], 3, 3))
    return Grid(size, spacing, _text("grid: orientation", grid["orientation"]))


def _training_data(value: object) -> tuple[dict, ...]:
    sets = tuple(
        _table("training_data", entry, ("name", "licence", "cases")) for entry in _items("training_data", value, 1, 100)
    )
    for entry in sets:
        _text("training_data: name", entry["name"])
        _text("training_data: licence", entry["licence"])
        if entry["cases"] is not None:
            _whole('"training_data": "cases"', entry["cases"], 1, 10**9)
    return sets


def _qualities(value: object, timesteps: int) -> dict[str, dict]:
    qualities = {}
    for name, quality in _table("qualities", value, QUALITIES).items():
        quality = _table(f"qualities: {name}", quality, ("sampler", "steps"))
        # Which samplers there are, MedDPMLib.diffusion.samplers says; a newer one must not make the card unreadable.
        _text(f"qualities: {name}: sampler", quality["sampler"])
        _whole(f'"qualities": "{name}": "steps"', quality["steps"], 1, timesteps)
        qualities[name] = quality
    return qualities


def _spoken(value: int | list[int]) -> str:
    return "/".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
