"""The preflight as one HTML file that needs nothing else: findings, and every case as a picture."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2 import Environment, PackageLoader

from client.preflight.examine import Examined
from client.preflight.findings import Hit
from client.preflight.registry import CHECKS
from client.preflight.run import Preflight
from common.study import Study

_NO_SUSPICION = frozenset({"not-ras", "trailing-one", "sequence-incomplete"})
_BLOCK_WEIGHT = 100


@dataclass(frozen=True)
class Case:
    """One exam on the page.

    Attributes:
        name: How it is named at the site.
        label: As written in the table.
        suspicion: The larger, the nearer to the top.
        png: The picture in base64; "" where no volume could be read.
        remarks: Severity and text of what was found with it.
    """

    name: str
    label: str
    suspicion: int
    png: str
    remarks: tuple[tuple[str, str], ...]


def render_page(preflight: Preflight, *, site: str, study: Study | None, made_at: datetime) -> str:
    """The page.

    Args:
        preflight: What was found, with pictures.
        site: The site's name.
        study: Gives the crop; None draws none.
        made_at: Shown on the page.
    """
    environment = Environment(
        loader=PackageLoader("client.preflight", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    crop = crop_of(study)
    rows = preflight.listing.rows
    return environment.get_template("preflight.html.j2").render(
        site=site,
        num_exams=len(rows),
        num_patients=len({row.patient_id for row in rows}),
        num_blocks=sum(finding.severity == "block" for finding in preflight.findings),
        num_warnings=sum(finding.severity == "warn" for finding in preflight.findings),
        made_at=f"{made_at:%Y-%m-%d %H:%M}",
        findings=preflight.findings,
        cases=cases_of(preflight),
        crop="" if crop is None else " x ".join(f"{mm:g}" for mm in crop),
    )


def crop_of(study: Study | None) -> tuple[float, float, float] | None:
    """Edges of a study's crop in mm."""
    if study is None:
        return None
    spacing, size = study.preprocessing.spacing_mm, study.preprocessing.size_voxels
    return spacing[0] * size[0], spacing[1] * size[1], spacing[2] * size[2]


def cases_of(preflight: Preflight) -> list[Case]:
    """All exams, the most suspicious first: by findings that block, then by those that warn, then by row."""
    hits: dict[str, list[Hit]] = {}
    for finding in preflight.findings:
        for hit in finding.hits:
            hits.setdefault(hit.case, []).append(hit)
    examined: Mapping[int, Examined] = {exam.number: exam for exam in preflight.examined}
    cases = []
    for row in preflight.listing.rows:
        own = hits.get(row.name, [])
        png = examined[row.number].picture if row.number in examined else b""
        remarks = tuple((CHECKS[hit.check].severity, f"{hit.check}: {hit.detail}") for hit in own)
        cases.append(Case(row.name, row.label, _suspicion(own), base64.b64encode(png).decode(), remarks))
    return sorted(cases, key=lambda case: -case.suspicion)


def _suspicion(hits: Sequence[Hit]) -> int:
    blocks = sum(CHECKS[hit.check].severity == "block" for hit in hits)
    warnings = sum(CHECKS[hit.check].severity == "warn" and hit.check not in _NO_SUSPICION for hit in hits)
    return _BLOCK_WEIGHT * blocks + warnings
