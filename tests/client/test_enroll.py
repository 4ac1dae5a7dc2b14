"""Enrolling: what is made, what is left alone, and that nothing is half-made."""

import io
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_ssh_private_key

import client.enroll
from client.cli import main
from client.config import parse_site_config, read_site_config
from client.enroll import enroll
from client.kit import kit_of
from common.authorities import certificate_digest
from common.enrolment import Invite, InvitedStudy, openssh_text, proven_key, read_request, sign_invite
from common.errors import ConfigError
from server.provisioning import make_certificate_authority

NOW = datetime.now(UTC)
AUTHORITY = make_certificate_authority("gliorn necrosis CA 1", now=NOW, lifetime=timedelta(days=3650))
CERTIFICATE = x509.load_pem_x509_certificate(AUTHORITY.certificate)
DIGEST = "ab" * 32
DATA = "data: {table: t.tsv}\nlabel_map: {n: 1, r: 0}\ncache: cache\n"


def an_invite(**changes: object) -> Invite:
    invite = Invite(
        address="federation.example.org:9092",
        authorities=(CERTIFICATE.public_bytes(Encoding.DER),),
        signer=bytes.fromhex(certificate_digest(CERTIFICATE)),
        federation="necrosis-2026",
        federation_id="1" * 32,
        site="hospital-x",
        expires=int((NOW + timedelta(days=14)).timestamp()),
        id="00112233aabbccdd",
        token=os.urandom(32),
        study=InvitedStudy(name="gliorn-necrosis", sha256=bytes.fromhex(DIGEST)),
    )
    return invite.model_copy(update=changes)


