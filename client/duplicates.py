"""Whether other sites have the same patients, without showing anybody which: the site's part.

Private set intersection by commuting blinding (Meadows 1986, IEEE Symposium on Security and Privacy, 134; Huberman
1999, ACM Conference on Electronic Commerce, 78). An image becomes a point of Curve25519, which every site multiplies by
a secret of its own. The order in which two sites do that does not matter, so points that both have blinded are equal
where the images are, and say nothing else to those who lack the secrets. Each site blinds its own points first, then,
in another order, those of all sites; the coordinator compares.
"""

import hashlib
import hmac
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from client.cohort import Cohort
from client.preprocessing.volume import FloatArray, read_volume
from common.duplicates import POINT_BYTES, BlindedPatients
from common.errors import DataError, ProtocolError

_LARGEST_WHOLE = 2**20
"""Up to this many values, whole numbers are counted by a table, which is much faster than sorting them."""


def voxel_fingerprint(values: FloatArray) -> bytes:
    """32 bytes that are the same for the same voxels, however the file is written.

    How often each value occurs, from the darkest to the brightest, and the lengths of the axes in rising order. So
    neither the header nor the number type nor a turned or mirrored array changes it, nor a scale or an offset of the
    values. Interpolation, cropping and rounding do. The noise of a scan makes the counts of two scans differ.
    """
    low, high = float(values.min()), float(values.max())
    whole = values.astype(np.int64) if high - low < _LARGEST_WHOLE and abs(low) < 2**24 else None
    if whole is not None and np.array_equal(whole, values):
        counts = np.bincount((whole - int(low)).ravel(order="K"))
        counts = counts[counts > 0]
    else:
        counts = np.unique(values, return_counts=True)[1]
    text = ",".join(map(str, [*sorted(values.shape), *counts.tolist()]))
    return hashlib.sha256(f"gliorn voxels 1: {text}".encode()).digest()


def fingerprints_of(cohort: Cohort) -> list[list[bytes]]:
    """The fingerprints of each patient's images, all exams together; these do not leave the site.

    Raises:
        DataError: A file cannot be read.
    """
    found: dict[str, list[bytes]] = defaultdict(list)
    for exam in cohort.exams:
        for sequence, path in exam.volumes.items():
            name = f"{exam.name}: {sequence}"
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"{name}: {path} cannot be read ({error.strerror or error}); look at the file"
                ) from None
            found[exam.patient_id].append(voxel_fingerprint(read_volume(data, name=name).values))
    return list(found.values())


def blinding_key(site_secret: bytes, *, run: str, study_digest: str) -> bytes:
    """The site's secret for one run. Another run has another, so that points of two runs cannot be compared."""
    return hmac.digest(site_secret, f"gliorn duplicates: {study_digest} {run}".encode(), "sha256")


def blinded(
    patients: Sequence[Sequence[bytes]], key: bytes, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> BlindedPatients:
    """The site's own patients as they leave it.

    Args:
        patients: The fingerprints of each patient's images.
        key: The site's secret for the run.
        random_bytes: Source of the points that stand for nothing, by which all patients have equally many.
    """
    most = max(map(len, patients), default=0)
    return _multiplied(
        [[*points, *(random_bytes(POINT_BYTES) for _ in range(most - len(points)))] for points in patients], key
    )


def blinded_again(patients: BlindedPatients, key: bytes) -> BlindedPatients:
    """Patients of any site, in another order.

    Raises:
        ProtocolError: If a point is one that gives a secret away.
    """
    return _multiplied(patients.points(), key)


def _multiplied(groups: Iterable[Sequence[bytes]], key: bytes) -> BlindedPatients:
    """Every point times the key (X25519). Sorted, which after blinding is an order by chance."""
    secret = X25519PrivateKey.from_private_bytes(key)
    try:
        return BlindedPatients(
            tuple(
                sorted(
                    b"".join(sorted(secret.exchange(X25519PublicKey.from_public_bytes(point)) for point in points))
                    for points in groups
                )
            )
        )
    except ValueError:  # the library refuses results of zero, which points of small order have
        raise ProtocolError("duplicates: a point has a small order, expected one of an image") from None
