"""The gateway's log: a line when a site comes or goes, and a line per refusal, unless somebody floods it.

Nothing that a peer wrote stands in it but the fingerprint of its key: no path, no header, no body.
"""

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from common.hello import HelloFault
from server.gateway.limits import TokenBuckets, network_of

log = logging.getLogger("server.gateway")

_PER_PEER_S, _PER_PEER_BURST = 0.1, 10.0
_ALL_S, _ALL_BURST = 1.0, 100.0


IN_WORDS: Mapping[HelloFault, str] = MappingProxyType(
    {
        "unsigned": "no site's signature",
        "malformed": "a malformed request",
        "clock": "signed at another time than it is here; the clocks differ, or it was recorded before",
        "forged": "the signature is not that of the key",
        "unknown-key": "a key that is not admitted",
        "revoked": "its key is revoked",
        "other-federation": "it wants another federation",
    }
)
"""Why a request was refused, as the log says it."""


class AccessLog:
    """Writes the lines about peers.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._per_peer = TokenBuckets(_PER_PEER_S, _PER_PEER_BURST, clock)
        self._all = TokenBuckets(_ALL_S, _ALL_BURST, clock)
        self._unsaid = 0

    def refused(self, reason: str, *, address: str, site: str | None = None, fingerprint: str | None = None) -> None:
        """A request was refused.

        Args:
            reason: Why; a constant text of ours.
            address: Of the peer.
            site: Whose key it was, where that is known.
            fingerprint: Of the key that signed it, if one did.
        """
        if not self._per_peer.take(network_of(address) if site is None else site) or not self._all.take(""):
            self._unsaid += 1
            return
        whose = "" if site is None else f" {site}"
        key = "" if fingerprint is None else f", key {fingerprint}"
        unsaid = "" if not self._unsaid else f" ({self._unsaid} more refusals went unsaid)"
        self._unsaid = 0
        log.warning("refused%s at %s: %s%s%s", whose, address, reason, key, unsaid)

    def flooded(self) -> None:
        """A request was refused without a look at it, since its address had too many refused before."""
        self._unsaid += 1

    def connected(self, site: str, *, address: str) -> None:
        """A site's SuperNode made its first call, or the first after it was not heard of."""
        log.info("%s connected from %s", site, address)

    def left(self, site: str) -> None:
        """A site's SuperNode said that it leaves."""
        log.info("%s left", site)

    def lost(self, site: str, *, silent_s: float) -> None:
        """Nothing was heard of a site that was connected."""
        log.warning("%s not heard of for %.0f s", site, silent_s)
