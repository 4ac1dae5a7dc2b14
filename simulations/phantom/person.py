"""The clinical facts of a patient, as a table of participants holds them."""

from dataclasses import dataclass

import numpy as np

from simulations.phantom.lesion import NECROSIS

MISSING = "n/a"
_MEDIAN_MONTHS = {True: 14.0, False: 9.0}
_GRADES, _GRADE_SHARES = (2, 3, 4), (0.15, 0.20, 0.65)
_IDH_MUTANT = {2: 0.75, 3: 0.60, 4: 0.08}
_NOT_TESTED = {"idh": 0.10, "mgmt": 0.25}


@dataclass(frozen=True)
class Person:
    """Clinical facts; only the time since radiotherapy depends on the class.

    Attributes:
        months_since_radiotherapy: Rounded to a tenth.
        age: Years.
        sex: "F" or "M".
        who_grade: 2, 3 or 4.
        idh: "mutant", "wildtype" or "n/a".
        mgmt: "methylated", "unmethylated" or "n/a".
    """

    months_since_radiotherapy: float
    age: int
    sex: str
    who_grade: int
    idh: str
    mgmt: str


def draw_person(label: int, generator: np.random.Generator) -> Person:
    """Draw a patient of a class, 1 necrosis or 0 recurrence."""
    months = _MEDIAN_MONTHS[label == NECROSIS] * np.exp(generator.normal(0.0, 0.7))
    grade = int(generator.choice(_GRADES, p=_GRADE_SHARES))
    idh = "mutant" if generator.random() < _IDH_MUTANT[grade] else "wildtype"
    mgmt = "methylated" if generator.random() < 0.45 else "unmethylated"
    idh_tested, mgmt_tested = generator.random(2) >= (_NOT_TESTED["idh"], _NOT_TESTED["mgmt"])
    return Person(
        months_since_radiotherapy=round(float(months), 1),
        age=int(np.clip(round(generator.normal(52.0, 12.0)), 19, 84)),
        sex="F" if generator.random() < 0.42 else "M",
        who_grade=grade,
        idh=idh if idh_tested else MISSING,
        mgmt=mgmt if mgmt_tested else MISSING,
    )