INVITE = an_invite()
TEXT = sign_invite(INVITE, AUTHORITY.key)


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_enrolling_where_nothing_is_makes_key_and_commented_configuration(tmp_path: Path) -> None:
    done = enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    (tmp_path / "table.tsv").write_text("")
    config = read_site_config(tmp_path / "site.yaml")
    kit = kit_of(config, origin=tmp_path / "site.yaml")
    assert (config.name, config.studies) == ("hospital-x", ())
    assert (kit.address, kit.federation, kit.federation_id) == (
        "federation.example.org:9092",
        "necrosis-2026",
        "1" * 32,
    )
    assert kit.folder == tmp_path / "federation"
    assert kit.ca_certificate.read_bytes() == AUTHORITY.certificate
    key = load_ssh_private_key(kit.private_key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    sealed = read_request(done.request)
    assert sealed.is_sealed_with(INVITE.token)
    assert proven_key(sealed.request) == key.public_key()
    text = (tmp_path / "site.yaml").read_text()
    assert f'"{DIGEST}"' in text
    assert "gliorn-necrosis" in text


def test_private_key_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert mode_of(tmp_path / "federation") == 0o700
    assert {mode_of(path) for path in (tmp_path / "federation").iterdir()} == {0o600}
    assert mode_of(tmp_path / "site.yaml") == 0o600


def test_neither_token_nor_private_key_is_in_the_request_or_the_kit_s_other_files(tmp_path: Path) -> None:
    enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert all(INVITE.token not in content for content in files_in(tmp_path).values())
    assert [name for name, content in files_in(tmp_path).items() if b"PRIVATE KEY" in content] == [
        "federation/site.key"
    ]


def test_enrolling_again_with_the_same_invite_prints_the_same_request_and_changes_nothing(tmp_path: Path) -> None:
    first = enroll(TEXT, tmp_path / "site.yaml", now=NOW)
    before = files_in(tmp_path)

    again = enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert again.request == first.request
    assert (first.key_is_new, again.key_is_new) == (True, False)
    assert files_in(tmp_path) == before


def test_enrolment_that_was_killed_before_the_configuration_is_ended_by_enrolling_again(tmp_path: Path) -> None:
    first = enroll(TEXT, tmp_path / "site.yaml", now=NOW)
    (tmp_path / "site.yaml").unlink()

    again = enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert again.request == first.request
    assert "hospital-x" in (tmp_path / "site.yaml").read_text()


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("ending", ["", "\n"], ids=["open end", "closed end"])
def test_existing_configuration_keeps_every_byte_and_gains_the_sections(
    tmp_path: Path, newline: str, ending: str
) -> None:
    before = ("# our own comment\nname: hospital-x  # agreed\n" + DATA.rstrip("\n")).replace("\n", newline)
    before += ending.replace("\n", newline)
    (tmp_path / "site.yaml").write_bytes(before.encode())
    (tmp_path / "site.yaml").chmod(0o640)

    enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    after = (tmp_path / "site.yaml").read_bytes().decode()
    assert after.startswith(before)
    assert newline == "\n" or "\n" not in after.replace("\r\n", "")
    config = parse_site_config(after, origin="site.yaml")
    assert config.studies == ()
    assert config.server is not None
    assert config.server.federation_id == "1" * 32
    assert mode_of(tmp_path / "site.yaml") == 0o640


def test_studies_that_the_configuration_names_already_stay(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(f"name: hospital-x\n{DATA}studies: ['{DIGEST}']\n")

    enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert parse_site_config((tmp_path / "site.yaml").read_text(), origin="x").studies == (DIGEST,)


@pytest.mark.parametrize("name", ["no", "0123", "1e5", "null"])
def test_names_that_yaml_takes_for_something_else_are_read_as_names(tmp_path: Path, name: str) -> None:
    invite = an_invite(site=name, federation=name, federation_id="0" * 31 + "1", study=None)

    enroll(sign_invite(invite, AUTHORITY.key), tmp_path / "site.yaml", now=NOW)

    config = parse_site_config((tmp_path / "site.yaml").read_text(), origin="site.yaml")
    assert config.name == name
    assert config.server is not None
    assert (config.server.federation, config.server.federation_id) == (name, "0" * 31 + "1")


REFUSED = {
    "other name": (f"name: hospital-y\n{DATA}", r"name is 'hospital-y', but the invite is for 'hospital-x'"),
    "server": (
        f"name: hospital-x\n{DATA}server: {{address: 'other.org:9092'}}\n",
        r"has a server section already, for other.org:9092; delete the section if that membership has ended",
    ),
    "one line": (
        f"{{name: hospital-x, {DATA.strip().replace(chr(10), ', ')}}}\n",
        "no section can be added at the end",
    ),
    "empty server": (f"name: hospital-x\n{DATA}server:\n", "without an empty `server:`"),
    "faults": ("name: hospital-x\n", "2 faults|3 faults"),
    "no text": ("name: \udcff", "is not UTF-8 text"),
}


@pytest.mark.parametrize(("before", "words"), REFUSED.values(), ids=REFUSED)
def test_configuration_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, before: str, words: str
) -> None:
    (tmp_path / "site.yaml").write_bytes(before.encode(errors="surrogateescape"))
    files = files_in(tmp_path)

    with pytest.raises(ConfigError, match=words):
        enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert files_in(tmp_path) == files
    assert not (tmp_path / "federation").exists()


def test_another_invite_does_not_touch_the_key_that_is_there(tmp_path: Path) -> None:
    enroll(TEXT, tmp_path / "site.yaml", now=NOW)
    files = files_in(tmp_path)
    other = sign_invite(an_invite(id="f" * 16), AUTHORITY.key)

    with pytest.raises(ConfigError, match="was not made with this invite; if that membership has ended, move the fold"):
        enroll(other, tmp_path / "site.yaml", now=NOW)

    assert files_in(tmp_path) == files


@pytest.mark.parametrize("damage", ["site.key", "ca.crt", "request.txt"])
def test_kit_that_lost_a_file_is_not_taken_for_whole(tmp_path: Path, damage: str) -> None:
    enroll(TEXT, tmp_path / "site.yaml", now=NOW)
    (tmp_path / "federation" / damage).unlink()

    with pytest.raises(ConfigError, match="was not made with this invite"):
        enroll(TEXT, tmp_path / "site.yaml", now=NOW)


@pytest.mark.parametrize("step", ["_write_configuration", "make_request", "write_atomically"])
def test_nothing_is_left_when_a_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(client.enroll, step, full)
    (tmp_path / "site.yaml").write_text(f"name: hospital-x\n{DATA}")
    files = files_in(tmp_path)

    with pytest.raises(OSError, match="No space"):
        enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    assert files_in(tmp_path) == files
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]


