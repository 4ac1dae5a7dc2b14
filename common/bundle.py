"""The app bundle: what Flower carries to the sites in place of code. It names the installed apps and holds no code.

Coordinator and site each compute the digest of the bundle of their own installation. A site runs nothing of a bundle
and refuses one that differs from its own, with both digests; the refusal is the one text of a site that the
coordinator reads, and it has a fixed form.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from common.flower_private import build_fab_from_files

_REFUSAL = re.compile(r"gliorn-bundle-refused installed=([0-9a-f]{64}) offered=([0-9a-f]{64})")


@dataclass(frozen=True)
class BundleRefusal:
    """A site was offered another bundle than the one it has installed; SHA-256 of both in hexadecimal."""

    installed: str
    offered: str

    def to_text(self) -> str:
        """The refusal as it travels."""
        return f"gliorn-bundle-refused installed={self.installed} offered={self.offered}"


def read_refusal(text: str) -> BundleRefusal | None:
    """The refusal that a text from a site holds, wherever in it; None if there is none."""
    match = _REFUSAL.search(text)
    return None if match is None else BundleRefusal(*match.groups())


def installed_bundle() -> bytes:
    """The bundle of this installation. Its bytes depend on the versions of gliorn and Flower alone."""
    folder = files("common") / "flower_app"
    return build_fab_from_files({part.name: part.read_bytes() for part in folder.iterdir() if part.is_file()})[0]


def bundle_digest(bundle: bytes) -> str:
    """SHA-256 of a bundle in hexadecimal; Flower calls it the FAB hash."""
    return hashlib.sha256(bundle).hexdigest()
