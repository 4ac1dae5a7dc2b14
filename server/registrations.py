"""Keeps the SuperLink's register of keys equal to the coordinator's: admitted keys are in it, revoked ones are not."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError
from server.federation_folder import AdmittedSite, FederationFolder
from server.run_folder import write_atomically, write_json
from server.superlink import KeyInUseError


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


_REGISTRATIONS = TypeAdapter(list[Registration])


class Registrations:
    """Keeps the two registers equal.

    Args:
        folder: The federation.
        link: The SuperLink.
        say: Told one plain line whenever something changes.
    """

    def __init__(self, folder: FederationFolder, link: KeyRegister, *, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._link = link
        self._say = say
        self._file = folder.superlink / "registered.json"
        self._known = {each.fingerprint: each for each in _read(self._file)}
        self._checked_database: int | None = None
        self._told: set[str] = set()

    def tick(self) -> None:
        """Do what has to be done; without a change, this asks Flower nothing.

        Raises:
            SuperLinkError: If Flower fails; what was done until then is remembered.
        """
        try:
            sites = self._folder.read_register()
        except ConfigError as error:
            self._say_once(str(error))
            return
        self._forget_if_another_database()
        for site in sites:
            if site.revoked_at is not None:
                self._take_out(site)
        for site in sites:
            if site.revoked_at is None:
                self._put_in(site)

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
        write_json(self._file, [asdict(each) for each in self._known.values()])


def _read(path: Path) -> list[Registration]:
    try:
        return _REGISTRATIONS.validate_json(path.read_bytes())
    except (OSError, ValidationError):  # then all are registered again, and the SuperLink says which it knows
        return []
