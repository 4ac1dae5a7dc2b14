"""The federation's certificates: made, shown, renewed, and changed from one authority to the next."""

import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.authorities import certificate_digest, certificates_in
from common.errors import ConfigError
from common.study import parse_study
from server.authority import (
    add_authority,
    certificate_states,
    hosts_of,
    make_first_authority,
    renew_server_certificate,
    retire_old_authority,
    server_certificate,
    signing_authority,
    trusted_authorities,
    use_new_authority,
    write_server_certificate,
)
from server.cli import main
from server.federation_folder import AdmittedSite, FederationFolder
from server.invites import invite_sites
from server.private_files import make_private_folder
from server.sightings import Sighting, write_sightings

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    assert main(["init", str(tmp_path / "f"), "--name", "necrosis", "--host", "localhost", "--host", "127.0.0.1"]) == 0
    return FederationFolder(tmp_path / "f")


def admit_by_hand(folder: FederationFolder, *names: str) -> None:
    folder.write_register([AdmittedSite(name, f"key of {name}", f"SHA256:{name}", NOW.isoformat()) for name in names])


def see(folder: FederationFolder, **trusted: list[x509.Certificate]) -> None:
    """Have the gateway note that sites said which authorities they trust."""
    write_sightings(
        folder.sightings,
        {
            name: Sighting(NOW.isoformat(), authorities=tuple(certificate_digest(each) for each in authorities))
            for name, authorities in trusted.items()
        },
    )


