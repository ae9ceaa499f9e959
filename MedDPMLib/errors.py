"""What a mistake looks like to the person who made it."""


class MedDPMError(ValueError):
    """Something that the user can mend.

    The message is one sentence: the file or value at fault, and what to do about it. Command line
    and panel show it as it is; anything else that is raised is a bug and keeps its traceback.
    """


class OutOfMemory(MedDPMError):
    """The device's memory does not suffice; the message says what would fit."""
