"""How is a file written so that a reader sees all of it or none?"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.paths import reachable

#: Endings that belong to the one after them: the parsers of images go by both.
_FIRST_ENDINGS = (".nii", ".seg")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` that is moved onto it when the block ends well, else removed.

    So a reader sees the whole file or none, whatever interrupts. The temporary name keeps the suffix and is
    short, for systems that limit the length of paths. An ``OSError`` in the block (no space, no permission)
    becomes :class:`MedDPMError`.
    """
    target = reachable(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}{_suffix(target)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Taken at once, so that a folder without permission is told before anything is computed for it.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers put a file of their own there, for its owner's eyes only
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error).strip().rpartition("\n")[2] or type(error).__name__
        raise MedDPMError(f"{path} cannot be written ({reason}): free some space or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _suffix(path: Path) -> str:
    """ ".nii.gz" of "case.nii.gz", ".json" of "case.v2.json"."""
    first = Path(path.stem).suffix
    return first + path.suffix if first.lower() in _FIRST_ENDINGS else path.suffix
