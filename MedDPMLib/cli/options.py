"""The options that several commands share, and how they become settings of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import QUALITIES, Card

if TYPE_CHECKING:
    from MedDPMLib.inference.memory_plan import MemoryPlan
    from MedDPMLib.models.model import Model
    from MedDPMLib.runtime.device import Execution

BUNDLED_MODEL = "brain-anatomy"


def model_names(incomplete: str) -> list[str]:
    from MedDPMLib.models.store import ModelStore

    return sorted({entry.name for entry in ModelStore().list() if entry.name.startswith(incomplete)})


ModelOption = Annotated[
    str,
    typer.Option("--model", help="Installed model, bundle file or official checkpoint.", autocompletion=model_names),
]
ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="Installed model.", autocompletion=model_names)]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same volume.")]
QualityOption = Annotated[
    str,
    typer.Option(
        "--quality",
        help=f"{', '.join(QUALITIES[:-1])} or {QUALITIES[-1]}: what the model recommends.",
        autocompletion=lambda: list(QUALITIES),
    ),
]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", help="dpm-solver++, ddim or ddpm, instead of the quality's.")
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps, instead of the quality's.")]
GuidanceOption = Annotated[
    float, typer.Option("--guidance", help="Above 1 the labels are drawn more strongly, at twice the time.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto (an NVIDIA GPU or else the CPU), cpu, cuda, cuda:1 or mps.")
]
MemoryOption = Annotated[
    str, typer.Option("--memory", help="auto: what is free; low: as little as possible, slower; or a limit: 4GB.")
]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, float32, bfloat16 or float16.")]
LabelsOption = Annotated[
    str | None,
    typer.Option("--labels", metavar="NUMBERING", help="How the masks number their labels, where it is ambiguous."),
]
BrainFromOption = Annotated[
    Path | None,
    typer.Option(
        "--brain-from", metavar="IMAGE", help="A skull-stripped image that gives the brain area of the masks."
    ),
]


@dataclass(frozen=True)
class Settings:
    """How volumes are made, checked against the model once, before the first mask."""

    sampler: str
    steps: int
    execution: Execution
    guidance: float
    memory: str | MemoryPlan
    space: str

    def keywords(self) -> dict:
        """What :func:`MedDPMLib.generate` takes."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "device": self.execution.device,
            "precision": self.execution.precision,
            "guidance": self.guidance,
            "memory": self.memory,
            "space": self.space,
        }


def check_settings(
    card: Card,
    quality: str,
    sampler: str | None,
    steps: int | None,
    device: str,
    precision: str,
    guidance: float = 1.0,
    memory: str = "auto",
    space: str = "model",
) -> Settings:
    """The settings that the options ask for; :class:`MedDPMError` for what the model or the machine cannot do."""
    if quality not in QUALITIES:
        raise MedDPMError(f'there is no quality "{quality}": use {", ".join(QUALITIES)}')
    from MedDPMLib.diffusion.names import METHODS
    from MedDPMLib.diffusion.samplers import timestep_grid
    from MedDPMLib.inference.generation import SPACES, check_guidance
    from MedDPMLib.inference.memory_plan import check_memory
    from MedDPMLib.runtime.device import choose_execution

    recommended = card.qualities[quality]
    sampler = sampler or recommended["sampler"]
    if sampler not in METHODS:
        raise MedDPMError(f'"{sampler}" is not a sampler: use one of {", ".join(METHODS)}')
    steps = recommended["steps"] if steps is None else steps
    timestep_grid(card.schedule["timesteps"], steps)
    check_memory(memory)
    if space not in SPACES:
        raise MedDPMError(f'there is no space "{space}": use {" or ".join(SPACES)}')
    execution = choose_execution(device, precision)
    return Settings(sampler, steps, execution, check_guidance(card, guidance), memory, space)


def planned(settings: Settings, model: Model) -> Settings:
    """``settings`` with the memory planned for ``model``. Where, how and in how much memory it is going to work is told
    on stderr."""
    from MedDPMLib.inference.memory_plan import describe_plan, plan_memory

    plan = plan_memory(model, settings.execution, memory=settings.memory, guided=settings.guidance != 1)
    typer.echo(describe_plan(model, settings.execution, plan), err=True)
    return replace(settings, memory=plan)
