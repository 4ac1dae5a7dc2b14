"""Which studies are rehearsed: those that the coordinator offers, the one in a file, or those that were accepted."""

from dataclasses import dataclass

from client.config import SiteConfig
from client.consent import has_consented
from client.kit import Kit
from client.rehearsal.findings import Finding
from common.errors import ConfigError
from common.hello import HelloReply
from common.study import Study, parse_study


@dataclass(frozen=True)
class Studies:
    """What to rehearse, and what was found of consent."""

    findings: tuple[Finding, ...]
    studies: tuple[Study, ...]


def studies_to_rehearse(
    config: SiteConfig, kit: Kit, *, reply: HelloReply | None, named: Study | None, site_file: str
) -> Studies:
    """Say of each offered study whether the site accepted it, and choose those to rehearse.

    These are the named one; else the accepted ones among those offered; else all that are offered, so that a person
    knows what a study asks for before she accepts it. Without the coordinator's answer, all that were accepted.

    Args:
        config: The site's configuration.
        kit: Its membership.
        reply: The coordinator's answer, if there was one.
        named: The study of `--study`.
        site_file: The site's file as it was typed, for advice.
    """
    if reply is None:
        kept = (named,) if named is not None else tuple(kept_studies(kit))
        found = "the coordinator's offers are not known"
        found += "" if kept else ", and no accepted study lies in the kit to rehearse without it"
        advice = "mend the connection" if kept else "mend the connection, or name a study with --study FILE"
        return Studies((Finding("consent", "studies", "warning", found, advice),), kept)
    findings: list[Finding] = []
    offered: list[Study] = []
    for offer in reply.studies:
        try:
            study = parse_study(offer.text, origin="the coordinator's study")
        except ConfigError as error:
            findings.append(_unusable(offer.name, str(error)))
            continue
        if study.digest != offer.digest:
            found = f"its text has the digest {study.digest[:16]}…, the coordinator says {offer.digest[:16]}…"
            findings.append(_unusable(offer.name, found))
            continue
        if study not in offered:  # the federation's study and a run of it are one
            offered.append(study)
    if not reply.studies:
        found = "the coordinator offers no study yet"
        findings.append(Finding("consent", "studies", "warning", found, "ask the coordinator when one begins"))
    accepted = [study for study in offered if has_consented(config, study)]
    findings += [_consent(study, study in accepted, any_accepted=bool(accepted), site=site_file) for study in offered]
    if named is None:
        return Studies(tuple(findings), tuple(accepted or offered))
    if named.digest not in {study.digest for study in offered}:
        names = ", ".join(f"{study.name} ({study.digest[:16]}…)" for study in offered) or "none"
        found = f"the study of --study has the digest {named.digest[:16]}…, the coordinator offers {names}"
        advice = "ask the coordinator for the file it runs, or leave --study away"
        findings.append(Finding("consent", "--study", "FAIL", found, advice, named.name))
    return Studies(tuple(findings), (named,))


def kept_studies(kit: Kit) -> list[Study]:
    """The studies whose texts `gliorn-client accept` kept when they were accepted; unreadable ones are left out."""
    studies = []
    for path in sorted(kit.accepted.glob("*.yaml")):
        try:
            study = parse_study(path.read_text(encoding="utf-8"), origin=path.name)
        except (ConfigError, OSError, UnicodeDecodeError):
            continue
        if study.digest == path.stem:
            studies.append(study)
    return studies


def _consent(study: Study, accepted: bool, *, any_accepted: bool, site: str) -> Finding:
    found = f"{study.name}, digest {study.digest}"
    if accepted:
        return Finding("consent", "accepted", "ok", found, study=study.name)
    advice = f"read it and agree: gliorn-client accept --site {site} (or write its digest under studies in site.yaml)"
    level_found = f"{found}: not accepted by this site, which refuses its rounds"
    if any_accepted:
        return Finding("consent", "not accepted", "warning", level_found, advice, study.name)
    return Finding("consent", "not accepted", "FAIL", level_found, advice, study.name)


def _unusable(name: str, fault: str) -> Finding:
    advice = "install the version of gliorn that the coordinator runs, or tell the coordinator"
    return Finding("consent", "study", "FAIL", f"the study {name!r} that is offered is unusable: {fault}", advice, name)
