"""The SHA-256 of every file as it was at the last check, kept in the site's cache; paths only as keyed hashes."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from client.digests import file_state
from client.preflight.examine import FileFacts
from client.preflight.findings import Hit

_TIMES = slice(0, 2)  # size and time of the last change


@dataclass(frozen=True)
class Entry:
    """What a file was: its size and time of last change, and SHA-256 of its bytes."""

    state: str
    sha256: str


class FileManifest:
    """Digests by file, in a JSON text.

    Args:
        stored: A text that `encoded` gave; one that cannot be read counts as empty.
        secret: The site's secret, with which paths are hashed.
    """

    def __init__(self, stored: bytes, *, secret: bytes) -> None:
        self._secret = secret
        self._entries: dict[str, Entry] = {}
        try:
            values = json.loads(stored)
            self._entries = {str(key): Entry(str(state), str(digest)) for key, (state, digest) in values.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._entries = {}

    def compare(self, files: Iterable[tuple[str, str, FileFacts]]) -> Iterator[Hit]:
        """Name the files whose bytes changed though their size and time did not, and take all in.

        Args:
            files: Name of the case, role and what is known of the file.
        """
        for case, role, facts in files:
            if not facts.sha256:
                continue
            try:
                state = "|".join(file_state(facts.path).split("|")[_TIMES])
            except OSError:
                continue
            key = hmac.new(self._secret, str(facts.path).encode(), hashlib.sha256).hexdigest()
            known = self._entries.get(key)
            if known is not None and known.state == state and known.sha256 != facts.sha256:
                yield Hit("file-changed", case, f"{role}: other bytes than at the last check, same time and size")
            self._entries[key] = Entry(state, facts.sha256)

    def encoded(self) -> bytes:
        """The text to store."""
        values = {key: [entry.state, entry.sha256] for key, entry in self._entries.items()}
        return json.dumps(values, sort_keys=True).encode()
