"""A site from its invite to its last hello, with the federation's own commands and a gateway as a process."""

import hashlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from client.config import SiteConfig, read_site_config
from client.coordinator import HelloError, say_hello
from client.enroll import enroll
from client.greeting import Greeter
from client.kit import Kit, kit_of
from common.authorities import certificate_digest, certificates_in
from common.enrolment import Invite
from server.admission import admit, revoke
from server.authority import (
    add_authority,
    renew_server_certificate,
    retire_old_authority,
    server_certificate,
    signing_authority,
    trusted_authorities,
    use_new_authority,
    vouchers,
)
from server.cli import main
from server.federation_folder import FederationFolder
from server.invites import invite_sites
from server.provisioning import make_certificate_authority, make_server_certificate
from server.sightings import read_sightings
from tests.gateway_federation import HOST, RunningGateway, running_gateway, wait_until

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    """A federation as `init` makes it, with what `start` would have left for the gateway to find its SuperLink by."""
    assert main(["init", str(tmp_path / "f"), "--name", "necrosis", "--host", HOST]) == 0
    folder = FederationFolder(tmp_path / "f")
    inner = make_certificate_authority("loopback", now=datetime.now(UTC), lifetime=DAY)
    certificate, key = make_server_certificate(inner, hosts=[HOST], now=datetime.now(UTC), lifetime=DAY)
    (folder.superlink / "tls").mkdir()
    for name, content in {"ca.crt": inner.certificate, "server.crt": certificate, "server.key": key}.items():
        (folder.superlink / "tls" / name).write_bytes(content)
    return folder


@pytest.fixture
def gateway(folder: FederationFolder) -> Iterator[RunningGateway]:
    with running_gateway(folder, superlink_port=1) as gateway:  # nothing is forwarded here
        yield gateway


def enrolled(folder: FederationFolder, gateway: RunningGateway, home: Path) -> tuple[Kit, SiteConfig, str]:
    """Kit and configuration of a site that took up an invite, and its request."""
    now = datetime.now(UTC)
    [invite] = invite_sites(
        folder,
        ["hospital-x"],
        authority=signing_authority(folder),
        trusted=trusted_authorities(folder),
        study=None,
        lifetime=DAY,
        replace_key=False,
        now=now,
    )
    home.mkdir()
    done = enroll(invite.text, home / "site.yaml", now=now)
    assert isinstance(done.invite, Invite)
    (home / "table.tsv").write_text("")
    config = read_site_config(home / "site.yaml")
    kit = kit_of(config, origin=home / "site.yaml")
    return replace(kit, address=f"{HOST}:{gateway.port}"), config, done.request


def fault_of_hello(kit: Kit, config: SiteConfig) -> str | None:
    try:
        say_hello(kit, config, now=datetime.now(UTC))
    except HelloError as error:
        return error.fault
    return None


def wait_until_hello_gives(fault: str | None, kit: Kit, config: SiteConfig) -> None:
    def holds() -> bool:
        time.sleep(0.3)  # a stranger who asks too often is put off
        return fault_of_hello(kit, config) == fault

    wait_until(holds)


def test_site_is_known_from_its_admission_to_its_revocation_without_a_restart(
    folder: FederationFolder, gateway: RunningGateway, tmp_path: Path
) -> None:
    kit, config, request = enrolled(folder, gateway, tmp_path / "hospital")
    assert fault_of_hello(kit, config) == "unknown-key"

    admit(folder, request, now=datetime.now(UTC))
    wait_until_hello_gives(None, kit, config)
    reply = say_hello(kit, config, now=datetime.now(UTC))
    assert (reply.site, reply.federation, reply.federation_id) == ("hospital-x", "necrosis", kit.federation_id)
    assert [study.name for study in reply.studies] == ["necrosis"]

    revoke(folder, ["hospital-x"], now=datetime.now(UTC))
    wait_until_hello_gives("revoked", kit, config)


def test_kit_of_one_federation_is_refused_by_another(
    folder: FederationFolder, gateway: RunningGateway, tmp_path: Path
) -> None:
    kit, config, request = enrolled(folder, gateway, tmp_path / "hospital")
    admit(folder, request, now=datetime.now(UTC))
    wait_until_hello_gives(None, kit, config)

    assert fault_of_hello(replace(kit, federation_id="0" * 32), config) == "other-federation"


def test_certificates_and_authority_change_under_a_site_that_never_loses_the_coordinator(
    folder: FederationFolder, gateway: RunningGateway, tmp_path: Path
) -> None:
    kit, config, request = enrolled(folder, gateway, tmp_path / "hospital")
    admit(folder, request, now=datetime.now(UTC))
    wait_until_hello_gives(None, kit, config)
    greeter = Greeter(
        kit, config, installed_version=version("gliorn"), environment=os.environ, now=lambda: datetime.now(UTC)
    )

    def greets(holds: Callable[[], bool]) -> None:
        """Say hello again and again, each time with success, until something holds."""

        def greeted() -> bool:
            time.sleep(0.3)
            assert greeter.greet().refusal is None
            return holds()

        wait_until(greeted)

    def is_served() -> bool:
        return presented_by(gateway, kit) == digest_of_server(folder)

    renew_server_certificate(folder, now=datetime.now(UTC))
    greets(is_served)

    [old] = trusted_authorities(folder)
    assert vouchers(folder) == ()
    new = add_authority(folder, now=datetime.now(UTC))
    assert [voucher.authority for voucher in vouchers(folder)] == [certificate_digest(new)]
    greets(lambda: trusted_by(kit) == {old, new})
    greets(lambda: certificate_digest(new) in read_sightings(folder.sightings)["hospital-x"].authorities)

    use_new_authority(folder, now=datetime.now(UTC), force=False)
    greets(is_served)

    retire_old_authority(folder)
    greets(lambda: trusted_by(kit) == {new})


def test_authority_that_a_thief_of_the_gateway_s_key_names_is_not_trusted(
    folder: FederationFolder, gateway: RunningGateway, tmp_path: Path
) -> None:
    kit, config, request = enrolled(folder, gateway, tmp_path / "hospital")
    admit(folder, request, now=datetime.now(UTC))
    wait_until_hello_gives(None, kit, config)
    ours = trusted_by(kit)
    thief = make_certificate_authority("gliorn necrosis CA 2", now=datetime.now(UTC), lifetime=DAY)
    folder.authorities.write_bytes(folder.authorities.read_bytes() + thief.certificate)

    greeting = Greeter(
        kit, config, installed_version=version("gliorn"), environment=os.environ, now=lambda: datetime.now(UTC)
    ).greet()

    assert greeting.refusal is None
    assert "none trusted here vouches for" in greeting.notes[0]
    assert trusted_by(kit) == ours


def trusted_by(kit: Kit) -> set[object]:
    return set(certificates_in(kit.ca_certificate.read_bytes(), origin="kit"))


def digest_of_server(folder: FederationFolder) -> str:
    certificate = server_certificate(folder)
    assert certificate is not None
    return certificate_digest(certificate)


def presented_by(gateway: RunningGateway, kit: Kit) -> str:
    """Digest of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    with (
        socket.create_connection((HOST, gateway.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return hashlib.sha256(certificate).hexdigest()
