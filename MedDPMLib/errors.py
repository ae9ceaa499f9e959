"""What does an error look like to the user who can fix it?"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy


class MedDPMError(ValueError):
    """Something that the user can fix: one sentence that names the file or value at fault, and what to do about it.

    ``fact`` says what is wrong, ``remedy`` what to do. Where the remedy depends on how MedDPM is used, as a library, on
    the command line or in the panel, the error has a ``code`` (such as "model-name-taken") and ``values``: each of
    these interfaces has its own remedies for the codes, which :meth:`worded` fills in. Any other exception is a bug and
    keeps its traceback.
    """

    def __init__(self, fact: str, *, remedy: str = "", code: str = "", **values: object) -> None:
        super().__init__(f"{fact}: {remedy}" if remedy else fact)
        self.fact, self.remedy, self.code, self.values = fact, remedy, code, values

    def at(self, where: str) -> MedDPMError:
        """The same mistake, of the same kind, with ``where`` it was made, such as a file, before it."""
        moved = copy(self)
        moved.args, moved.fact = (f"{where}: {self}",), f"{where}: {self.fact}"
        return moved

    def worded(self, remedies: Mapping[str, str]) -> str:
        """The sentence with the remedy in ``remedies`` for the code, if any; otherwise with the library's own."""
        if self.code not in remedies:
            return str(self)
        remedy = remedies[self.code].format(**self.values)
        return f"{self.fact}: {remedy}" if remedy else self.fact


class OutOfMemory(MedDPMError):
    """The memory of the device is not sufficient; the message says what would fit."""
