"""Folders of federations and kits of sites as older versions wrote them are still good."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.config import SiteConfig, read_site_config
from client.consent import has_consented
from client.coordinator import say_hello
from client.kit import Kit, kit_of
from common.study import parse_study
from server.cli import main
from server.federation_folder import FederationFolder
from server.provisioning import make_certificate_authority, make_server_certificate
from tests.gateway_federation import HOST, RunningGateway, running_gateway

KITS = Path(__file__).parent / "kits"
VERSIONS = sorted(path.name for path in KITS.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote, for its owner alone as it was: a checkout does not keep that."""
    copy = shutil.copytree(KITS / request.param, tmp_path / "kept")
    for path in copy.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder = FederationFolder(copy / "federation")
    for part in (folder.superlink / "tls", folder.runs, folder.logs):  # empty then, and git keeps no empty folder
        part.mkdir(parents=True, exist_ok=True)
    return copy


@pytest.fixture
def gateway(kept: Path) -> Iterator[RunningGateway]:
    """Its gateway as it runs now, with a certificate that has not expired."""
    folder = FederationFolder(kept / "federation")
    assert main(["certs", "renew", "--federation", str(folder.path)]) == 0
    inner = make_certificate_authority("loopback", now=datetime.now(UTC), lifetime=timedelta(days=1))
    certificate, key = make_server_certificate(inner, hosts=[HOST], now=datetime.now(UTC), lifetime=timedelta(days=1))
    for name, content in {"ca.crt": inner.certificate, "server.crt": certificate, "server.key": key}.items():
        (folder.superlink / "tls" / name).write_bytes(content)
    with running_gateway(folder, superlink_port=1) as gateway:  # nothing is forwarded here
        yield gateway


def kit_and_config(kept: Path) -> tuple[Kit, SiteConfig]:
    site = kept / "hospital-a" / "site.yaml"
    config = read_site_config(site)
    return kit_of(config, origin=site), config


def test_site_is_known_to_its_coordinator_without_enrolling_again(kept: Path, gateway: RunningGateway) -> None:
    kit, config = kit_and_config(kept)

    reply = say_hello(replace(kit, address=f"{HOST}:{gateway.port}"), config, now=datetime.now(UTC))

    assert (reply.site, reply.federation) == ("hospital-a", "kept")


def test_consent_of_a_site_still_holds(kept: Path) -> None:
    _, config = kit_and_config(kept)
    study = kept / "federation" / "study.yaml"

    assert has_consented(config, parse_study(study.read_text(encoding="utf-8"), origin=str(study)))


def test_register_and_certificates_are_read(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = str(kept / "federation")

    assert main(["sites", "--federation", federation]) == 0
    assert main(["certs", "--federation", federation]) == 0
    assert main(["status", "--federation", federation]) == 0

    assert "hospital-a" in capsys.readouterr().out
