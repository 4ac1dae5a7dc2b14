"""`gliorn-client --site`: its options, its lock, the hello before it connects, and new authorities."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from client.cli import main
from client.config import read_site_config
from client.greeting import Greeter
from client.join import free_node, remember_node
from client.kit import Kit, kit_of
from client.processes import ProcessLock
from common.authorities import certificate_digest, certificates_in
from common.flower_environment import flower_environment
from common.vouchers import Voucher, vouch
from server.provisioning import (
    CertificateAuthority,
    make_certificate_authority,
    make_server_certificate,
    make_site_key_pair,
)
from tests.full_disk import fill_the_disk
from tests.tiny_gateway import FEDERATION_ID, TinyGateway, TinyServers
from tests.tiny_hospitals import write_tiny_hospital

YEAR = timedelta(days=365)


def an_authority(name: str) -> CertificateAuthority:
    return make_certificate_authority(name, now=datetime.now(UTC) - timedelta(days=1), lifetime=YEAR)


OLD, NEW, FOREIGN = an_authority("old"), an_authority("new"), an_authority("proxy of the hospital")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[TinyServers]:
    servers = TinyServers(tmp_path)
    yield servers
    servers.stop()


def write_site(folder: Path, port: int, **settings: object) -> Path:
    """A tiny hospital with a kit that trusts OLD."""
    path = write_tiny_hospital(folder, "a")
    kit = path.parent / "federation"
    kit.mkdir(mode=0o700)
    (kit / "site.key").write_bytes(make_site_key_pair().private_key)
    (kit / "ca.crt").write_bytes(OLD.certificate)
    server = {
        "address": f"127.0.0.1:{port}",
        "ca_certificate": "federation/ca.crt",
        "private_key": "federation/site.key",
        "federation": "one",
        "federation_id": FEDERATION_ID,
    }
    values = yaml.safe_load(path.read_text()) | {"server": server} | settings
    path.write_text(yaml.safe_dump(values))
    return path


def greeter_of(path: Path) -> tuple[Greeter, Kit]:
    config = read_site_config(path)
    kit = kit_of(config, origin=path)
    return Greeter(
        kit, config, installed_version=version("gliorn"), environment=os.environ, now=lambda: datetime.now(UTC)
    ), kit


def trusted_by(kit: Kit) -> set[str]:
    return {certificate_digest(each) for each in certificates_in(kit.ca_certificate.read_bytes(), origin="kit")}


def digests_of(*authorities: CertificateAuthority) -> set[str]:
    return {
        certificate_digest(each) for ca in authorities for each in certificates_in(ca.certificate, origin="authority")
    }


def certificate_of(authority: CertificateAuthority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.certificate)


def word_for(authority: CertificateAuthority, *, by: CertificateAuthority, key_of: CertificateAuthority) -> Voucher:
    """A voucher that names one authority, signed with the key of one that may be another."""
    return vouch(certificate_of(authority), by=certificate_of(by), key=key_of.key)


BY_OLD = (word_for(NEW, by=OLD, key_of=OLD),)


def offering(
    *authorities: CertificateAuthority, vouchers: tuple[Voucher, ...] = BY_OLD, **changes: object
) -> TinyGateway:
    pem = b"".join(ca.certificate for ca in authorities).decode()
    return TinyGateway(OLD, changes={"authorities": pem, "vouchers": vouchers, **changes})


def test_new_authority_is_trusted_besides_the_old_one(tmp_path: Path, servers: TinyServers) -> None:
    greeter, kit = greeter_of(write_site(tmp_path, servers.https(offering(OLD, NEW)).port))

    first, second = greeter.greet(), greeter.greet()

    assert trusted_by(kit) == digests_of(OLD, NEW)
    assert (first.authorities_changed, second.authorities_changed) == (True, False)


NO_AUTHORITY = CertificateAuthority(
    make_server_certificate(
        OLD, hosts=["127.0.0.1"], now=datetime.now(UTC) - timedelta(days=1), lifetime=timedelta(days=9)
    )[0],
    FOREIGN.key,
)


@pytest.mark.parametrize(
    ("named", "vouchers"),
    [
        pytest.param(NEW, (), id="no voucher, as from an older coordinator"),
        pytest.param(NEW, (word_for(NEW, by=FOREIGN, key_of=FOREIGN),), id="by a stranger"),
        pytest.param(NEW, (word_for(NEW, by=NEW, key_of=NEW),), id="by itself"),
        pytest.param(NEW, (word_for(NEW, by=OLD, key_of=FOREIGN),), id="by a stranger in the old one's name"),
        pytest.param(FOREIGN, BY_OLD, id="for another"),
        pytest.param(
            FOREIGN,
            (BY_OLD[0].model_copy(update={"authority": certificate_digest(certificate_of(FOREIGN))}),),
            id="for another in its name",
        ),
        pytest.param(NO_AUTHORITY, (word_for(NO_AUTHORITY, by=OLD, key_of=OLD),), id="for what is no authority"),
    ],
)
def test_authority_that_none_trusted_vouches_for_is_not_trusted(
    named: CertificateAuthority, vouchers: tuple[Voucher, ...], tmp_path: Path, servers: TinyServers
) -> None:
    gateway = servers.https(offering(OLD, named, vouchers=vouchers))
    greeter, kit = greeter_of(write_site(tmp_path, gateway.port))
    before = kit.ca_certificate.read_bytes()

    greeting = greeter.greet()

    assert greeting.refusal is None
    assert not greeting.authorities_changed
    assert kit.ca_certificate.read_bytes() == before
    [note] = greeting.notes
    assert f"none trusted here vouches for, SHA-256 {certificate_digest(certificate_of(named))}" in note


def test_no_more_than_four_authorities_are_trusted(tmp_path: Path, servers: TinyServers) -> None:
    others = [an_authority(f"number {number}") for number in range(5)]
    vouchers = tuple(word_for(other, by=OLD, key_of=OLD) for other in others)
    greeter, kit = greeter_of(write_site(tmp_path, servers.https(offering(OLD, *others, vouchers=vouchers)).port))

    greeter.greet()

    assert trusted_by(kit) == digests_of(OLD, *others[:3])


def test_full_disk_leaves_the_authorities_as_they_are_and_is_noted(
    tmp_path: Path, servers: TinyServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    greeter, kit = greeter_of(write_site(tmp_path, servers.https(offering(OLD, NEW)).port))
    fill_the_disk(monkeypatch)

    greeting = greeter.greet()

    assert greeting.refusal is None
    assert "authorities cannot be kept here" in greeting.notes[0]
    assert "No space left on device" in greeting.notes[0]
    assert trusted_by(kit) == digests_of(OLD)


def test_retired_authority_is_dropped_once_nothing_needs_it(tmp_path: Path, servers: TinyServers) -> None:
    gateway = servers.https(offering(NEW), signed_by=NEW)
    greeter, kit = greeter_of(write_site(tmp_path, gateway.port))
    kit.ca_certificate.write_bytes(OLD.certificate + NEW.certificate)

    greeting = greeter.greet()

    assert greeting.authorities_changed
    assert trusted_by(kit) == digests_of(NEW)


def test_authority_that_the_coordinator_still_uses_is_kept(tmp_path: Path, servers: TinyServers) -> None:
    gateway = servers.https(offering(NEW), signed_by=OLD)
    greeter, kit = greeter_of(write_site(tmp_path, gateway.port))

    greeter.greet()

    assert trusted_by(kit) == digests_of(OLD, NEW)


def test_authorities_of_a_stranger_are_not_taken_over(tmp_path: Path, servers: TinyServers) -> None:
    gateway = servers.https(offering(FOREIGN), signed_by=FOREIGN)
    greeter, kit = greeter_of(write_site(tmp_path, gateway.port))

    greeting = greeter.greet()

    assert trusted_by(kit) == digests_of(OLD)
    assert greeting.refusal is not None
    assert "issued by" in greeting.refusal
    assert "proxy of the hospital" in greeting.refusal
    assert not greeting.passing


def test_coordinator_s_expired_certificate_is_told_as_such(tmp_path: Path, servers: TinyServers) -> None:
    gateway = servers.https(TinyGateway(OLD), begin=timedelta(days=-9), lifetime=timedelta(days=8))
    greeter, _ = greeter_of(write_site(tmp_path, gateway.port))

    greeting = greeter.greet()

    assert greeting.refusal is not None
    assert "expired" in greeting.refusal
    assert not greeting.passing


def test_other_versions_and_bundles_are_noted(tmp_path: Path, servers: TinyServers) -> None:
    gateway = servers.https(offering(OLD, version="9.9.9", bundle_digest="b" * 64))
    greeter, _ = greeter_of(write_site(tmp_path, gateway.port))

    version, bundle = greeter.greet().notes

    assert "9.9.9" in version
    assert "bbbbbbbbbbbbbbbb" in bundle


def test_once_ends_with_2_and_the_reason_if_the_key_is_revoked(
    tmp_path: Path, servers: TinyServers, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = servers.https(TinyGateway(OLD, fault="revoked"))

    status = main(["--site", str(write_site(tmp_path, gateway.port)), "--once"])

    assert status == 2
    assert "has revoked this site's key" in capsys.readouterr().err


def test_once_ends_with_2_if_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        path = write_site(tmp_path, closed.getsockname()[1])

        status = main(["--site", str(path), "--once", "--patience", "1"])

    read = capsys.readouterr()
    assert status == 2
    assert "cannot be reached" in read.err
    assert "Traceback" not in read.err + read.out


def test_once_leaves_well_outside_the_working_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[(datetime.now().weekday() + 3) % 7]

    status = main(["--site", str(write_site(tmp_path, 1, working_hours=[f"{day} 10:00-11:00"])), "--once"])

    assert status == 0
    assert re.search(rf"outside the working hours; back on {day}.* 10:00", capsys.readouterr().out, re.IGNORECASE)


def test_second_client_with_one_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_site(tmp_path, 1)
    text = "import sys; from pathlib import Path; from client.processes import ProcessLock\n"
    text += "lock = ProcessLock(Path(sys.argv[1])); print(lock.take(), flush=True); input()"
    command = [sys.executable, "-c", text, str(path.parent / "federation" / "client.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()

        status = main(["--site", str(path)])
        other.kill()

    read = capsys.readouterr()
    assert status == 2
    assert "another gliorn-client on this machine is connected with this site's key" in read.err
    assert read.out == ""


@pytest.mark.parametrize("proxy", ["ftp://proxy:21", "socks5://proxy:1080"])
def test_proxy_of_another_kind_is_refused_at_the_start(
    proxy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    status = main(["--site", str(write_site(tmp_path, 1))])

    assert status == 2
    assert "HTTPS_PROXY names no HTTP proxy, expected http://host:port; mend it, or unset it" in capsys.readouterr().err


@pytest.mark.parametrize("patience", ["0", "-1", "nan", "soon"])
def test_patience_that_is_no_time_is_refused(patience: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--site", "site.yaml", "--once", "--patience", patience])

    assert caught.value.code == 2


def test_programs_of_one_machine_reach_each_other_without_a_proxy() -> None:
    base = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "intranet"}

    environment = flower_environment(base, home="h", programs="p")

    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet,127.0.0.1"
    assert environment["HTTPS_PROXY"] == "http://proxy:3128"


def test_node_is_remembered_until_the_coordinator_knows_that_it_is_gone(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        _, kit = greeter_of(write_site(tmp_path, closed.getsockname()[1]))
        kit.flower_home.mkdir()
        remember_node(kit, 7)

        free_node(kit)  # nobody answers

    assert kit.node.exists()
    remember_node(kit, None)
    assert not kit.node.exists()


def test_lock_is_free_after_its_process(tmp_path: Path) -> None:
    lock = ProcessLock(tmp_path / "lock")

    assert lock.take()
    lock.close()
    assert ProcessLock(tmp_path / "lock").take()
