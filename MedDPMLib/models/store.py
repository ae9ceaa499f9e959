"""Which models are installed, and where?

Bundled models lie in the package, the user's own in a folder of the user's: that of the operating system for
application data, or the one that the environment variable MEDDPM_MODELS names.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.bundle import SUFFIX, bundle_hash, copy_bundle, is_bare, read_bundle, read_card, write_bundle
from MedDPMLib.models.card import Card, check_name
from MedDPMLib.models.segmenter_card import GENERATOR, SEGMENTER, SegmenterCard
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.paths import RESOURCES, reachable
from MedDPMLib.validation import quoted

if TYPE_CHECKING:
    import torch

BUNDLED_MODELS = RESOURCES / "models"

#: What is wrong with a model that is not of the kind that is wanted.
_OTHER_KIND = {
    GENERATOR: "is a segmenter, which makes masks from scans (meddpm segment): choose a model that makes volumes",
    SEGMENTER: "makes volumes from masks: choose a segmenter, which makes masks from scans",
}


@dataclass(frozen=True)
class ModelEntry:
    """A model file: ``name``, ``path`` and whether it is ``bundled`` with the package.

    The rest is read when it is asked for, so that a list costs little.
    """

    name: str
    path: Path
    bundled: bool

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return bundle_hash(self.path)

    @cached_property
    def card(self) -> Card | SegmenterCard:
        """The model's card; :class:`MedDPMError` if the file is broken."""
        return _card(self.path)

    @property
    def generator_card(self) -> Card:
        """:attr:`card`, of a model that makes volumes; :class:`MedDPMError` for a segmenter, too."""
        if not isinstance(self.card, Card):
            raise MedDPMError(f"{self.name} {_OTHER_KIND[GENERATOR]}")
        return self.card

    @cached_property
    def kind(self) -> str:
        """:data:`GENERATOR` or :data:`SEGMENTER`; what cannot be read, and every checkpoint, counts as the former."""
        try:
            return SEGMENTER if isinstance(read_card(self.path), SegmenterCard) else GENERATOR
        except MedDPMError:
            return GENERATOR

    @cached_property
    def problem(self) -> str | None:
        """Why the file cannot be used, in a sentence; None if its card and size are valid."""
        try:
            self.card  # noqa: B018
        except MedDPMError as error:
            return str(error)
        return None


