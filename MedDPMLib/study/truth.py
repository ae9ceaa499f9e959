"""Who knows the truth? Whoever has the passphrase: the truth of a study lies encrypted beside it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.files import atomic_write

TRUTH_FILE = "truth.encrypted"
_FORMAT = "meddpm-study-truth/1"

#: scrypt's cost: about 0.1 s and 64 MB for each try of a passphrase.
_SCRYPT = {"n": 2**16, "r": 8, "p": 1}
_SHORTEST = 8


def write_truth(folder: Path, truth: Mapping[str, Any], passphrase: str, study_hash: str) -> None:
    """Encrypts ``truth`` (JSON) with AES-256-GCM under a key that scrypt derives from ``passphrase``.

    It is bound to ``study_hash``: it opens beside no other study.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(passphrase) < _SHORTEST:
        raise MedDPMError(f"the passphrase is too short: choose one of at least {_SHORTEST} characters")
    salt, nonce = os.urandom(16), os.urandom(12)
    key = _key(passphrase, salt, **_SCRYPT)
    secret = AESGCM(key).encrypt(nonce, json.dumps(truth).encode(), study_hash.encode())
    stored = {
        "format": _FORMAT,
        "kdf": "scrypt",
        **_SCRYPT,
        "cipher": "AES-256-GCM",
        "salt": _text(salt),
        "nonce": _text(nonce),
        "data": _text(secret),
    }
    with atomic_write(Path(folder) / TRUTH_FILE) as temporary:
        temporary.write_text(json.dumps(stored, indent=1), encoding="ascii")


def read_truth(folder: Path, passphrase: str, study_hash: str) -> dict[str, Any]:
    """The truth of the study in ``folder``. Raises :class:`MedDPMError` for a wrong passphrase or a changed file."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    path = Path(folder) / TRUTH_FILE
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        if stored["format"] != _FORMAT:
            raise MedDPMError(f"{path} has the format {stored['format']}: use the version of MedDPM that made it")
        key = _key(passphrase, base64.b64decode(stored["salt"]), stored["n"], stored["r"], stored["p"])
        nonce, secret = base64.b64decode(stored["nonce"]), base64.b64decode(stored["data"])
    except OSError as error:
        raise MedDPMError(
            f"{path} cannot be read ({error.strerror}): the truth stays with the organizer, choose the study folder"
        ) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, MedDPMError):
            raise
        raise MedDPMError(f"{path} is damaged: take it from a backup of the study folder") from error
    try:
        return json.loads(AESGCM(key).decrypt(nonce, secret, study_hash.encode()))
    except InvalidTag as error:
        raise MedDPMError(
            f"{path} does not open: the passphrase is wrong, or the file or its study was changed"
        ) from error


def _key(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    # A damaged file must not ask for more memory than there is.
    if not (n <= 2**20 and r <= 16 and p <= 16):
        raise ValueError("scrypt's cost is out of range")
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase.encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
