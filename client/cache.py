"""Prepared exams on disk: never stale, never half-written, checked whenever they are read."""

import hashlib
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.preprocessing.pipeline import CENTRE_SOURCES, PREPROCESSING_VERSION, PreparedExam
from client.private_files import make_private_folder, write_atomically
from common.errors import ConfigError
from common.study import PreprocessingSpec

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_SECRET_BYTES = 32
_SUFFIX = ".exam"


class ExamCache:
    """A folder of prepared exams and the site's secret. Several processes may use it at once.

    An entry is the SHA-256 of its key and of what follows, then a safetensors file. Its name is its key, which tells
    nothing of the patient.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it, for its owner alone.

        Raises:
            ConfigError: The folder cannot be made or written.
        """
        self._folder = folder
        make_private_folder(folder / "exams")

    def read(self, key: str) -> PreparedExam | None:
        """The entry of a key; None, with a warning, if it is damaged, and None if there is none."""
        try:
            stored = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        exam = _decoded(stored, key)
        if exam is None:
            log.warning("a prepared exam in the cache is damaged and is made again")
        return exam

    def write(self, key: str, exam: PreparedExam) -> None:
        """Store an entry. Others see all of it or nothing of it.

        Raises:
            ConfigError: The folder cannot be written, for example because the disk is full.
        """
        tensors = {
            "image": np.ascontiguousarray(exam.image, dtype=np.float32),
            "centre": np.array(exam.centre, dtype=np.float64),
            "centre_source": np.array([CENTRE_SOURCES.index(exam.centre_source)], dtype=np.int64),
        }
        data = save(tensors)
        write_atomically(self._path(key), _digest(key, data) + data)

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

    def _path(self, key: str) -> Path:
        return self._folder / "exams" / f"{key}{_SUFFIX}"


def exam_key(
    file_digests: Sequence[tuple[str, str]],
    lesion_point: tuple[float, float, float] | None,
    spec: PreprocessingSpec,
    sequences: tuple[str, ...],
) -> str:
    """SHA-256 over everything that decides how a prepared exam looks, in hexadecimal.

    Args:
        file_digests: Role (sequence or lesion_mask) and SHA-256 of every input file.
        lesion_point: The table's point.
        spec: The study's settings.
        sequences: Channels, in order.
    """
    parts: Mapping[str, object] = {
        "version": PREPROCESSING_VERSION,
        "files": sorted(file_digests),
        "point": lesion_point,
        "spec": spec.model_dump(mode="json"),
        "sequences": sequences,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).digest()


def _decoded(stored: bytes, key: str) -> PreparedExam | None:
    digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if _digest(key, data) != digest:
        return None
    try:
        tensors = load(data)
    except SafetensorError:
        return None
    x, y, z = tensors["centre"].tolist()
    return PreparedExam(tensors["image"], (x, y, z), CENTRE_SOURCES[int(tensors["centre_source"][0])])
