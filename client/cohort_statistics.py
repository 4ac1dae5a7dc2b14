"""What a site shows of its cohort before any training: counts in fixed bins, small ones hidden. Made here, leaves here.

A patient counts once, by the first exam in the order of the exam identifiers; only `exams` looks at all exams.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from client.cohort import Cohort
from client.cohort_summary import spacing_of
from client.exam import Exam
from client.loader import PreparedCohort
from client.suppression import Cell, hidden_row, of_patients, suppressed
from common.cohort_statistics import (
    AGE_EDGES,
    BY_CLASS,
    HIDDEN,
    INTENSITY_LIMIT,
    MISSING,
    MONTHS_EDGES,
    NUM_INTENSITY_BINS,
    SEX_COLUMNS,
    SPACING_EDGES_MM,
    SPLIT_COLUMNS,
    UNREADABLE,
    CohortStatistics,
    TableLayout,
    TableName,
    layout_of,
)
from common.study import CLASS_NAMES
from common.study import Sequence as MriSequence
from common.tasks import SPLITS

Rows = Mapping[tuple[TableName, str], tuple[Cell, ...]]


def shown_statistics(
    prepared: PreparedCohort, sequences: Sequence[MriSequence], *, min_cell: int
) -> CohortStatistics | None:
    """What the site shows; None where it has fewer patients than it shows of anything."""
    counted = counted_rows(prepared, sequences)
    num_patients = len(_first_exams(prepared.cohort))
    return None if num_patients < min_cell else CohortStatistics(with_hidden(counted, min_cell))


def counted_rows(prepared: PreparedCohort, sequences: Sequence[MriSequence]) -> Rows:
    """All counts of all tables; these do not leave the site."""
    cohort = prepared.cohort
    first = _first_exams(cohort)
    rows: dict[tuple[TableName, str], tuple[Cell, ...]] = {}
    layouts = {table.name: table for table in layout_of(sequences)}
    for label, name in enumerate(CLASS_NAMES):
        exams = [exam for exam in first.values() if exam.label == label]
        places: dict[TableName, list[int]] = {
            "split": [SPLIT_COLUMNS.index(cohort.split_of[exam.patient_id]) for exam in exams],
            "age": [_bin(exam.traits.age_years, AGE_EDGES) for exam in exams],
            "sex": [SEX_COLUMNS.index(exam.traits.sex or "unknown") for exam in exams],
            "months": [_bin(exam.traits.months_since_radiotherapy, MONTHS_EDGES) for exam in exams],
        }
        for table in BY_CLASS:
            rows[table, name] = _counted(places[table], layouts[table])
    num_exams = Counter(exam.patient_id for exam in cohort.exams)
    most = len(layouts["exams"].columns)
    rows["exams", "patients"] = _counted([min(number, most) - 1 for number in num_exams.values()], layouts["exams"])
    for sequence in sequences:
        spacing = layouts["spacing"]
        found = [_spacing_place(exam, sequence, spacing) for exam in first.values()]
        rows["spacing", sequence] = _counted(found, spacing)
    for place, sequence in enumerate(sequences):
        rows["intensity", sequence] = _intensities(prepared, sequence, channel=place)
    return {(table.name, row): rows[table.name, row] for table in layouts.values() for row in table.rows}


def with_hidden(rows: Rows, min_cell: int) -> dict[tuple[TableName, str], tuple[int, ...]]:
    """Hide what may not be shown, by the rule of `client.suppression` and by two more that hold between tables.

    Where a class has patients, but too few, nothing is shown by class: else the other class, taken from the patients of
    a table without classes, would tell their number. And where it is hidden how many patients lack a sequence, its
    intensities are not shown: all their voxels together tell how many patients have it.
    """
    totals = [sum(cell.num_patients for cell in rows["split", name]) for name in CLASS_NAMES]
    small_class = any(0 < total < min_cell for total in totals)
    shown: dict[tuple[TableName, str], tuple[int, ...]] = {}
    for (table, row), cells in rows.items():
        shown[table, row] = suppressed(cells, min_cell)
        if (table in BY_CLASS and small_class) or (table == "intensity" and _hides_missing(rows, row, min_cell)):
            shown[table, row] = hidden_row(cells)
    return shown


def _hides_missing(rows: Rows, sequence: str, min_cell: int) -> bool:
    """Whether patients lack a sequence and their number is hidden."""
    spacing = rows["spacing", sequence]
    return spacing[-1].count > 0 and suppressed(spacing, min_cell)[-1] == HIDDEN


def _first_exams(cohort: Cohort) -> dict[str, Exam]:
    first: dict[str, Exam] = {}
    for exam in cohort.exams:
        first.setdefault(exam.patient_id, exam)
    return first


def _counted(places: Sequence[int], layout: TableLayout) -> tuple[Cell, ...]:
    counts = Counter(places)
    return of_patients([counts[place] for place in range(len(layout.columns))])


def _bin(value: float | None, edges: Sequence[float]) -> int:
    """The bin of a value; the one after the last where it is not known."""
    return len(edges) + 1 if value is None else int(np.searchsorted(edges, value, side="right"))


def _spacing_place(exam: Exam, sequence: MriSequence, layout: TableLayout) -> int:
    if sequence not in exam.volumes:
        return layout.columns.index(MISSING)
    spacing = spacing_of(exam.volumes[sequence])
    return layout.columns.index(UNREADABLE) if not spacing else _bin(spacing[-1], SPACING_EDGES_MM)


def _intensities(prepared: PreparedCohort, sequence: MriSequence, *, channel: int) -> tuple[Cell, ...]:
    """Voxels by bin over the first exams that have the sequence, and in how many patients' crops the bin occurs."""
    voxels = np.zeros(NUM_INTENSITY_BINS, dtype=np.int64)
    patients = np.zeros(NUM_INTENSITY_BINS, dtype=np.int64)
    edges = np.linspace(-INTENSITY_LIMIT, INTENSITY_LIMIT, NUM_INTENSITY_BINS + 1)
    for exam, image in _first_crops(prepared):
        if sequence in exam.volumes:
            counts, _ = np.histogram(image[channel].clip(-INTENSITY_LIMIT, INTENSITY_LIMIT), edges)
            voxels += counts
            patients += counts > 0
    return tuple(Cell(int(count), int(number)) for count, number in zip(voxels, patients, strict=True))


def _first_crops(prepared: PreparedCohort) -> Iterator[tuple[Exam, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    first = _first_exams(prepared.cohort)
    for split in SPLITS:
        images = prepared.splits[split].images
        for place, exam in enumerate(prepared.cohort.exams_of(split)):
            if first[exam.patient_id] is exam:
                yield exam, images[place : place + 1][0].numpy()
