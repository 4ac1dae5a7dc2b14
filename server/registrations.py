"""Keeps the SuperLink's register of keys equal to the coordinator's: admitted keys are in it, revoked ones are not."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError
from server.federation_folder import AdmittedSite, FederationFolder
from server.run_folder import write_atomically, write_json
from server.superlink import KeyInUseError, SuperLinkError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
"""Before a site is tried again for which Flower, or the disk, failed; twice as long after each failure."""


class KeyRegister(Protocol):
    """What is asked of the SuperLink here."""

    @property
    def database(self) -> Path:
        """What it remembers; another file is another memory."""

    def register(self, public_key: Path, *, name: str) -> int:
        """Let the owner of a key take part."""

    def unregister(self, node: int) -> None:
        """Let a node take part no longer."""

    def nodes(self) -> set[int]:
        """Numbers of the registered nodes."""


@dataclass(frozen=True)
class Registration:
    """A key that the SuperLink was told of.

    Attributes:
        node: Flower's number of it; None where the SuperLink knew the key before and does not tell.
        ended: Whether it was taken out again.
    """

    site: str
    fingerprint: str
    node: int | None
    ended: bool = False


@dataclass(frozen=True)
class _Pause:
    """A site that is left alone for a while, because the last try failed."""

    until: float
    length_s: float


_REGISTRATIONS = TypeAdapter(list[Registration])


class Registrations:
    """Keeps the two registers equal.

    Args:
        folder: The federation.
        link: The SuperLink.
        say: Told one plain line whenever something changes.
        clock: Seconds on a clock that only goes forward.
    """

    def __init__(
        self,
        folder: FederationFolder,
        link: KeyRegister,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._link = link
        self._say = say
        self._file = folder.superlink / "registered.json"
        self._known = {each.fingerprint: each for each in _read(self._file)}
        self._checked_database: int | None = None
        self._told: set[str] = set()
        self._clock = clock
        self._pauses: dict[str, _Pause] = {}
        self._is_written = True

    def tick(self) -> None:
        """Do what has to be done; without a change, this asks Flower nothing. No site's failure keeps another waiting.

        Raises:
            SuperLinkError: If Flower fails altogether.
            OSError: If what was done cannot be written; it is remembered, and written at a later call.
        """
        try:
            sites = self._folder.read_register()
        except ConfigError as error:
            self._say_once(str(error))
            return
        self._forget_if_another_database()
        for site in sites:
            if site.revoked_at is not None:
                self._try(site, self._take_out)
        for site in sites:
            if site.revoked_at is None:
                self._try(site, self._put_in)
        self._write()

    def _try(self, site: AdmittedSite, step: Callable[[AdmittedSite], None]) -> None:
        pause = self._pauses.get(site.fingerprint)
        if pause is not None and self._clock() < pause.until:
            return
        try:
            step(site)
        except (SuperLinkError, OSError) as error:
            length_s = FIRST_PAUSE_S if pause is None else min(2 * pause.length_s, LONGEST_PAUSE_S)
            self._pauses[site.fingerprint] = _Pause(self._clock() + length_s, length_s)
            self._say_once(f"{site.name}: {error}; trying again, less and less often")
        else:
            self._pauses.pop(site.fingerprint, None)

    def _forget_if_another_database(self) -> None:
        database = self._link.database.stat().st_ino
        if database == self._checked_database:
            return
        expected = {each.node for each in self._known.values() if each.node is not None and not each.ended}
        if self._known and (not expected or not expected & self._link.nodes()):
            self._say("the SuperLink's database is not the one the sites were registered in: registering them again")
            self._known = {}
        self._checked_database = database

    def _put_in(self, site: AdmittedSite) -> None:
        known = self._known.get(site.fingerprint)
        if known is not None:
            if known.ended:
                self._say_once(f"{site.name}: its key was revoked before and can never come back; let it enrol anew")
            return
        public_key = self._folder.superlink / "keys" / f"{site.name}.pub"
        public_key.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(public_key, site.public_key.encode() + b"\n")
        try:
            node: int | None = self._link.register(public_key, name=site.name)
        except KeyInUseError:
            node = None
        self._remember(Registration(site.name, site.fingerprint, node))
        self._say(f"{site.name}: registered with the SuperLink")

    def _say_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def _take_out(self, site: AdmittedSite) -> None:
        known = self._known.get(site.fingerprint)
        if known is None or known.ended:
            return
        if known.node is not None:
            self._link.unregister(known.node)
        self._remember(Registration(known.site, known.fingerprint, known.node, ended=True))
        self._say(f"{site.name}: revoked, and taken out of the SuperLink")

    def _remember(self, registration: Registration) -> None:
        self._known[registration.fingerprint] = registration
        self._is_written = False
        with suppress(OSError):  # told at the end of the tick, when it still cannot be written
            self._write()

    def _write(self) -> None:
        if not self._is_written:
            write_json(self._file, [asdict(each) for each in self._known.values()])
            self._is_written = True


def _read(path: Path) -> list[Registration]:
    try:
        return _REGISTRATIONS.validate_json(path.read_bytes())
    except (OSError, ValidationError):  # then all are registered again, and the SuperLink says which it knows
        return []
