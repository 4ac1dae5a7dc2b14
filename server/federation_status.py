"""How a federation is: its server, its certificate, its sites, the run at work and those that wait."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from common.errors import ConfigError
from common.tasks import SPLITS, SiteManifest, Split
from server.federation_folder import FederationFolder, admitted
from server.keeper import is_due, runs_in_order
from server.leaving_off import read_manifests
from server.locks import is_held
from server.report.wording import count
from server.run_folder import RunFolder
from server.run_status import RunStatus, read_status, stand, status_lines
from server.serving import DAYS_TO_WARN, certificate_lifetime, is_served
from server.sightings import CONNECTED_WITHIN_S, Sighting, read_sightings


@dataclass(frozen=True)
class SiteStatus:
    """How one site is.

    Attributes:
        revoked: Whether its key counts no more.
        connected: Whether it was heard of lately.
        last_seen: When it was last heard of; None if never.
        version: gliorn at the site, as it said itself.
        upload_mbit: Megabits per second of its last large upload.
        task: What it was asked for last in the run at work, such as "round 3"; None where it was asked nothing.
        answered: Whether it has answered that.
        num_patients: For each split, patients with recurrence and with necrosis, as it last told a run.
    """

    name: str
    revoked: bool
    connected: bool
    last_seen: datetime | None
    version: str | None
    upload_mbit: float | None
    task: str | None
    answered: bool
    num_patients: Mapping[Split, tuple[int, int]] | None


@dataclass(frozen=True)
class FederationStatus:
    """How a federation is.

    Attributes:
        address: What sites connect to.
        served: Whether a `gliorn-server start` serves it.
        certificate_days: Whole days that its certificate is still valid; negative after its end.
        certificate_fault: Why that is not known; empty where it is.
        sites: All that were ever admitted, by name.
        run: The run at work; the next one, or else the newest one, where none is.
        queue: Names of the runs that wait for their turn.
        troubles: For each run that the server gave up on, why.
        faults: Runs whose files cannot be read, as sentences.
    """

    name: str
    address: str
    served: bool
    certificate_days: int | None
    certificate_fault: str
    sites: tuple[SiteStatus, ...]
    run: RunStatus | None
    queue: tuple[str, ...]
    troubles: Mapping[str, str]
    faults: tuple[str, ...]


def read_federation_status(folder: FederationFolder, *, now: datetime) -> FederationStatus:
    """How a federation is.

    Raises:
        ConfigError: If this is no federation's folder, or its register is damaged.
    """
    config = folder.read_config()
    runs = runs_in_order(folder.runs)
    due = [run for run in runs if is_due(run)]
    at_work = [run for run in runs if is_held(run.server_app_lock)]
    shown = next(iter([*at_work, *due, *reversed(runs)]), None)
    run, fault = _read_run(shown)
    days, certificate_fault = _certificate(folder, now=now)
    served = is_served(folder)
    return FederationStatus(
        name=config.name,
        address=config.address,
        served=served,
        certificate_days=days,
        certificate_fault=certificate_fault,
        sites=_sites(folder, now=now, served=served, run=run, manifests=_manifests(runs)),
        run=run,
        queue=tuple(each.name for each in due if shown is None or each.name != shown.name),
        troubles={each.name: trouble for each in runs if (trouble := each.read_trouble()) is not None},
        faults=(fault,) if fault else (),
    )


def _read_run(folder: RunFolder | None) -> tuple[RunStatus | None, str]:
    if folder is None:
        return None, ""
    try:
        return read_status(folder), ""
    except ConfigError as error:
        return None, str(error)


def _certificate(folder: FederationFolder, *, now: datetime) -> tuple[int | None, str]:
    try:
        return certificate_lifetime(folder, now=now) // timedelta(days=1), ""
    except ConfigError as error:
        return None, str(error)


def _manifests(runs: Sequence[RunFolder]) -> dict[str, SiteManifest]:
    """What each site brought, as it last told a run."""
    known: dict[str, SiteManifest] = {}
    for run in runs:
        known |= read_manifests(run)
    return known


def _sites(
    folder: FederationFolder,
    *,
    now: datetime,
    served: bool,
    run: RunStatus | None,
    manifests: Mapping[str, SiteManifest],
) -> tuple[SiteStatus, ...]:
    register = folder.read_register()
    valid = admitted(register)
    sightings = read_sightings(folder.sightings)
    asked = _asked(run)
    return tuple(
        _site(
            name,
            revoked=name not in valid,
            sighting=sightings.get(name),
            now=now,
            served=served,
            asked=asked.get(name),
            manifest=manifests.get(name),
        )
        for name in sorted({site.name for site in register})
    )


def _site(
    name: str,
    *,
    revoked: bool,
    sighting: Sighting | None,
    now: datetime,
    served: bool,
    asked: tuple[str, bool] | None,
    manifest: SiteManifest | None,
) -> SiteStatus:
    last_seen = None if sighting is None else datetime.fromisoformat(sighting.last_seen).astimezone(UTC)
    recent = last_seen is not None and (now - last_seen).total_seconds() <= CONNECTED_WITHIN_S
    task, answered = (None, False) if asked is None else asked
    return SiteStatus(
        name=name,
        revoked=revoked,
        connected=served and recent and not revoked,
        last_seen=last_seen,
        version=None if sighting is None else sighting.version,
        upload_mbit=None if sighting is None else sighting.upload_mbit,
        task=task,
        answered=answered,
        num_patients=None if manifest is None else manifest.num_patients,
    )


def _asked(run: RunStatus | None) -> dict[str, tuple[str, bool]]:
    """What each site of the run at work was asked for last, and whether it has answered."""
    if run is None or not run.alive:
        return {}
    task = f"round {run.round}" if run.phase == "round" else run.phase
    return dict.fromkeys(run.answered, (task, True)) | dict.fromkeys(run.waiting_for, (task, False))


# --- as text ---------------------------------------------------------------------------------------------------------


def federation_lines(status: FederationStatus, *, now: datetime) -> list[str]:
    """The status for a person, with what to do next."""
    lines = [f"Federation {status.name}, sites connect to {status.address}"]
    lines.append("  server: running" if status.served else "  server: not running; `gliorn-server start` starts it")
    lines.append(f"  certificate: {_certificate_text(status)}")
    lines += [
        "",
        *(_table(status.sites, now) or ["No site has been admitted; `gliorn-server invite SITE` begins that."]),
    ]
    lines.append("")
    lines += ["No run yet; `gliorn-server run study.yaml` begins one."] if status.run is None else []
    lines += status_lines(status.run, now=now) if status.run is not None else []
    if status.queue:
        lines.append(f"Waiting for their turn: {', '.join(status.queue)}")
    shown = None if status.run is None else status.run.run
    lines += [f"{run}: {why}" for run, why in status.troubles.items() if run != shown]
    return lines + list(status.faults)


def federation_facts(status: FederationStatus) -> list[str]:
    """The same as short lines without ages, of which each is news when it is new."""
    lines = [f"server: {'running' if status.served else 'not running'}"]
    lines.append(f"certificate: {_certificate_text(status)}")
    lines += [f"{site.name}: {_connection(site)}" for site in status.sites]
    lines += [f"{site.name}: {site.task} answered" for site in status.sites if site.task and site.answered]
    if status.run is not None:
        lines += [
            f"{status.run.run}: {stand(status.run)}",
            *(f"{status.run.run}: {each}" for each in status.run.problems),
        ]
    return [*lines, *(f"{run}: {why}" for run, why in status.troubles.items()), *status.faults]


def federation_values(status: FederationStatus) -> dict[str, Any]:
    """The same as values that JSON can hold."""
    return {name: _plain(value) for name, value in asdict(status).items()}


def ago(moment: datetime, *, now: datetime) -> str:
    """How long ago something was, in one unit: "12 s ago"."""
    seconds = max(0, int((now - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _certificate_text(status: FederationStatus) -> str:
    days = status.certificate_days
    if days is None:
        return status.certificate_fault
    if days < 0:
        return "expired, no site can connect; `gliorn-server certs renew` makes a new one"
    advice = "; `gliorn-server certs renew` makes a new one" if days < DAYS_TO_WARN else ""
    return f"{count(days, 'day')} left{advice}"


def _connection(site: SiteStatus) -> str:
    if site.revoked:
        return "revoked"
    return "connected" if site.connected else ("never seen" if site.last_seen is None else "away")


def _table(sites: Sequence[SiteStatus], now: datetime) -> list[str]:
    """One line a site under a heading; none without sites."""
    if not sites:
        return []
    rows = [("SITE", "STATE", "LAST SEEN", "ASKED FOR", "VERSION", "UPLOAD", "PATIENTS recurrence+necrosis")]
    rows += [
        (
            site.name,
            _connection(site),
            "-" if site.last_seen is None else ago(site.last_seen, now=now),
            "-" if site.task is None else f"{site.task}, {'answered' if site.answered else 'at work'}",
            site.version or "-",
            "-" if site.upload_mbit is None else f"{site.upload_mbit:.1f} Mbit/s",
            _patients_text(site.num_patients),
        )
        for site in sites
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _patients_text(num_patients: Mapping[Split, tuple[int, int]] | None) -> str:
    if num_patients is None:
        return "-"
    return ", ".join(f"{split} {num_patients[split][0]}+{num_patients[split][1]}" for split in SPLITS)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
