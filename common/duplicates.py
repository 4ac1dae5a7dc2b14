"""Patients that two sites have in common: what travels is blinded by the sites, so that only counts are told.

A point is 32 bytes of Curve25519 (RFC 7748). Each patient is a group of points, one for each image and some that stand
for nothing, so that all groups of a site have one length. `client.duplicates` makes them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import ProtocolError

POINT_BYTES = 32
MAX_PATIENTS, MAX_POINTS = 100_000, 1_000


@dataclass(frozen=True)
class BlindedPatients:
    """The patients of one site, in an order that says nothing.

    Attributes:
        groups: The points of each patient, as one piece of bytes; all of one length.
    """

    groups: tuple[bytes, ...]

    @classmethod
    def from_groups(cls, groups: Iterable[bytes]) -> "BlindedPatients":
        """Read what a peer sent.

        Raises:
            ProtocolError: If there are too many or too long groups, or they are not whole points of one number each.
        """
        patients = tuple(groups)
        lengths = {len(group) for group in patients}
        if len(patients) > MAX_PATIENTS or len(lengths) > 1:
            raise ProtocolError(
                f"duplicates: {len(patients)} patients with {len(lengths)} lengths, expected one length"
            )
        if any(length % POINT_BYTES or not 0 < length <= MAX_POINTS * POINT_BYTES for length in lengths):
            raise ProtocolError(
                f"duplicates: a patient has {max(lengths)} bytes, expected points of {POINT_BYTES} each"
            )
        return cls(patients)

    @property
    def num_points(self) -> int:
        """Points of each patient; 0 without patients."""
        return len(self.groups[0]) // POINT_BYTES if self.groups else 0

    def points(self) -> list[list[bytes]]:
        """The points of each patient."""
        return [
            [group[start : start + POINT_BYTES] for start in range(0, len(group), POINT_BYTES)] for group in self.groups
        ]

    def num_shared_with(self, other: "BlindedPatients") -> int:
        """How many of these patients share a point with any of the others; both blinded by the same sites."""
        theirs = {point for points in other.points() for point in points}
        return sum(not theirs.isdisjoint(points) for points in self.points())
