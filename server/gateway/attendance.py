"""Which sites are connected: the log's lines about it, and the sightings that `gliorn-server status` reads."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from server.gateway.access_log import AccessLog
from server.gateway.limits import network_of
from server.sightings import CONNECTED_WITHIN_S, Sighting, read_sightings, write_sightings

_LEAST_MEASURED_BYTES = 64 * 2**10
_KNOWN_FOR = timedelta(days=1)
_MOST_NETWORKS = 4


class Attendance:
    """Keeps what was seen of each site since the gateway started, and when it was last heard of before.

    Args:
        path: File of the sightings.
        access_log: Hears of sites that come and go.
        clock: Seconds that only grow.
        now: The wall clock, with time zone.
    """

    def __init__(
        self, path: Path, access_log: AccessLog, *, clock: Callable[[], float], now: Callable[[], datetime]
    ) -> None:
        self._path, self._log, self._clock, self._now = path, access_log, clock, now
        self._sightings = {
            site: replace(sighting, received_bytes=0, sent_bytes=0) for site, sighting in read_sightings(path).items()
        }
        self._written = dict(self._sightings)
        self._heard_of: dict[str, float] = {}

    def heard(self, site: str, *, address: str) -> None:
        """A site's SuperNode has made a call."""
        if site not in self._heard_of:
            self._log.connected(site, address=address)
        self._heard_of[site] = self._clock()
        self._see(site, address=address)

    def left(self, site: str) -> None:
        """A site's SuperNode has said that it leaves."""
        if self._heard_of.pop(site, None) is not None:
            self._log.left(site)

    def greeted(self, site: str, *, address: str, version: str, authorities: tuple[str, ...]) -> None:
        """A site has said hello."""
        self._see(site, address=address)
        self._sightings[site] = replace(self._sightings[site], version=version, authorities=authorities)

    def met(self, site: str, *, address: str) -> None:
        """An admitted site has made a request that was refused."""
        self._see(site, address=address)

    def knows(self, network: str) -> bool:
        """Whether a site that was seen within a day called from this network, as `network_of` gives it."""
        callers = (seen for seen in self._sightings.values() if network in seen.networks)
        return any(self._now() - datetime.fromisoformat(seen.last_seen) <= _KNOWN_FOR for seen in callers)

    def transferred(self, site: str, *, received_bytes: int, received_in_s: float, sent_bytes: int) -> None:
        """A site's call has brought and taken bytes; the time is that from its body's begin to its end."""
        seen = self._sightings[site]
        speed = seen.upload_mbit
        if received_bytes >= _LEAST_MEASURED_BYTES and received_in_s > 0:
            speed = round(received_bytes * 8e-6 / received_in_s, 3)
        self._sightings[site] = replace(
            seen,
            received_bytes=seen.received_bytes + received_bytes,
            sent_bytes=seen.sent_bytes + sent_bytes,
            upload_mbit=speed,
        )

    def look_around(self) -> None:
        """Notice the sites that have fallen silent. Call it every few seconds."""
        for site, heard_at in list(self._heard_of.items()):
            silent_s = self._clock() - heard_at
            if silent_s > CONNECTED_WITHIN_S:
                del self._heard_of[site]
                self._log.lost(site, silent_s=silent_s)

    def write(self) -> None:
        """Write the sightings, if they have changed since they were written."""
        if self._sightings != self._written:
            self._written = dict(self._sightings)
            write_sightings(self._path, self._written)

    def _see(self, site: str, *, address: str) -> None:
        seen_at = self._now().isoformat(timespec="milliseconds")
        seen = self._sightings.get(site, Sighting(last_seen=seen_at))
        network = network_of(address)
        networks = (network, *(each for each in seen.networks if each != network))[:_MOST_NETWORKS]
        self._sightings[site] = replace(seen, last_seen=seen_at, networks=networks)