def test_invite_with_an_address_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    impossible = sign_invite(an_invite(address="a.org:99999"), AUTHORITY.key)

    with pytest.raises(ConfigError, match="a port from 1 to 65535"):
        enroll(impossible, tmp_path / "site.yaml", now=NOW)

    assert list(tmp_path.iterdir()) == []


def test_expired_invite_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the invite expired at"):
        enroll(TEXT, tmp_path / "site.yaml", now=NOW + timedelta(days=15))

    assert list(tmp_path.iterdir()) == []


def test_folder_of_the_configuration_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder; make it"):
        enroll(TEXT, tmp_path / "nowhere" / "site.yaml", now=NOW)


def test_two_authorities_of_an_invite_are_both_trusted(tmp_path: Path) -> None:
    new = make_certificate_authority("gliorn necrosis CA 2", now=NOW, lifetime=timedelta(days=9))
    der = x509.load_pem_x509_certificate(new.certificate).public_bytes(Encoding.DER)
    invite = an_invite(authorities=(*INVITE.authorities, der))

    enroll(sign_invite(invite, AUTHORITY.key), tmp_path / "site.yaml", now=NOW)

    assert (tmp_path / "federation" / "ca.crt").read_bytes() == AUTHORITY.certificate + new.certificate


def test_command_prints_the_request_on_a_line_of_its_own_and_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["enroll", "--invite", TEXT, "--site", str(tmp_path / "site.yaml")])

    lines = capsys.readouterr().out.splitlines()
    [request] = [line for line in lines if line.startswith("gliorn-request-1.")]
    assert status == 0
    assert read_request(request).request.site == "hospital-x"
    assert lines[-1].startswith("Next: fill in")
    assert any(certificate_digest(CERTIFICATE) in line for line in lines)


@pytest.mark.parametrize("mark", ["", "> "])
def test_command_takes_an_invite_as_mail_wrapped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mark: str
) -> None:
    wrapped = "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))
    mail = "\n".join(mark + line for line in f"Dear colleague,\n\n{wrapped}\n\nRegards".split("\n"))
    monkeypatch.setattr("sys.stdin", io.StringIO(mail))

    assert main(["enroll", "--invite", "-", "--site", str(tmp_path / "site.yaml")]) == 0
    assert "gliorn-request-1." in capsys.readouterr().out


def test_command_reads_an_invite_from_stdin_and_refuses_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT[:-5] + "\n"))

    status = main(["enroll", "--invite", "-", "--site", str(tmp_path / "site.yaml")])

    assert status == 2
    assert "was changed or is incomplete" in capsys.readouterr().err


def test_template_is_the_commented_example() -> None:
    root = Path(__file__).parents[2]

    shipped = (root / "client" / "site_template.yaml").read_bytes()

    assert shipped == (root / "site_configs" / "example.yaml").read_bytes(), "copy the example over the template"


def test_key_made_for_flower_is_the_one_of_the_request(tmp_path: Path) -> None:
    done = enroll(TEXT, tmp_path / "site.yaml", now=NOW)

    key = load_ssh_private_key((done.folder / "site.key").read_bytes(), password=None)

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert openssh_text(key.public_key()) == read_request(done.request).request.public_key
    assert (done.folder / "site.key").read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
