"""What a JSON sidecar tells of the scanner and the sequence: numbers and a few words, never who was scanned or when."""

import re
from collections.abc import Mapping
from pathlib import Path

from client.sources.json_text import read_json
from common.errors import ConfigError

NUMBERS = ("MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "SliceThickness")
WORDS = ("Manufacturer", "ManufacturersModelName", "MRAcquisitionType")
_WORD = re.compile(r"[A-Za-z0-9 ._+/-]{1,40}")


def harmless(sidecar: Mapping[str, object]) -> dict[str, float | str]:
    """The entries that describe machine and sequence, by BIDS' names; all others are left out."""
    kept: dict[str, float | str] = {}
    for name in NUMBERS:
        value = sidecar.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            kept[name] = value
    for name in WORDS:
        value = sidecar.get(name)
        if isinstance(value, str) and _WORD.fullmatch(value):
            kept[name] = value
    return kept


def sidecar_of(volume: Path) -> dict[str, float | str]:
    """What is known of a volume from the JSON file beside it; empty where there is none that can be read."""
    path = volume.with_name(volume.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ConfigError:
        return {}  # the preflight tells of it; here it is as if the scanner were not known
    return harmless(value) if isinstance(value, dict) else {}
