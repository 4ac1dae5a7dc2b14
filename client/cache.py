"""Prepared exams on disk: never stale, never half-written, checked whenever they are read."""

import hashlib
import logging
import secrets
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.preprocessing.stages import Arrays, Stage
from client.private_files import make_private_folder, write_atomically
from common.errors import ConfigError

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_SECRET_BYTES = 32
_SUFFIX = ".exam"

EntryState = Literal["absent", "damaged", "sound"]


class ExamCache:
    """A folder of the stages of prepared exams and the site's secret. Several processes may use it at once.

    An entry is the SHA-256 of its key and of what follows, then a safetensors file. Its name is its key, which tells
    nothing of the patient, and its stage.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it, for its owner alone.

        Raises:
            ConfigError: The folder cannot be made or written.
        """
        self._folder = folder
        make_private_folder(folder / "exams")

    def read(self, stage: Stage, key: str) -> Arrays | None:
        """The entry of a key; None, with a warning, if it is damaged, and None if there is none."""
        stored = self._stored(stage, key)
        if stored is None:
            return None
        arrays = _decoded(stored, key)
        if arrays is None:
            log.warning("a stage of a prepared exam in the cache is damaged and is made again")
        return arrays

    def write(self, stage: Stage, key: str, arrays: Arrays) -> None:
        """Store an entry. Others see all of it or nothing of it.

        Raises:
            ConfigError: The folder cannot be written, for example because the disk is full.
        """
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomically(self._path(stage, key), _digest(key, data) + data)

    def state(self, stage: Stage, key: str) -> EntryState:
        """Whether an entry is there and is what was written, read to its last byte."""
        stored = self._stored(stage, key)
        if stored is None:
            return "absent"
        return "damaged" if _decoded(stored, key) is None else "sound"

    def site_secret(self) -> bytes:
        """The site's 32 secret bytes, drawn by the operating system at the first call.

        Raises:
            ConfigError: The file of the secret is damaged or cannot be written.
        """
        path = self._folder / "site_secret"
        if not path.exists():
            write_atomically(path, secrets.token_bytes(_SECRET_BYTES), replace=False)
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise ConfigError(
                f"{path}: holds {len(secret)} bytes, expected {_SECRET_BYTES}; delete it, and tell the coordinator "
                "that the digests of this site's cohort change"
            )
        return secret

    def has(self, stage: Stage, key: str) -> bool:
        """Whether there is an entry, sound or not."""
        return self._path(stage, key).exists()

    def _stored(self, stage: Stage, key: str) -> tuple[bytes, bytes] | None:
        """Digest and data of an entry."""
        try:
            with self._path(stage, key).open("rb") as file:
                return file.read(_DIGEST_BYTES), file.read()
        except FileNotFoundError:
            return None

    def _path(self, stage: Stage, key: str) -> Path:
        return self._folder / "exams" / f"{key}.{stage}{_SUFFIX}"


def _digest(key: str, data: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(data)  # which is large, and is not copied so
    return digest.digest()


def _decoded(stored: tuple[bytes, bytes], key: str) -> Arrays | None:
    digest, data = stored
    if _digest(key, data) != digest:
        return None
    try:
        arrays: Arrays = load(data)
    except SafetensorError:
        return None
    return arrays