def handshake(folder: FederationFolder, *, trusted: bytes, host: str) -> str | None:
    """Why a client that trusts these certificates refuses a server with the federation's; None if it does not."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder.certificate, folder.certificate_key)
    client_context = ssl.create_default_context(cadata=trusted.decode())
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT  # as newer Pythons do
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            server_context.wrap_socket(far, server_side=True).close()
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client_context.wrap_socket(near, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        near.close()
        thread.join()
    return None


# --- init -------------------------------------------------------------------------------------------------------------


def test_new_federation_is_for_its_owner_alone_whatever_the_umask(folder: FederationFolder) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder.path, *folder.path.rglob("*")]}

    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} <= {0o600}
    for part in (folder.runs, folder.logs, folder.superlink, folder.authority, folder.gateway):
        assert part.is_dir()


def test_new_federation_can_be_read_and_every_setting_in_it_is_explained(folder: FederationFolder) -> None:
    config = folder.read_config()

    assert (config.name, config.hosts, config.address) == ("necrosis", ("localhost", "127.0.0.1"), "localhost:9092")
    lines = folder.config.read_text().splitlines()
    settings = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert all(lines[number - 1].startswith("# ") for number in settings)


def test_template_of_the_study_is_a_study_under_the_federation_s_name(folder: FederationFolder) -> None:
    study = parse_study(folder.study.read_text(), origin="study.yaml")

    assert study.name == "necrosis"
    assert study.evaluation.num_bins <= 32
    assert study.participation.min_sites >= 3


def test_lifetimes_are_ten_years_and_397_days_and_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path / "f"), "--name", "necrosis", "--host", "10.1.2.3", "--port", "9093"])

    said = capsys.readouterr().out
    folder = FederationFolder(tmp_path / "f")
    [authority] = trusted_authorities(folder)
    server = server_certificate(folder)
    assert server is not None
    assert (authority.not_valid_after_utc - datetime.now(UTC)).days in (3649, 3650)
    assert (server.not_valid_after_utc - datetime.now(UTC)).days in (396, 397)
    assert "for 10 years, until" in said
    assert "10.1.2.3, for 397 days, until" in said
    assert "Next: edit" in said
    assert folder.read_config().superlink_port == 9094


def test_site_reaches_the_server_under_its_hosts_alone(folder: FederationFolder) -> None:
    trusted = folder.authorities.read_bytes()

    assert handshake(folder, trusted=trusted, host="localhost") is None
    assert handshake(folder, trusted=trusted, host="127.0.0.1") is None
    assert "mismatch" in str(handshake(folder, trusted=trusted, host="elsewhere.org"))


def test_folder_that_is_not_empty_is_left_alone(folder: FederationFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder.authorities.read_bytes()

    status = main(["init", str(folder.path), "--name", "again", "--host", "localhost"])

    assert status == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert folder.authorities.read_bytes() == before


def test_empty_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir(mode=0o777)

    assert main(["init", str(tmp_path / "f"), "--name", "necrosis", "--host", "localhost"]) == 0
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "Nec rosis", "--host", "localhost"], "--name 'Nec rosis': expected lower-case letters"),
        (["--name", "n", "--host", "https://a.org"], "host is 'https://a.org', expected an IP address or a name"),
        (["--name", "n", "--host", "klinik-köln.de"], "(umlauts as punycode)"),
        (["--name", "n", "--host", "a.org:9092"], "host is 'a.org:9092'"),
        (["--name", "n", "--host", "fe80::1%eth0"], "host is 'fe80::1%eth0'"),
        (["--name", "n", "--host", "a.org", "--port", "0"], "--port 0: expected a number from 1 to 65535"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    status = main(["init", str(tmp_path / "f"), *options])

    assert status == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


# --- showing and renewing ---------------------------------------------------------------------------------------------


def test_certs_shows_what_is_left_and_warns_below_thirty_days(folder: FederationFolder) -> None:
    fresh = certificate_states(folder, now=NOW)
    late = certificate_states(folder, now=NOW + timedelta(days=368))
    gone = certificate_states(folder, now=NOW + timedelta(days=400))

    assert [(state.name, state.days_left, state.advice) for state in fresh] == [
        ("ca-1", 3650, None),
        ("server", 397, None),
    ]
    assert fresh[1].note == "for localhost, 127.0.0.1, signed by ca-1"
    assert late[1].advice == "renew it: `gliorn-server certs renew`"
    assert gone[1].days_left < 0


def test_authority_that_ends_before_a_full_certificate_is_to_be_changed(folder: FederationFolder) -> None:
    [authority, _] = certificate_states(folder, now=NOW + timedelta(days=3650 - 300))

    assert authority.advice is not None
    assert "certs new-authority" in authority.advice


def test_certs_prints_for_people_and_for_scripts(folder: FederationFolder, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()

    assert main(["certs", "--federation", str(folder.path)]) == 0
    plain = capsys.readouterr().out
    assert main(["certs", "--federation", str(folder.path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)

    assert [value["name"] for value in values] == ["ca-1", "server"]
    assert all(value["digest"] in plain for value in values)
    assert "days left" in plain
    assert "WARNING" not in plain


def test_renewal_replaces_key_and_certificate_and_sites_need_nothing(folder: FederationFolder) -> None:
    trusted = folder.authorities.read_bytes()
    old, old_key = server_certificate(folder), folder.certificate_key.read_bytes()

    assert main(["certs", "renew", "--federation", str(folder.path)]) == 0

    assert folder.certificate_key.read_bytes() != old_key
    assert server_certificate(folder) != old
    assert folder.authorities.read_bytes() == trusted
    assert handshake(folder, trusted=trusted, host="localhost") is None
    assert stat.S_IMODE(folder.certificate_key.stat().st_mode) == 0o600
    assert list(folder.gateway.glob("*.partial")) == []


def test_renewal_takes_up_changed_hosts_and_certs_asks_for_it(folder: FederationFolder) -> None:
    text = folder.config.read_text().replace('"127.0.0.1"]', '"::1", "new.org"]')
    folder.config.write_text(text)

    before = certificate_states(folder, now=NOW)[1].advice
    renewed = renew_server_certificate(folder, now=NOW)

    assert before == "federation.yaml names other hosts: `gliorn-server certs renew`"
    assert hosts_of(renewed) == ["localhost", "::1", "new.org"]
    assert certificate_states(folder, now=NOW)[1].advice is None


def test_certs_notices_a_key_that_does_not_fit_and_a_foreign_certificate(
    folder: FederationFolder, tmp_path: Path
) -> None:
    other = FederationFolder(tmp_path / "other")
    make_private_folder(other.path)
    make_first_authority(other, name="other", now=NOW)
    write_server_certificate(other, signing_authority(other), hosts=("localhost", "127.0.0.1"), now=NOW)

    folder.certificate_key.write_bytes(other.certificate_key.read_bytes())
    assert "its private key is another" in str(certificate_states(folder, now=NOW)[1].advice)
    folder.certificate.write_bytes(other.certificate.read_bytes())
    assert "no trusted authority signed it" in str(certificate_states(folder, now=NOW)[1].advice)

    renew_server_certificate(folder, now=NOW)
    assert certificate_states(folder, now=NOW)[1].advice is None


def test_certificate_never_outlives_its_authority(folder: FederationFolder) -> None:
    [authority] = trusted_authorities(folder)
    late = authority.not_valid_after_utc - timedelta(days=100)

    assert renew_server_certificate(folder, now=late).not_valid_after_utc == authority.not_valid_after_utc
    with pytest.raises(ConfigError, match="the authority has expired, and every site with it"):
        renew_server_certificate(folder, now=authority.not_valid_after_utc)


@pytest.mark.parametrize("damaged", ["trusted.crt", "ca-1.crt", "ca-1.key"])
def test_damage_to_the_authority_is_said_with_the_file(folder: FederationFolder, damaged: str) -> None:
    (folder.authority / damaged).unlink()

    with pytest.raises(ConfigError, match="from a copy"):
        signing_authority(folder)


# --- changing the authority -------------------------------------------------------------------------------------------


def test_authority_is_changed_while_sites_trust_both_and_none_is_cut_off(folder: FederationFolder) -> None:
    admit_by_hand(folder, "a", "b")
    [old] = trusted_authorities(folder)
    old_kit = folder.authorities.read_bytes()

    new = add_authority(folder, now=NOW)
    assert trusted_authorities(folder) == [old, new]
    assert handshake(folder, trusted=old_kit, host="localhost") is None  # the old one signs on

    see(folder, a=[old, new], b=[old, new])
    use_new_authority(folder, now=NOW, force=False)
    both = folder.authorities.read_bytes()
    assert handshake(folder, trusted=both, host="localhost") is None
    assert handshake(folder, trusted=old_kit, host="localhost") is not None

    assert retire_old_authority(folder) == old
    assert trusted_authorities(folder) == [new]
    assert handshake(folder, trusted=folder.authorities.read_bytes(), host="localhost") is None
    renew_server_certificate(folder, now=NOW)
    assert handshake(folder, trusted=folder.authorities.read_bytes(), host="localhost") is None


def test_new_authority_is_not_used_while_sites_lack_it_and_they_are_named(folder: FederationFolder) -> None:
    admit_by_hand(folder, "a", "b", "c")
    [old] = trusted_authorities(folder)
    new = add_authority(folder, now=NOW)
    see(folder, a=[old, new], b=[old])

    with pytest.raises(ConfigError, match=r"2 faults\n.*b: does not trust it yet.*\n.*c: not seen yet\n.*--force"):
        use_new_authority(folder, now=NOW, force=False)
    assert handshake(folder, trusted=certificate_pem(old), host="localhost") is None

    use_new_authority(folder, now=NOW, force=True)
    assert handshake(folder, trusted=certificate_pem(new), host="localhost") is None


def test_revoked_site_does_not_hold_up_the_new_authority(folder: FederationFolder) -> None:
    folder.write_register([AdmittedSite("a", "key", "SHA256:a", NOW.isoformat(), revoked_at=NOW.isoformat())])
    add_authority(folder, now=NOW)

    use_new_authority(folder, now=NOW, force=False)


def test_unused_invite_without_the_new_authority_holds_it_up(folder: FederationFolder) -> None:
    def invite() -> None:
        invite_sites(
            folder,
            ["a"],
            authority=signing_authority(folder),
            trusted=trusted_authorities(folder),
            study=None,
            lifetime=timedelta(days=1),
            replace_key=False,
            now=NOW,
        )

    invite()
    add_authority(folder, now=NOW)

    with pytest.raises(ConfigError, match="a: its invite was made before and is not used yet; invite it anew"):
        use_new_authority(folder, now=NOW, force=False)
    invite()
    use_new_authority(folder, now=NOW, force=False)


def test_steps_out_of_order_are_refused_with_the_right_one(folder: FederationFolder) -> None:
    with pytest.raises(ConfigError, match="begin with `gliorn-server certs new-authority`"):
        use_new_authority(folder, now=NOW, force=True)
    with pytest.raises(ConfigError, match="there is none to retire"):
        retire_old_authority(folder)
    add_authority(folder, now=NOW)
    with pytest.raises(ConfigError, match="holds 2 authorities already, expected one; finish the change"):
        add_authority(folder, now=NOW)
    with pytest.raises(ConfigError, match="the old authority still signs"):
        retire_old_authority(folder)
    use_new_authority(folder, now=NOW, force=False)
    with pytest.raises(ConfigError, match="signs already; when all sites have been seen"):
        use_new_authority(folder, now=NOW, force=False)


def test_authority_can_be_changed_again_after_the_old_one_s_files_were_deleted(folder: FederationFolder) -> None:
    for _ in range(2):
        add_authority(folder, now=NOW)
        use_new_authority(folder, now=NOW, force=False)
        retire_old_authority(folder)
        trusted = {certificate_digest(each) for each in trusted_authorities(folder)}
        for path in folder.authority.glob("ca-*.crt"):
            if certificate_digest(certificates_in(path.read_bytes(), origin="x")[0]) not in trusted:
                path.unlink()
                path.with_suffix(".key").unlink()

    assert [state.name for state in certificate_states(folder, now=NOW)] == ["ca-3", "server"]


def test_command_changes_the_authority_step_by_step_and_says_the_next(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--federation", str(folder.path)]

    assert main(["certs", "new-authority", *at]) == 0
    assert "Next: after a day, gliorn-server certs use-new-authority" in capsys.readouterr().out
    assert main(["certs", "use-new-authority", *at]) == 0
    assert "gliorn-server certs retire-old-authority" in capsys.readouterr().out
    assert main(["certs", "retire-old-authority", *at]) == 0
    assert "ca-2     until" in capsys.readouterr().out
    assert main(["certs", "retire-old-authority", *at]) == 2


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
