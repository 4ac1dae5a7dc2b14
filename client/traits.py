"""What a source may say of a patient beside label and images: age, sex, time since radiotherapy. Nothing trains on it.

Columns `age` (years), `sex` and `months_since_radiotherapy`, as BIDS' participants.tsv has the first two. What is
absent or not understood is not known, and is counted so; it is no fault of the source.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Sex = Literal["female", "male", "other"]
AGE, SEX, MONTHS = "age", "sex", "months_since_radiotherapy"
MAX_AGE_YEARS, MAX_MONTHS = 130.0, 1200.0
_SEXES: Mapping[str, Sex] = {
    "f": "female",
    "female": "female",
    "m": "male",
    "male": "male",
    "o": "other",
    "other": "other",
}


@dataclass(frozen=True)
class Traits:
    """What is known of a patient at an exam; None where nothing is.

    Attributes:
        age_years: Age.
        sex: Sex.
        months_since_radiotherapy: Time from the end of radiotherapy.
    """

    age_years: float | None = None
    sex: Sex | None = None
    months_since_radiotherapy: float | None = None


UNKNOWN = Traits()


def traits_of(fields: Mapping[str, str]) -> Traits:
    """What the fields of an exam say, by column in lower case."""
    return Traits(
        age_years=_number(fields.get(AGE, "").removesuffix("+"), MAX_AGE_YEARS),  # BIDS writes 89+ for the very old
        sex=_SEXES.get(fields.get(SEX, "").lower()),
        months_since_radiotherapy=_number(fields.get(MONTHS, ""), MAX_MONTHS),
    )


def _number(text: str, limit: float) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= limit else None
