"""How numbers and names are written in a report: one form for each kind, everywhere."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from common.metrics.estimate import Estimate

NOT_ESTIMABLE = "not estimable"

CROP_WORDS = {
    "point": "radiologist's point",
    "mask": "lesion mask",
    "enhancement": "found in T1ce − T1",
    "t1ce": "found in T1ce alone",
    "head": "middle of the head",
}
SEQUENCE_WORDS = {"t1": "T1", "t2": "T2", "t1ce": "T1ce"}


def three(value: float) -> str:
    """Three decimals, with a real minus sign."""
    text = f"{value:.3f}"
    return text.replace("-", "−") if float(text) != 0.0 else "0.000"


def interval_text(estimate: Estimate) -> str:
    """The interval, or "no interval"; empty where there is no value either."""
    if estimate.value is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"[{three(estimate.low)}, {three(estimate.high)}]"


def with_interval(estimate: Estimate) -> str:
    """Value and interval on one line."""
    if estimate.value is None:
        return NOT_ESTIMABLE
    return f"{three(estimate.value)} {interval_text(estimate)}"


def percent_name(share: float) -> str:
    """A coverage such as .95 as "95 %"."""
    return f"{100 * share:g} %"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 site", "3 sites"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def and_list(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def duration(seconds: float) -> str:
    """A time span in the two largest units."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def size(num_bytes: float) -> str:
    """A number of bytes in MB or GB (powers of 1000)."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def moment(text: str) -> str:
    """An ISO time as a date and a time a person reads."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def counts_by_name(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Counts that are not 0, each with its name; "none" where all are."""
    parts = [f"{words.get(name, name)}: {number}" for name, number in counts.items() if number]
    return ", ".join(parts) if parts else "none"


def threshold_text(threshold: float | str | None) -> str:
    """A threshold on the logit margin and the probability of necrosis that it stands for."""
    if threshold is None:
        return "none"
    value = float(threshold)
    if math.isinf(value):
        return "above every score: nobody is called necrosis" if value > 0 else "below every score: all are"
    return f"margin {three(value)}, probability {three(1 / (1 + math.exp(-value)))}"


def rule_text(rule: str) -> str:
    """The rule of the operating point in words."""
    name, _, value = rule.partition(" ")
    match name:
        case "sensitivity":
            return f"the highest threshold with a sensitivity of at least {value}"
        case "specificity":
            return f"the lowest threshold with a specificity of at least {value}"
        case "youden":
            return "the threshold with the highest sensitivity + specificity − 1 (Youden)"
        case _:
            return f"a margin fixed beforehand, {value}" if name == "fixed" else rule


def shortened(name: str, length: int) -> str:
    """A name that fits, with the middle left out: ends tell names apart as often as beginnings do."""
    if len(name) <= length:
        return name
    head = (length - 1) * 3 // 5
    return f"{name[:head]}…{name[-(length - 1 - head) :]}"
