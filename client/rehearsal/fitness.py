"""The preflight's findings as findings of the rehearsal."""

from client.preflight.run import Preflight
from client.rehearsal.findings import Finding, Level
from common.study import Study

_LEVELS: dict[str, Level] = {"block": "FAIL", "warn": "warning"}


def fitness_findings(preflight: Preflight, study: Study | None) -> tuple[Finding, ...]:
    """One finding a check that found something, after one that says how much was read."""
    name = "" if study is None else study.name
    num_files = sum(bool(facts.sha256) for exam in preflight.examined for facts in exam.files.values())
    num_exams, num_found = len(preflight.listing.rows), len(preflight.findings)
    found = f"{num_exams} exams, {num_files} files read to their end; "
    if num_found:
        found += f"{num_found} check{'' if num_found == 1 else 's'} found something"
    else:
        found += "nothing was found"
    told = [
        Finding("data", each.check, _LEVELS[each.severity], each.sentence, each.remedy, name)
        for each in preflight.findings
    ]
    return (Finding("data", "files", "ok", found, study=name), *told)
