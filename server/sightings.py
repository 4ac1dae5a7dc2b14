"""What the gateway has seen of each site, as a small file that `gliorn-server status` reads."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from common.hello import VERSION
from server.run_folder import write_json

CONNECTED_WITHIN_S = 75.0
"""A SuperNode sends a sign of life about every 20 s and asks for tasks every 3 s while it is idle."""


@dataclass(frozen=True)
class Sighting:
    """What the gateway has seen of one site.

    Attributes:
        last_seen: The site's last accepted request, ISO 8601 with time zone.
        received_bytes: Bytes of request bodies since the gateway started.
        sent_bytes: Bytes of response bodies since the gateway started.
        upload_mbit: Megabits per second of its last upload of at least 64 KiB; None before one.
        version: gliorn at the site, from its last hello; None before one.
        authorities: SHA-256 of the authorities that the site trusts, from its last hello.
        networks: Addresses that it called from (in IPv6 their /64), the latest first.
    """

    last_seen: str
    received_bytes: int = 0
    sent_bytes: int = 0
    upload_mbit: float | None = None
    version: Annotated[str, Field(pattern=VERSION)] | None = None
    authorities: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


_SIGHTINGS = TypeAdapter(dict[str, Sighting])


def write_sightings(path: Path, sightings: dict[str, Sighting]) -> None:
    """Replace the file."""
    write_json(path, {name: asdict(sighting) for name, sighting in sorted(sightings.items())})


def read_sightings(path: Path) -> dict[str, Sighting]:
    """By site; none where the gateway has not written any, or the file is damaged: it is written anew in seconds."""
    try:
        return _SIGHTINGS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
