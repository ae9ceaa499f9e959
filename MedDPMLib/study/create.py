"""From two folders to a study: prepared cases under random names, the order of each reader, the truth encrypted."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study import blinding
from MedDPMLib.study.casefile import common_length, compress, write_case
from MedDPMLib.study.definition import (
    CASES,
    READERS,
    Definition,
    Margin,
    Preparation,
    Sessions,
    Tasks,
    check_readers,
    slug,
    write_definition,
)
from MedDPMLib.study.order import Material, orders
from MedDPMLib.study.truth import write_truth

#: The source of real cases, where synthetic ones have their model.
REAL = "real"


@dataclass(frozen=True)
class Plan:
    """What an organizer asks for. ``real`` is case -> modality -> file, ``synthetic`` the same for each model."""

    title: str
    modalities: tuple[str, ...]
    real: Mapping[str, Mapping[str, Path]]
    synthetic: Mapping[str, Mapping[str, Mapping[str, Path]]]
    readers: tuple[str, ...]
    margin: Margin
    tasks: Tasks = Tasks()
    sessions: Sessions = Sessions()
    levels: int = 256
    smoothing: float = 0.0
    spacing: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_readers(self.readers)
        if not self.synthetic or not all(self.synthetic.values()):
            raise MedDPMError("there are no synthetic cases: a study needs cases of both kinds")
        if not self.real:
            raise MedDPMError("there are no real cases: a study needs cases of both kinds")
        if not 16 <= self.levels <= 256:
            raise MedDPMError(f"{self.levels} gray levels cannot be stored: choose 16 to 256")
        if self.smoothing < 0 or (self.spacing is not None and not self.spacing > 0):
            raise MedDPMError("smoothing has to be 0 mm or more, and the spacing above 0")
        if self.sessions.training < 0 or self.sessions.training % 2:
            raise MedDPMError(f"{self.sessions.training} training cases cannot be of both kinds alike: choose 0, 2, 4")
        left = len(self.real) - self.sessions.training // 2
        left_synthetic = sum(map(len, self.synthetic.values())) - self.sessions.training // 2
        if min(left, left_synthetic) < 2:
            raise MedDPMError(
                f"{len(self.real)} real and {sum(map(len, self.synthetic.values()))} synthetic cases are too few with"
                f" {self.sessions.training} for training: two of each kind have to be left"
            )


@dataclass(frozen=True)
class Source:
    """Where a case comes from; ``model`` is empty for a real one."""

    name: str
    model: str
    files: Mapping[str, Path]


def create(folder: Path, plan: Plan, passphrase: str, advance=str) -> tuple[Definition, list[str]]:
    """Makes the study in ``folder``, which must not be there; ``advance(doing)`` is called twice for each case.

    Returns the definition and what the organizer should know. Nothing is left of a study that could not be finished.
    """
    folder = Path(folder)
    if folder.exists():
        raise MedDPMError(f"{folder} exists already: choose a new folder, an existing study is never changed")
    rng = np.random.default_rng(plan.seed)
    sources = _named(plan)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".study-", dir=folder.parent))
    try:
        form = blinding.common_form(
            {source.name: source.files for source in sources.values()},
            levels=plan.levels,
            smoothing=plan.smoothing,
            spacing=plan.spacing,
            advance=advance,
        )
        widths = _write_cases(unfinished, sources, form, advance)
        material = _material(plan, sources, rng)
        definition = Definition(
            title=plan.title,
            identifier=secrets.token_hex(8),
            created=date.today().isoformat(),
            modalities=plan.modalities,
            models=tuple(plan.synthetic),
            readers=plan.readers,
            real=sum(not truth for truth in material.truth.values()),
            synthetic=sum(material.truth.values()),
            margin=plan.margin,
            preparation=Preparation(
                form.grid.size, form.grid.spacing[0], form.grid.orientation, form.levels, form.smoothing
            ),
            tasks=plan.tasks,
            sessions=plan.sessions,
        )
        write_definition(unfinished, definition)
        for reader, shown in zip(
            plan.readers, orders(material, len(plan.readers), plan.tasks, plan.sessions, rng), strict=True
        ):
            path = unfinished / READERS / f"{slug(reader)}.json"
            path.parent.mkdir(exist_ok=True)
            stored = {"study": definition.hash, "reader": reader, "presentations": [one.to_dict() for one in shown]}
            path.write_text(json.dumps(stored, indent=1, ensure_ascii=False), encoding="utf-8")
        write_truth(unfinished, _truth(plan, sources, material), passphrase, definition.hash)
        unfinished.rename(folder)
    except OSError as error:
        raise MedDPMError(
            f"{folder} cannot be written ({error.strerror or error}): free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return definition, _notes(sources, widths, form)


def _named(plan: Plan) -> dict[str, Source]:
    """Random name -> source, in the order of the names: nothing of the classes is left in it."""
    everything = [Source(f"{REAL}/{name}", "", files) for name, files in plan.real.items()]
    for model, cases in plan.synthetic.items():
        everything += [Source(f"{model}/{name}", model, files) for name, files in cases.items()]
    names: set[str] = set()
    while len(names) < len(everything):
        names.add(secrets.token_hex(4))
    shuffled = list(names)
    secrets.SystemRandom().shuffle(shuffled)
    return dict(sorted(zip(shuffled, everything, strict=True)))


def _write_cases(folder: Path, sources: Mapping[str, Source], form: blinding.Form, advance) -> dict[str, float]:
    """Writes all cases and returns how smooth each is; all files get one length and one time stamp."""
    compressed: dict[Path, Path] = {}
    widths = {}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".case-") as waiting:
        for number, (case, source) in enumerate(sources.items()):
            prepared = blinding.prepare(source.name, source.files, form)
            for modality, array in prepared.items():
                raw, deflated = (Path(waiting) / f"{number}-{len(compressed)}{end}" for end in (".npy", ".z"))
                np.save(raw, array)
                deflated.write_bytes(compress(array))
                compressed[folder / CASES / case / f"{modality}.nrrd"] = raw
            widths[case] = float(np.mean([blinding.smoothness(a, form.grid.spacing[0]) for a in prepared.values()]))
            advance(source.name)
        length = common_length(raw.with_suffix(".z").stat().st_size for raw in compressed.values())
        for path, raw in compressed.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_case(path, raw.with_suffix(".z").read_bytes(), np.load(raw), form.grid, length)
            give_one_time(path)
    return widths


def give_one_time(path: Path) -> None:
    """The same time stamp for every file of a study: 1 January 1980, the first that a ZIP archive knows."""
    os.utime(path, (315_532_800, 315_532_800))


def _material(plan: Plan, sources: Mapping[str, Source], rng: np.random.Generator) -> Material:
    truth = {case: int(bool(source.model)) for case, source in sources.items()}
    training: list[str] = []
    for kind in (0, 1):
        of_kind = [case for case in truth if truth[case] == kind]
        training += [str(case) for case in rng.permutation(of_kind)[: plan.sessions.training // 2]]
    return Material(truth, training, _pairs(sources, set(training), rng))


def _pairs(sources: Mapping[str, Source], left_out: set[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """(real, synthetic): of the same name where there are such, at random for the rest; each case once."""
    kinds: list[dict[str, str]] = [{}, {}]
    for case, source in sources.items():
        if case not in left_out:
            name = source.name.partition("/")[2] if not source.model else source.name
            kinds[bool(source.model)][name] = case
    reals, synthetics = kinds
    pairs = []
    for name, case in list(synthetics.items()):
        partner = reals.pop(name.partition("/")[2], None)
        if partner:
            pairs.append((partner, case))
            del synthetics[name]
    rest = [rng.permutation(sorted(kind.values())) for kind in (reals, synthetics)]
    return pairs + [(str(a), str(b)) for a, b in zip(*rest, strict=False)]


def _truth(plan: Plan, sources: Mapping[str, Source], material: Material) -> dict:
    return {
        "seed": plan.seed,
        "training": list(material.training),
        "cases": {
            case: {
                "synthetic": material.truth[case],
                "model": source.model,
                "name": source.name.partition("/")[2],
                "files": {modality: str(path) for modality, path in source.files.items()},
            }
            for case, source in sources.items()
        },
    }


def _notes(sources: Mapping[str, Source], widths: Mapping[str, float], form: blinding.Form) -> list[str]:
    """What an organizer should know before the study is given out."""
    size = " x ".join(map(str, form.grid.size))
    notes = [f"{len(sources)} cases on {size} voxels of {form.grid.spacing[0]:g} mm, {form.levels} gray levels"]
    real, synthetic = (
        np.median([widths[case] for case, source in sources.items() if bool(source.model) == kind]) for kind in (0, 1)
    )
    note = f"the finest texture is {real:.2f} mm wide in real, {synthetic:.2f} mm in synthetic cases (median)"
    if max(real, synthetic) > 1.1 * min(real, synthetic):
        note += ": sharpness alone may distinguish them; if that is not the question, smooth all cases alike"
    return [*notes, note]
