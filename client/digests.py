"""SHA-256 of input files, remembered from start to start as long as a file is surely the same."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

SETTLED_NS = 2_000_000_000
"""A file changed more recently than this may change again within one tick of the file system's clock."""


def sha256_of(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class DigestMemo:
    """Digests of files by path, size, times and inode, in a JSON text. Paths are stored as salted hashes only."""

    def __init__(self, stored: bytes, *, salt: bytes) -> None:
        """Begin from a text that `encoded` gave; one that cannot be read counts as empty."""
        self._salt = salt
        self._known: dict[str, str] = {}
        try:
            known = json.loads(stored)
        except ValueError:
            known = None
        if isinstance(known, dict) and all(isinstance(value, str) for value in known.values()):
            self._known = known

    def digest(self, path: Path) -> str | None:
        """The digest of a file, if it is known and the file has not been touched since."""
        return self._known.get(self._state(path))

    def remember(self, digests: Mapping[Path, tuple[str, str]]) -> bool:
        """Take in digests; True if any was new.

        Args:
            digests: By path: the file's state (see `file_state`) before it was read, "" if it had not settled, and its
                SHA-256.
        """
        before = len(self._known)
        for path, (state, digest) in digests.items():
            if state:
                self._known[self._salted(f"{path}|{state}")] = digest
        return len(self._known) > before

    def encoded(self) -> bytes:
        """The text to store."""
        return json.dumps(self._known, sort_keys=True).encode()

    def _state(self, path: Path) -> str:
        return self._salted(f"{path}|{file_state(path)}")

    def _salted(self, text: str) -> str:
        return hashlib.sha256(self._salt + text.encode()).hexdigest()


def file_state(path: Path) -> str:
    """Size, times and inode of a file."""
    status = os.stat(path)
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


def has_settled(path: Path, *, now_ns: int) -> bool:
    """Whether a file was last changed so long ago that its times tell the state apart from any later one."""
    status = os.stat(path)
    return now_ns - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS
