"""The coordinator's folder of one federation: its files, its settings, and the register of admitted sites."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from common.documents import Settings, parse_settings
from common.enrolment import NAME
from common.errors import ConfigError
from server.private_files import write_private


class FederationConfig(Settings):
    """federation.yaml: what the coordinator decides once. Sites learn name, id, the first host and the port."""

    name: str = Field(pattern=NAME, description="lower-case letters, digits and '-', at most 63")
    id: str = Field(pattern=r"^[0-9a-f]{32}$", description="tells federations of one name apart; made by init")
    hosts: tuple[str, ...] = Field(
        min_length=1, description="names or addresses under which sites reach this machine, the first in invites"
    )
    port: int = Field(default=9092, ge=1, le=65535, description="the one port that sites connect to")
    listen: str = Field(default="0.0.0.0", description="address that the gateway listens on")
    superlink_port: int = Field(
        default=9093, ge=1, le=65535, description="port of Flower's SuperLink on 127.0.0.1, never reached from outside"
    )

    @field_validator("hosts")
    @classmethod
    def _plain_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not host or any(char in host for char in " /@[]"):
                raise ValueError(f"host is {host!r}, expected a name or an address alone, without scheme or port")
        return hosts

    @property
    def address(self) -> str:
        """host:port that sites connect to."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True)
class AdmittedSite:
    """A site whose key the coordinator has admitted, or had.

    Attributes:
        public_key: OpenSSH text, one line.
        fingerprint: As `common.site_signature.key_fingerprint` gives it.
        admitted_at: ISO 8601 with time zone.
        revoked_at: The same; None while the key counts.
    """

    name: str
    public_key: str
    fingerprint: str
    admitted_at: str
    revoked_at: str | None = None


_REGISTER = TypeAdapter(list[AdmittedSite])


class FederationFolder:
    """Paths in the folder of a federation, and reading of what defines it. Keys and state are for the owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "federation.yaml"
        self.study = path / "study.yaml"
        self.register = path / "sites.json"
        self.invites = path / "invites.json"
        self.authority = path / "authority"
        self.gateway = path / "gateway"
        self.superlink = path / "superlink"
        self.runs = path / "runs"
        self.logs = path / "logs"
        self.lock = path / "server.lock"

    @property
    def authorities(self) -> Path:
        """PEM certificates of all authorities that sites should trust."""
        return self.authority / "trusted.crt"

    @property
    def certificate(self) -> Path:
        """The gateway's certificate, PEM; may change while the gateway runs."""
        return self.gateway / "server.crt"

    @property
    def certificate_key(self) -> Path:
        """Its private key, PEM; written before the certificate."""
        return self.gateway / "server.key"

    @property
    def sightings(self) -> Path:
        """What the gateway has seen of each site; see `server.sightings`."""
        return self.logs / "sightings.json"

    def read_config(self) -> FederationConfig:
        """The federation's settings.

        Raises:
            ConfigError: If this is no federation's folder, or all faults of the file.
        """
        try:
            text = self.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"{self.path}: no readable federation.yaml in it, expected the folder of a federation; "
                "name it with --federation, or make one with `gliorn-server init`"
            ) from None
        return parse_settings(text, FederationConfig, origin=str(self.config))

    def read_register(self) -> list[AdmittedSite]:
        """All sites that were ever admitted, revoked ones too, in the order of admission.

        Raises:
            ConfigError: If the file was damaged.
        """
        if not self.register.exists():
            return []
        try:
            return _REGISTER.validate_json(self.register.read_bytes(), strict=True, extra="forbid")
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{self.register}: unreadable ({type(error).__name__}); restore it from a copy, "
                "no site is let in without it"
            ) from None

    def write_register(self, sites: list[AdmittedSite]) -> None:
        """Replace the register; the caller holds `locked_register`."""
        values = [asdict(site) for site in sites]
        write_private(self.register, (json.dumps(values, indent=1) + "\n").encode())

    @contextmanager
    def locked_register(self) -> Iterator[None]:
        """Keep other commands from changing the register and the invites meanwhile."""
        descriptor = os.open(self.path / ".register.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def admitted(sites: list[AdmittedSite]) -> dict[str, AdmittedSite]:
    """The sites whose keys count now, by name."""
    return {site.name: site for site in sites if site.revoked_at is None}
