"""What do the weights of a network not say? A card in a TOML file: written with what could be read, and read again.

See docs/models.md. What has to be filled in is ``"?"``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedDPMLib.diffusion.names import PREDICTIONS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.scheme_files import SUFFIXES, find_scheme, toml_value
from MedDPMLib.masks.schemes import LabelScheme, load_scheme, scheme_names
from MedDPMLib.models.card import AXES, Card
from MedDPMLib.networks.recognition import FIRST
from MedDPMLib.validation import Rule, either, increasing_pair, list_of, number, printable, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from MedDPMLib.models.official_checkpoint import Checkpoint

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

#: Stands for what is not known.
UNKNOWN = "?"

_LONGEST = 1_000_000

#: Fields of the card that a file may hold; the rest follows from the weights.
FIELDS = (
    "name", "title", "summary", "modalities", "scheme", "channels", "axes", "mask_encoding", "image_range",
    "intensity_range", "prediction", "training", "license", "intended_use", "limitations", "grid", "schedule",
    "training_data", "qualities",
)  # fmt: skip

_REQUIRED = ("name", "title", "modalities", "grid", "axes", "mask_encoding", "image_range", "prediction")

_CHANNELS = list_of(either(number(), printable(200)), 1, 300)

#: What is said of a network of which nobody says more.
_TEXTS = {
    "training": "Trained by others; how is not stated.",
    "license": "Not stated: that of its authors.",
    "intended_use": "Research and teaching. Not for diagnosis, and not for any decision about a patient.",
    "limitations": "Only for masks like those that it was trained on. Anatomy that the mask does not show is invented."
    " It may reproduce parts of its training images. The network was trained by others and its images have not been"
    " validated clinically.",
}


def card_template(checkpoint: Checkpoint, values: Mapping[str, Any] | None = None) -> str:
    """The text of a card for ``checkpoint`` in which everything is filled in that could be read, and the ``values``
    that are known by field."""
    network = checkpoint.network
    file = "".join(letter if letter.isprintable() else "?" for letter in checkpoint.path.name)
    name = checkpoint.facts()["name"]
    known = {
        "name": name,
        "title": name,
        "summary": f"Imported from {file}.",
        "modalities": [UNKNOWN] * network["image_channels"],
        "scheme": UNKNOWN,
        "channels": [UNKNOWN] * network["condition_channels"],
        "axes": UNKNOWN,
        "mask_encoding": [UNKNOWN, UNKNOWN],
        "image_range": [UNKNOWN, UNKNOWN],
        "prediction": "noise",
        **_TEXTS,
        "grid": {"size": [UNKNOWN] * 3, "spacing": [UNKNOWN] * 3, "orientation": UNKNOWN},
        "schedule": dict(checkpoint.schedule or {"name": UNKNOWN, "timesteps": UNKNOWN}),
        **(values or {}),
    }
    comments = {
        "modalities": "What each image channel shows, in order: names of your choice, in small letters.",
        "scheme": f"The labels of the masks: {', '.join(scheme_names())}, or the path of a file of your own"
        " (docs/labels.md).",
        "channels": "What each condition channel is, in order: the name of a label, or a number if the channel has the"
        " same value everywhere.",
        "axes": f'Order of the axes of the network\'s arrays: "{AXES[0]}" as in Med-DDPM, or "{AXES[1]}".',
        "mask_encoding": "Value of a condition channel outside and inside its label: [0, 1] or [-1, 1].",
        "image_range": "Lowest and highest intensity of the images that it was trained on: [-1, 1] or [0, 1].",
        "prediction": f"What the network predicts: {', '.join(PREDICTIONS)}.",
        "grid": "Voxels along x, y and z, their size in mm, and the direction in which each axis runs: LPS, RAS, ...",
        "schedule": "The noise schedule of the training.",
    }
    lines = [
        f"# Card of the network in {file}. Replace every {toml_value(UNKNOWN)}, then run",
        f"# meddpm models import {shlex.quote(file)} --card CARD",
        f"# Read in the file: {checkpoint.describe()}",
        "",
    ]
    tables = [key for key in known if isinstance(known[key], dict)]
    for key in [*(key for key in known if key not in tables), *tables]:
        lines += [f"# {comments[key]}"] if key in comments else []
        if key in tables:
            lines += [f"[{key}]", *(f"{name} = {toml_value(value)}" for name, value in known[key].items()), ""]
        else:
            lines += [f"{key} = {toml_value(known[key])}", *([""] if key in comments else [])]
    return "\n".join(lines).rstrip() + "\n"


def card_values(card: Card) -> dict[str, Any]:
    """The fields of a card file that says what ``card`` says."""
    data = {"axes": card.axes, "image_range": card.image_range, **json.loads(card.to_json())}
    data["channels"] = [*(label.name for label in card.condition_scheme.labels), *card.constants]
    shipped = card.scheme.name in scheme_names() and card.scheme == load_scheme(card.scheme.name)
    data["scheme"] = card.scheme.name if shipped else data["scheme"]
    known = [{key: value for key, value in one.items() if value is not None} for one in data["training_data"]]
    return {key: data[key] for key in FIELDS if key in data} | {"training_data": known}


def read_card_file(path: str | os.PathLike, checkpoint: Checkpoint) -> tuple[Card, dict[str, Tensor]]:
    """The card in the file ``path`` for ``checkpoint``, and its weights, whose condition channels are in its order.

    Raises :class:`MedDPMError`, with the line, for what is missing, still unknown, invalid, or contradicts the weights.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LONGEST:
            raise MedDPMError(f"{path} is too large for a card")
        text = path.read_bytes().decode("utf-8-sig")
        values = tomllib.loads(text)
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:
        raise MedDPMError(f"{path} is no card in TOML ({error!s:.200}): meddpm models card writes one") from error
    return _Reader(path, text, checkpoint).read(values)


