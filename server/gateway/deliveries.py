"""What the SuperLink has handed to each site: a site gets the objects of its own messages, and no others.

Flower 1.41 gives any object of a run to any node that names its digest, and lets go of any message on any node's word
(`superlink/servicer/fleet/fleet_handlers.py`). Digests of large arrays cannot be guessed, but those of small records
can be tried out. The gateway therefore remembers what each site was handed, also over a restart of its own.
"""

import json
import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from server.federation_folder import AdmittedSite
from server.flower_private import Delivery, read_delivery
from server.run_folder import write_atomically

log = logging.getLogger("server.gateway")

_REMEMBERED = 8
"""Deliveries that are remembered of each site; a SuperNode takes one message after the other."""

_TRIES = 3
"""How often a message is handed over again."""

_FILE = TypeAdapter(list[tuple[list[str], list[str]]])


@dataclass
class _Untaken:
    """An answer with a message that the site may not have received.

    Attributes:
        tries: How often it may still be handed over.
    """

    answer: bytes
    tries: int


class Deliveries:
    """What each site was handed lately.

    Args:
        folder: Where it is kept, a file for each site; made where it is absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._of_site: dict[str, deque[Delivery]] = {}
        self._untaken: dict[str, _Untaken] = {}

    def add(self, site: AdmittedSite, answer: bytes) -> bool:
        """Remember what a site is about to be handed; False if that is no message.

        Args:
            site: Whose key asked.
            answer: The SuperLink's to pull-messages; most often it holds no message.

        Raises:
            ProtocolError: If it is no such answer.
        """
        delivery = read_delivery(answer)
        if delivery is None:
            return False
        remembered = self._remembered(site.name)
        remembered.append(delivery)
        values = [(sorted(each.messages), sorted(each.objects)) for each in remembered]
        try:
            write_atomically(self._folder / f"{site.name}.json", json.dumps(values).encode())
        except OSError as error:  # it only matters if the gateway is restarted before the site has its objects
            log.warning("cannot keep what %s was handed: %s", site.name, error.strerror)
        self._untaken[site.fingerprint] = _Untaken(answer, tries=_TRIES)
        return True

    def not_taken(self, site: AdmittedSite) -> bytes | None:
        """The answer that the site was handed last, if it asks for the next without having begun with it.

        Flower 1.41 hands over a message once. If the connection is cut at that moment, the message is lost, and the
        round waits for a reply until its deadline.
        """
        untaken = self._untaken.get(site.fingerprint)
        if untaken is None:
            return None
        untaken.tries -= 1
        if untaken.tries <= 0:
            del self._untaken[site.fingerprint]
        return untaken.answer

    def taken(self, site: AdmittedSite) -> None:
        """The site has begun with what it was handed."""
        self._untaken.pop(site.fingerprint, None)

    def include_object(self, site: AdmittedSite, object_id: str) -> bool:
        """Whether an object is part of what the site was handed."""
        return any(object_id in each.objects for each in self._remembered(site.name))

    def include_message(self, site: AdmittedSite, message_id: str) -> bool:
        """Whether a message was handed to the site."""
        return any(message_id in each.messages for each in self._remembered(site.name))

    def _remembered(self, site: str) -> deque[Delivery]:
        if site not in self._of_site:
            self._of_site[site] = deque(self._read(site), maxlen=_REMEMBERED)
        return self._of_site[site]

    def _read(self, site: str) -> list[Delivery]:
        try:
            values = _FILE.validate_json((self._folder / f"{site}.json").read_bytes())
        except (OSError, ValidationError):  # nothing was handed to it yet; at worst it is asked again
            return []
        return [Delivery(frozenset(messages), frozenset(objects)) for messages, objects in values]
