"""What describes a segmenter? A model that makes a mask from a scan, where the others make volumes from a mask."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.models.card import (
    DATA_RULE,
    MAX_JSON,
    NAME_RULE,
    NETWORK_RULE,
    SCHEME_RULE,
    TEXT_RULE,
    Card,
    as_lines,
    origin_and_use,
)
from MedDPMLib.validation import build, check_fields, field, list_of, number, quoted, read_json, table_of, whole

#: What a card is of: the field "kind" in its JSON. A card without it is a generator's.
GENERATOR, SEGMENTER = "generator", "segmenter"

#: Version of a segmenter's card.
FORMAT = 1

#: How the scans that the figures were measured on are called when all modalities were given together.
ALL = "all"

_DICE = table_of(NAME_RULE, table_of(TEXT_RULE, number(0, 1)))


@dataclass(frozen=True)
class SegmenterCard:
    """A segmenter's card. An invalid value raises :class:`MedDPMError` with a sentence that names the field.

    The network's first output has the background and then the structures and the rest of ``scheme``, in the order of
    their values; the second the background and then the tumor regions. Its first input is a scan of any contrast, the
    others are those of ``modalities`` that are known to be such, 0 where one is not given.
    """

    name: str = field(NAME_RULE)
    title: str = field(TEXT_RULE)
    summary: str = field(TEXT_RULE)
    #: Kind and numbers for :func:`MedDPMLib.networks.build_network`, without inputs and classes.
    network: dict = field(NETWORK_RULE)
    scheme: LabelScheme = field(SCHEME_RULE)
    #: The modalities that help where it is said which scan is which.
    modalities: tuple[str, ...] = field(list_of(NAME_RULE, 0, 16, unique=True))
    #: So many of them at least are needed to outline a tumor.
    tumor_modalities: int = field(whole(1, 16))
    #: Side of a voxel in mm.
    spacing: float = field(number(0.1, 10))
    training: str = field(TEXT_RULE)
    training_data: tuple[dict, ...] = field(list_of(DATA_RULE, 1, 100))
    #: The names of all cases that it was trained on: on no other list can it be a judge.
    training_cases: tuple[str, ...] = field(list_of(TEXT_RULE, 0, 10_000))
    license: str = field(TEXT_RULE)
    intended_use: str = field(TEXT_RULE)
    limitations: str = field(TEXT_RULE)
    #: Mean Dice on cases that it was not trained on: by scan (a modality or :data:`ALL`), then by label.
    dice: dict[str, dict[str, float]] = field(_DICE, default_factory=dict)
    #: The names of those cases.
    dice_cases: tuple[str, ...] = field(list_of(TEXT_RULE, 0, 10_000), default=())

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.structures:
            raise MedDPMError(f'a segmenter needs structures, which the scheme "{self.scheme.name}" does not have')
        trained = sorted({*self.training_cases} & {*self.dice_cases})
        if trained:
            raise MedDPMError(f'"dice_cases" has {trained[0]}, which the model was trained on: leave it out')

    @property
    def structures(self) -> list[int]:
        """The values of the first output's classes after the background."""
        return [label.value for label in self.scheme.labels if label.role != "tumor"]

    @property
    def tumor(self) -> list[int]:
        """The values of the second output's classes after the background; empty if it has none."""
        return [label.value for label in self.scheme.tumor] if self.modalities else []

    @property
    def network_description(self) -> dict:
        """The argument of :func:`MedDPMLib.networks.build_network`: :attr:`network` with inputs and classes."""
        classes = [1 + len(self.structures)] + ([1 + len(self.tumor)] if self.tumor else [])
        return {**self.network, "inputs": 1 + len(self.modalities), "classes": classes}

    def to_json(self) -> str:
        """The card as one line of JSON; :func:`card_from_json` reads it."""
        data = {"kind": SEGMENTER, "format": FORMAT, **{one.name: getattr(self, one.name) for one in fields(self)}}
        data["scheme"] = self.scheme.to_dict()
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def describe(self) -> str:
        """The card as text for a terminal or a text field, in lines of at most 100 characters."""
        labels = self.scheme.describe_labels()
        numbers = ", ".join(f"{name} {value}" for name, value in self.network.items() if name != "kind")
        sections = {
            "Makes": f"masks of the scheme {self.scheme.name} from scans: {labels}",
            "Scans": f"of any contrast, at {self.spacing:g} mm; known by name: {', '.join(self.modalities) or 'none'}",
            "Tumor": f"outlined where {self.tumor_modalities} or more modalities are given" if self.tumor else "",
            "Network": f"{self.network['kind']} ({numbers})",
            "Dice": "; ".join(f"{scan} {_mean(by_label):.2f}" for scan, by_label in self.dice.items()),
            "Measured on": ", ".join(self.dice_cases),
            **origin_and_use(self),
        }
        return as_lines(f"{self.title} ({self.name})", self.summary, sections)


def card_from_json(text: str) -> Card | SegmenterCard:
    """The card in ``text``, of whichever kind of model, from a file of unknown origin."""
    if len(text) > MAX_JSON:
        raise MedDPMError(f"the model card is longer than {MAX_JSON:,} characters: the file was not made by MedDPM")
    data = read_json(text, "the model card")
    kind = data.pop("kind", GENERATOR)
    if kind == GENERATOR:
        return Card.from_dict(data)
    if kind != SEGMENTER:
        raise MedDPMError(f"the model card is of the kind {quoted(kind)}, made by a newer version of MedDPM: update it")
    version = whole(1).read(data.pop("format", None), 'the model card\'s "format"')
    if version > FORMAT:
        raise MedDPMError(f"the model card has format {version}, made by a newer version of MedDPM: update MedDPM")
    try:
        return build(SegmenterCard, data, "the card")
    except MedDPMError as error:
        raise MedDPMError(f"the model card is invalid: {error}") from None


def _mean(by_label: dict[str, float]) -> float:
    return sum(by_label.values()) / max(1, len(by_label))