class _Reader:
    def __init__(self, path: Path, text: str, checkpoint: Checkpoint) -> None:
        self.path, self.lines, self.checkpoint = path, text.splitlines(), checkpoint

    def read(self, values: dict[str, Any]) -> tuple[Card, dict[str, Tensor]]:
        network = self.checkpoint.network
        for key, value in values.items():
            if key not in FIELDS:
                raise self._wrong(key, f'a card has no field "{key:.50}": it has {", ".join(FIELDS)}')
            self._check_known(key, value)
        given = {"summary": f"Imported from {self.checkpoint.path.name}.", **_TEXTS, **values}
        given["schedule"] = self._schedule(values.get("schedule"))
        scheme = self._scheme(given.pop("scheme", None))
        order, constants = self._channels(given.pop("channels", None), scheme)
        modalities = given.get("modalities")
        if isinstance(modalities, list) and len(modalities) != network["image_channels"]:
            text = f"the network makes {network['image_channels']} images, {len(modalities)} modalities are named"
            raise self._wrong("modalities", text)
        given.setdefault("training_data", [{"name": "not stated", "license": "not stated", "cases": None}])
        if "intensity_range" not in given and "image_range" in given:
            given["intensity_range"] = self._read("image_range", increasing_pair(), given["image_range"])
        given["training_data"] = [
            {"cases": None, **entry} if isinstance(entry, dict) else entry for entry in given["training_data"]
        ]
        kept = {name: value for name, value in network.items() if not name.endswith("_channels")}
        if missing := [name for name in _REQUIRED if name not in given]:
            raise MedDPMError(f'{self.path} lacks the field "{missing[0]}": meddpm models card writes all of them')
        try:
            card = Card(network=kept, scheme=scheme, constants=constants, **given)
            self._check_grid(card)
        except MedDPMError as error:
            raise self._wrong(_about(str(error)), str(error)) from None
        except TypeError as error:
            raise MedDPMError(f"{self.path} is no valid card: {error}") from error
        weights = dict(self.checkpoint.weights)
        first = weights[FIRST]
        images = list(range(network["image_channels"]))
        weights[FIRST] = first[:, [*images, *(len(images) + channel for channel in order)]].contiguous()
        return card, weights

    def _check_known(self, key: str, value: Any, name: str | None = None) -> None:
        if isinstance(value, dict):
            for inner, entry in value.items():
                self._check_known(key, entry, inner)
        elif value == UNKNOWN or (isinstance(value, list) and UNKNOWN in value):
            field = f"{key}.{name}" if name else key
            raise self._wrong(name or key, f'"{field}" is not filled in: replace every {toml_value(UNKNOWN)}')

    def _schedule(self, said: Any) -> Any:
        read = self.checkpoint.schedule
        if said is None and read is None:
            raise MedDPMError(f'{self.path} lacks the field "schedule", and the weights do not say it')
        if said is not None and read is not None and said != dict(read):
            text = (
                f"the file of the weights was trained with the schedule {read['name']} of {read['timesteps']} timesteps"
            )
            raise self._wrong("schedule", f'"schedule" is another one: {text}')
        return said if read is None else dict(read)

    def _scheme(self, said: Any) -> LabelScheme:
        if isinstance(said, dict):
            return LabelScheme.from_dict(said)
        if not isinstance(said, str):
            raise self._wrong("scheme", 'the "scheme" is missing: name one, or the path of a file')
        try:
            return find_scheme(self.path.parent / said if Path(said).suffix.lower() in SUFFIXES else said)
        except MedDPMError as error:
            raise self._wrong("scheme", str(error)) from None

    def _channels(self, said: Any, scheme: LabelScheme) -> tuple[list[int], tuple[float, ...]]:
        """The places of the labels' channels, by their values, then of the constant ones; and their values."""
        count = self.checkpoint.network["condition_channels"]
        entries: Sequence = [label.name for label in scheme.labels] if said is None else said
        entries = self._read("channels", _CHANNELS, entries)
        if len(entries) != count:
            text = f"the network has {count} condition channels, {len(entries)} are described"
            raise self._wrong("channels", f'{text}: list in "channels" what each of them is')
        places: dict[int, int] = {}
        constants = []
        for place, entry in enumerate(entries):
            if not isinstance(entry, str):
                constants.append(place)
                continue
            label = scheme.label_by_name(entry)
            if label is None or label.value in places:
                what = "is there twice" if label else f'is no label of the scheme "{scheme.name}"'
                raise self._wrong("channels", f"the channel {quoted(entry)} {what} ({scheme.describe_labels()})")
            places[label.value] = place
        if absent := [label.name for label in scheme.labels if label.value not in places]:
            text = f'the label "{absent[0]}" of the scheme "{scheme.name}" has no channel'
            raise self._wrong("channels", f"{text}: use a scheme with the network's own labels (meddpm labels new)")
        order = [*(places[label.value] for label in scheme.labels), *constants]
        return order, tuple(float(entries[place]) for place in constants)

    def _read(self, key: str, rule: Rule, value: Any) -> Any:
        try:
            return rule.read(value, f'"{key}"')
        except MedDPMError as error:
            raise self._wrong(key, str(error)) from None

    def _check_grid(self, card: Card) -> None:
        multiple = 2 ** (len(self.checkpoint.network["multipliers"]) - 1)
        if any(side % multiple for side in card.grid.size):
            raise MedDPMError(
                f'"size": this network needs sides that are multiples of {multiple}, not {card.grid.size}'
            )

    def _wrong(self, key: str | None, text: str) -> MedDPMError:
        pattern = re.compile(rf'\s*\[*\s*"?{re.escape(key or "")}"?\s*[=\].]')
        line = next((n for n, line in enumerate(self.lines, 1) if key and pattern.match(line)), None)
        return MedDPMError(f"{self.path}, line {line}: {text}" if line else f"{self.path}: {text}")


def _about(message: str) -> str | None:
    """The field that a message of :class:`Card` is about; those of the grid are not always quoted in it."""
    parts = ("orientation", "spacing", "size")
    quoted = (key for key in (*parts, *FIELDS) if f'"{key}"' in message)
    return next(quoted, next((key for key in parts if re.search(rf"\b{key}s?\b", message)), None))
