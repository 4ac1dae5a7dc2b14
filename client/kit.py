"""The files of a site's membership in one federation, beside its private key."""

from dataclasses import dataclass
from pathlib import Path

from client.config import SiteConfig
from common.errors import ConfigError

SITE_CONFIG_KEY = "site-config"
"""Flower node setting: path of the site's configuration."""


@dataclass(frozen=True)
class Kit:
    """Where the files of a membership lie. All of them are for their owner alone.

    Attributes:
        address: host:port of the coordinator.
        ca_certificate: PEM; one or more authorities that the coordinator is checked against.
        private_key: The site's key, OpenSSH format on NIST P-384.
        federation_id: The federation the key was made for; None in a kit without one.
    """

    address: str
    ca_certificate: Path
    private_key: Path
    federation: str | None
    federation_id: str | None

    @property
    def folder(self) -> Path:
        """Holds everything."""
        return self.private_key.parent

    @property
    def accepted(self) -> Path:
        """Folder of the studies that the site agreed to: `<digest>.yaml`, each the study's whole text."""
        return self.folder / "accepted"

    @property
    def flower_home(self) -> Path:
        """Flower's own files."""
        return self.folder / "flower"

    @property
    def journal(self) -> Path:
        """What left the site: one JSON object a line, for each answer."""
        return self.folder / "journal.jsonl"

    @property
    def node_settings(self) -> Path:
        """What the SuperNode hands to the ClientApp: where the site's configuration lies. Written at each start."""
        return self.flower_home / "node.toml"

    @property
    def node(self) -> Path:
        """The coordinator's number for this site while it is connected."""
        return self.flower_home / "node.json"

    @property
    def superexec_secret(self) -> Path:
        """What SuperNode and SuperExec know each other by; new at each start."""
        return self.flower_home / "superexec.secret"

    @property
    def guard(self) -> Path:
        """Folder of the programs that Flower finds at this site; see `client.guard`."""
        return self.flower_home / "programs"

    @property
    def task_lock(self) -> Path:
        """Held by a ClientApp while it lives."""
        return self.flower_home / "task.lock"

    @property
    def task_bell(self) -> Path:
        """Rung by the SuperNode when there is a task."""
        return self.flower_home / "task.bell"

    @property
    def client_lock(self) -> Path:
        """Held by the `gliorn-client` that is connected with this key."""
        return self.folder / "client.lock"

    @property
    def flower_log(self) -> Path:
        """The output of Flower's programs."""
        return self.folder / "flower.log"


def kit_of(config: SiteConfig, *, origin: Path) -> Kit:
    """The kit that a site configuration names.

    Args:
        config: The site's configuration, with absolute paths.
        origin: Its file, for messages.

    Raises:
        ConfigError: If it names no server, CA certificate or key.
    """
    server = config.server
    if server is None or server.ca_certificate is None or server.private_key is None:
        raise ConfigError(
            f"{origin}: server needs address, ca_certificate and private_key to join a federation; ask the coordinator "
            "for an invite, and `gliorn-client enroll --invite … --site …` writes them"
        )
    return Kit(server.address, server.ca_certificate, server.private_key, server.federation, server.federation_id)
