"""The options that several commands share, and how they become the settings of a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from MedDPMLib.inference.settings import SETTINGS, GenerationSettings

BUNDLED_MODEL = "brain-anatomy"


def model_names(incomplete: str) -> list[str]:
    from MedDPMLib.models.store import ModelStore

    return sorted({entry.name for entry in ModelStore().list() if entry.name.startswith(incomplete)})


def _known_geometry(text: str | None) -> str | None:
    from MedDPMLib.errors import MedDPMError
    from MedDPMLib.imaging.nifti import GEOMETRIES

    if text is not None and text not in GEOMETRIES:
        raise MedDPMError(f'there is no geometry "{text}": use {" or ".join(GEOMETRIES)}')
    return text


ModelOption = Annotated[
    str,
    typer.Option("--model", help="Installed model, bundle file or official checkpoint.", autocompletion=model_names),
]
ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="Installed model.", autocompletion=model_names)]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; created if missing.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same volume.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="CONVENTION",
        help="Label convention of the masks, if it is ambiguous: a name such as brats-2023, a color table, what each"
        ' value is ("1=necrosis,2=edema,3=enhancing tumor,4=rest of the brain"), or what a segment is'
        ' ("tumor core=necrosis").',
    ),
]
GeometryOption = Annotated[
    str | None,
    typer.Option(
        "--geometry",
        metavar="FORM",
        help="sform or qform: which of the two positions in a NIfTI header is right, where they contradict each other"
        " and the file is refused for it.",
        callback=_known_geometry,
    ),
]
BrainFromOption = Annotated[
    Path | None,
    typer.Option(
        "--brain-from", metavar="IMAGE", help="A skull-stripped image from which the brain area of the masks is taken."
    ),
]


def takes_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each of the settings called ``names``, in place of its parameter ``settings``.

    The command receives them as a validated :class:`GenerationSettings`; the other settings have their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**arguments: Any) -> None:
            chosen = {name: arguments.pop(name) for name in names}
            command(settings=GenerationSettings(**chosen), **arguments)

        parameters: list[inspect.Parameter] = []
        signature = inspect.signature(command, eval_str=True)
        for parameter in signature.parameters.values():
            parameters += map(_option, names) if parameter.name == "settings" else [parameter]
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return decorate


def _option(name: str) -> inspect.Parameter:
    """The option of a setting, as the table of settings describes it."""
    setting = SETTINGS[name]
    values = [choice.value for choice in setting.choices if choice.value is not None]
    help = f"{setting.help} ({', '.join(values)})." if values else f"{setting.help}."
    kind = get_type_hints(GenerationSettings)[name]
    option = typer.Option(f"--{name}", help=help, autocompletion=(lambda: values) if values else None)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=Annotated[kind, option]
    )


DeviceOption = _option("device").annotation
PrecisionOption = _option("precision").annotation
