"""What does a mistake look like to the person who made it?"""

from __future__ import annotations

from collections.abc import Mapping


class MedDPMError(ValueError):
    """Something that the user can fix: one sentence that names the file or value at fault, and what to do about it.

    ``fact`` says what is wrong, ``remedy`` what to do. Where a remedy depends on how MedDPM is used, as a library, by
    command or in a panel, the mistake has a ``code`` (such as "model-name-taken") and ``values``: each face has its own
    sentences for the codes, which :meth:`worded` fills in. Anything else that is raised is a bug and keeps its
    traceback.
    """

    def __init__(self, fact: str, *, remedy: str = "", code: str = "", **values: object) -> None:
        super().__init__(f"{fact}: {remedy}" if remedy else fact)
        self.fact, self.remedy, self.code, self.values = fact, remedy, code, values

    def at(self, where: str) -> MedDPMError:
        """The same mistake with ``where`` it was made, such as a file, before it."""
        return MedDPMError(f"{where}: {self.fact}", remedy=self.remedy, code=self.code, **self.values)

    def worded(self, remedies: Mapping[str, str]) -> str:
        """The sentence with the remedy that ``remedies`` has for the code, if any; else as the library words it."""
        if self.code not in remedies:
            return str(self)
        remedy = remedies[self.code].format(**self.values)
        return f"{self.fact}: {remedy}" if remedy else self.fact


class OutOfMemory(MedDPMError):
    """The device's memory does not suffice; the message says what would fit."""