class ModelStore:
    """The bundled models and those in ``folder`` (None: MEDDPM_MODELS, else the user's data folder)."""

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self.folder = reachable(folder if folder is not None else _user_folder())

    def list(self, kind: str | None = GENERATOR) -> list[ModelEntry]:
        """The bundled models of that ``kind`` (None: of every kind), then the user's, each by name.

        Broken ones too: see :attr:`ModelEntry.problem`.
        """
        entries = []
        for folder, bundled in ((BUNDLED_MODELS, True), (self.folder, False)):
            paths = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
            entries += [ModelEntry(p.stem, p, bundled) for p in paths if not p.name.startswith(".") and p.is_file()]
        return [entry for entry in entries if kind is None or entry.kind == kind]

    def find(self, name_or_path: str | os.PathLike, kind: str | None = GENERATOR) -> ModelEntry:
        """The model of that name, or the bundle or checkpoint at that path, of that ``kind`` (None: of any).

        A name means an installed model, even where a file is called the same; of two models with one name the
        user's own. Raises :class:`MedDPMError` for what is neither, and for a model of another kind.
        """
        entries = [entry for entry in self.list(None) if entry.name == str(name_or_path)]
        path = reachable(name_or_path)
        if not entries and path.is_file():
            entries = [ModelEntry(path.stem, path, bundled=False)]
        if entries:
            if kind is not None and entries[-1].kind != kind:
                raise MedDPMError(f"{name_or_path} {_OTHER_KIND[kind]}")
            return entries[-1]
        names = sorted({entry.name for entry in self.list(kind)})
        raise MedDPMError(
            f"there is no model {quoted(name_or_path, 200)}: name a file, or an installed model"
            f" ({', '.join(names) or 'none yet'})"
        )

    def add(
        self, path: str | os.PathLike, name: str | None = None, card_file: str | os.PathLike | None = None
    ) -> ModelEntry:
        """Installs the bundle or checkpoint at ``path`` as ``name`` (None: the name in its card).

        A bundle is copied as it is, with the weights that it shares, a checkpoint becomes a bundle with the same
        weights; either is checked first. A checkpoint that is none of the published ones needs a ``card_file``
        (:mod:`MedDPMLib.models.card_file`). Raises :class:`MedDPMError` if it is broken, and if a different model has
        that name already.
        """
        path = reachable(path)
        card, state = load_card_and_state(path) if card_file is None else _described(path, card_file)
        name = check_name(card.name if name is None else name)
        target = self.folder / f"{name}{SUFFIX}"
        with atomic_write(target) as temporary:
            if _is_checkpoint(path):
                write_bundle(temporary, card, state)
            else:
                copy_bundle(path, temporary)
            incoming = bundle_hash(temporary)
            for entry in self.list(None):
                if entry.name == name and entry.hash != incoming:
                    where = "comes with MedDPM" if entry.bundled else f"lies at {entry.path}"
                    raise MedDPMError(
                        f"another model called {quoted(name)} {where}",
                        remedy="install this one under another name",
                        code="model-name-taken",
                        file=path,
                    )
        return ModelEntry(name, target, bundled=False)

    def export(self, name: str | os.PathLike, path: str | os.PathLike) -> Path:
        """Copies the model called ``name`` to the file, or into the folder, ``path``; returns the copy's path.

        Raises :class:`MedDPMError` if another file is there already.
        """
        entry = self.find(name, None)
        target = Path(path)
        if target.is_dir():
            target /= f"{entry.name}{SUFFIX}"
        with atomic_write(target) as temporary:
            if _is_checkpoint(entry.path):
                shutil.copyfile(entry.path, temporary)
            else:
                copy_bundle(entry.path, temporary)
            if target.exists() and bundle_hash(target) != bundle_hash(temporary):
                raise MedDPMError(f"{target} exists already and is another file: choose another name")
        return target

    def remove(self, name: str) -> None:
        """Deletes the user's model called ``name``. Raises :class:`MedDPMError` for one that came with MedDPM."""
        entries = [entry for entry in self.list(None) if entry.name == name]
        if not entries:
            raise MedDPMError(f"there is no model {quoted(name)} in {self.folder}")
        if entries[-1].bundled:
            raise MedDPMError(
                f"the model {quoted(name)} comes with MedDPM and stays: only imported models can be removed"
            )
        try:
            entries[-1].path.unlink()
        except OSError as error:
            raise MedDPMError(f"{entries[-1].path} cannot be removed ({error.strerror}): close what uses it") from error


def load_card_and_state(path: str | os.PathLike) -> tuple[Card | SegmenterCard, dict[str, torch.Tensor]]:
    """Card and state dict of the bundle or published checkpoint at ``path``: content tells which it is, no suffix."""
    if _is_checkpoint(Path(path)):
        from MedDPMLib.models.official_checkpoint import read_checkpoint

        return read_checkpoint(path)
    return read_bundle(path)


def _described(path: Path, card_file: str | os.PathLike) -> tuple[Card, dict[str, torch.Tensor]]:
    """Card and state dict of the checkpoint at ``path`` as ``card_file`` describes it."""
    if not _is_checkpoint(path):
        raise MedDPMError(f"{path} is no checkpoint: a bundle carries its own card, import it without one")
    from MedDPMLib.models.card_file import read_card_file
    from MedDPMLib.models.official_checkpoint import open_checkpoint

    return read_card_file(card_file, open_checkpoint(path))


def _card(path: Path) -> Card | SegmenterCard:
    return load_card_and_state(path)[0] if _is_checkpoint(path) else read_card(path)


def _is_checkpoint(path: Path) -> bool:
    """Whether the file begins as a zip archive or a pickle does, or has weights without a card; a bundle's ninth byte
    opens its JSON header."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    return is_bare(path) if start[8:] == b"{" else start.startswith((b"PK", b"\x80"))


def _user_folder() -> Path:
    folder = os.environ.get("MEDDPM_MODELS")
    if folder:
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_data_dir("MedDPM", appauthor=False)) / "models"
