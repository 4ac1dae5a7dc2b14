"""A site's consent to a study: where it is kept, and that nothing is done without it."""

from datetime import datetime
from pathlib import Path

import yaml

from client.config import ServerSpec, SiteConfig
from client.kit import Kit
from client.private_files import make_private_folder, write_atomically
from common.errors import ConfigError, ConsentError
from common.study import Study, parse_study

_ACCEPTED = "accepted"
"""Name of `Kit.accepted`, beside the private key."""


def require_consent(config: SiteConfig, study: Study) -> None:
    """Check that a site that belongs to a federation has agreed to a study.

    It agrees by the study's whole digest in its configuration, or by a file that `gliorn-client accept` wrote. A site
    without a server takes part in nothing but what its own machine runs.

    Raises:
        ConsentError: If it has not.
    """
    if config.server is None or study.digest in config.studies:
        return
    found = _fault_of_acceptance(config.server, study)
    if found is not None:
        raise ConsentError(
            f"{config.name}: has not agreed to the study {study.name} with the digest {study.digest}: {found}; look at "
            "it and agree with `gliorn-client accept --site ...`, or write the digest under `studies` in the site's "
            "configuration"
        )


def has_consented(config: SiteConfig, study: Study) -> bool:
    """Whether `require_consent` passes."""
    try:
        require_consent(config, study)
    except ConsentError:
        return False
    return True


def keep_consent(kit: Kit, study: Study, *, now: datetime) -> Path:
    """Write down that a person at the site agreed to a study; returns the file, which holds all of its settings."""
    make_private_folder(kit.accepted)
    path = kit.accepted / f"{study.digest}.yaml"
    header = (
        f"# Agreed to at this site on {now.date().isoformat()} with `gliorn-client accept`; delete it to withdraw.\n"
    )
    write_atomically(path, (header + plain_text(study)).encode())
    return path


def plain_text(study: Study) -> str:
    """All settings of a study, the defaults too, as YAML of the same digest.

    A person is shown this and not the text that came over the network: a comment or a control character in it could
    make her read something else than what is trained.
    """
    return yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False, default_flow_style=None)


def _fault_of_acceptance(server: ServerSpec, study: Study) -> str | None:
    """Why the kit shows no consent; None if it does."""
    if server.private_key is None:
        return "it names no private_key, so there is no folder with studies that were accepted"
    path = server.private_key.parent / _ACCEPTED / f"{study.digest}.yaml"
    try:
        kept = parse_study(path.read_text(encoding="utf-8"), origin=str(path))
    except FileNotFoundError:
        return "nobody at this site has accepted it"
    except (OSError, UnicodeDecodeError, ConfigError):
        return f"{path} cannot be read as a study"
    return None if kept.digest == study.digest else f"{path} was changed and holds another study"
