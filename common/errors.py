"""Errors that a person can act on: who caused it, what was found, what was expected, what to do.

The text of an error is for the machine it was raised on. What travels to the coordinator is its `code` alone,
since a text may hold a path or a patient's identifier.
"""

from collections.abc import Sequence
from typing import ClassVar


class GliornError(Exception):
    """An error whose text is written for the person who sees it; shown without a traceback.

    Attributes:
        code: A short, constant name. The only part of an error that may leave a hospital.
    """

    code: ClassVar[str] = "error"


class ConfigError(GliornError):
    """What an operator wrote cannot be used: a study, a site configuration, a table, an argument."""

    code = "config"


class DiskFullError(ConfigError):
    """A file found no room. To the coordinator it is what every other fault of a site's set-up is."""


class DataError(GliornError):
    """A hospital's data cannot be used as they are: an image that is missing, unreadable or not what the table says."""

    code = "data"


class ProtocolError(GliornError):
    """A peer sent something that the protocol does not allow."""

    code = "protocol"


class StateMissingError(GliornError):
    """The site no longer has the global state that the coordinator takes it to have, and needs it whole."""

    code = "state_missing"


class DisclosureError(GliornError):
    """Something was asked for that must not leave the hospital."""

    code = "disclosure"


class ConsentError(GliornError):
    """The hospital has not agreed to the study."""

    code = "consent"


class TrainingError(GliornError):
    """Local training did not end in a usable model, for example because the loss is not finite."""

    code = "training"


def list_of_faults(origin: str, faults: Sequence[str]) -> str:
    """All faults of one file as a text, one per line, so that they can be mended in one go."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{origin}: {count}\n" + "\n".join(f"  - {fault}" for fault in faults)
