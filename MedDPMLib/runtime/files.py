"""How is a file written so that a reader sees all of it or none?"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.paths import reachable

#: Suffixes that belong to the following one: image readers need both.
_FIRST_ENDINGS = (".nii", ".seg")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provides a temporary path beside ``path`` that is moved to it when the block succeeds, and removed otherwise.

    So a reader sees the whole file or none, whatever happens. The temporary name keeps the suffix and is short, for
    systems that limit the length of paths. An ``OSError`` in the block (no space, no permission) becomes
    :class:`MedDPMError`.
    """
    target = reachable(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}{_suffix(target)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Created at once, so that a missing permission is reported before anything is computed.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers replace it by a file that only its owner may read
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
