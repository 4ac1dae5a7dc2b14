"""Whether a site's data are fit for a study: all exams prepared, counted, and held against what may leave."""

from dataclasses import dataclass

from client.config import SiteConfig
from client.loader import PreparedCohort
from client.prepare import OnExam, prepare_site
from client.rehearsal.findings import Finding
from client.site import Site, disclosure_faults, find_device
from common.errors import ConfigError, DataError
from common.study import CLASS_NAMES, Study
from common.tasks import SPLITS, SiteManifest, Split


@dataclass(frozen=True)
class Data:
    """What the rehearsal of the data found.

    Attributes:
        findings: Of the data, and of the device where there is none.
        manifest: What the coordinator would be told; None if the site could not take part.
        prepared: Whether all exams lie in the cache.
    """

    findings: tuple[Finding, ...]
    manifest: SiteManifest | None
    prepared: bool


def rehearse_data(config: SiteConfig, study: Study, *, workers: int, on_exam: OnExam | None) -> Data:
    """Read every exam of the site, prepare what the cache lacks, and say what is wrong with which."""
    try:
        cohort = prepare_site(config, study, workers=workers, on_exam=on_exam)
    except (DataError, ConfigError) as error:
        finding = Finding("data", "exams", "FAIL", str(error), "mend the exams, the table or site.yaml", study.name)
        return Data((finding,), None, prepared=False)
    findings = [_exams(cohort, study), *_counts(config, cohort, study)]
    faults = disclosure_faults(config, study, cohort)
    findings += [_disclosure(fault, study) for fault in faults]
    try:
        device = find_device(config.device)
    except ConfigError as error:
        found, _, advice = str(error).partition("; ")
        findings.append(Finding("computing", "device", "FAIL", found, advice, study.name))
        return Data(tuple(findings), None, prepared=True)
    manifest = None if faults else Site(config, study, cohort, device).describe()
    return Data(tuple(findings), manifest, prepared=True)


def _exams(cohort: PreparedCohort, study: Study) -> Finding:
    total = sum(split.num_exams for split in cohort.splits.values())
    found = f"{total} exams are prepared, {cohort.num_from_cache} of them were in the cache"
    return Finding("data", "exams", "ok", found, study=study.name)


def _counts(config: SiteConfig, cohort: PreparedCohort, study: Study) -> list[Finding]:
    """Patients by split and class, and what few of them mean."""
    findings = []
    for split in SPLITS:
        counts = cohort.splits[split].class_counts
        found = " + ".join(f"{count} {name}" for count, name in zip(counts, CLASS_NAMES, strict=True)) + " patients"
        problem, advice = _problem(split, counts, min_cell=config.disclosure.min_cell)
        if problem:
            findings.append(Finding("data", split, "warning", f"{found}: {problem}", advice, study.name))
        else:
            findings.append(Finding("data", split, "ok", found, study=study.name))
    return findings


def _problem(split: Split, counts: tuple[int, int], *, min_cell: int) -> tuple[str, str]:
    """What is unfortunate about the patients of a split, and what follows; both empty where nothing is."""
    if split == "train":
        if 0 in counts:
            return "one class is missing", "tell the coordinator; training on one class pulls the model to it"
    elif not any(counts):
        return "none to evaluate on", f"nothing needs mending; the pooled {split} figures are formed without this site"
    elif any(0 < count < min_cell for count in counts):
        return (
            f"a class is smaller than disclosure.min_cell ({min_cell})",
            f"nothing needs mending; this site's {split} statistics are withheld, and it trains all the same",
        )
    return "", ""


def _disclosure(fault: str, study: Study) -> Finding:
    found, _, advice = fault.partition("; ")
    return Finding("data", "disclosure", "FAIL", found, advice, study.name)
