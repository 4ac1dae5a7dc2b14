"""Inviting sites: what an invite holds, and which of several counts."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.authorities import certificate_digest
from common.enrolment import Invite, read_invite
from common.errors import ConfigError
from common.study import parse_study
from server.authority import add_authority, signing_authority, trusted_authorities
from server.cli import main
from server.federation_folder import AdmittedSite, FederationFolder
from server.invites import InviteRecord, invite_sites, open_invites, read_invites

NOW = datetime.now(UTC)
ADMITTED = AdmittedSite("a", "key", "SHA256:a", NOW.isoformat())


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    assert main(["init", str(tmp_path / "f"), "--name", "necrosis", "--host", "federation.example.org"]) == 0
    return FederationFolder(tmp_path / "f")


def invite(folder: FederationFolder, *sites: str, replace_key: bool = False, now: datetime = NOW) -> list[str]:
    made = invite_sites(
        folder,
        list(sites),
        authority=signing_authority(folder),
        trusted=trusted_authorities(folder),
        study=parse_study(folder.study.read_text(), origin="study.yaml"),
        lifetime=timedelta(days=14),
        replace_key=replace_key,
        now=now,
    )
    return [each.text for each in made]


def printed_invites(capsys: pytest.CaptureFixture[str]) -> list[Invite]:
    lines = capsys.readouterr().out.splitlines()
    return [read_invite(line, now=NOW) for line in lines if line.startswith("gliorn-invite-1.")]


def test_invite_holds_what_a_site_must_know(folder: FederationFolder) -> None:
    [text] = invite(folder, "a")

    read = read_invite(text, now=NOW)

    config = folder.read_config()
    study = parse_study(folder.study.read_text(), origin="study.yaml")
    assert (read.address, read.federation, read.federation_id) == ("federation.example.org:9092", "necrosis", config.id)
    assert read.certificates() == trusted_authorities(folder)
    assert read.signer.hex() == certificate_digest(trusted_authorities(folder)[0])
    assert read.study is not None
    assert (read.study.name, read.study.digest) == ("necrosis", study.digest)
    assert abs(read.expires_at - (NOW + timedelta(days=14))) <= timedelta(seconds=1)
    assert len(text) < 1200


def test_tokens_are_kept_for_the_coordinator_alone_and_differ(folder: FederationFolder) -> None:
    texts = invite(folder, "a", "b")

    assert stat.S_IMODE(folder.invites.stat().st_mode) == 0o600
    tokens = [read_invite(text, now=NOW).token.hex() for text in texts]
    assert [record.token for record in read_invites(folder)] == tokens
    assert len(set(tokens)) == 2


def test_newer_invite_for_a_site_takes_the_place_of_the_older_one(folder: FederationFolder) -> None:
    invite(folder, "a", "b")
    invite(folder, "a")

    states = [(record.site, record.state, record.token is None) for record in read_invites(folder)]
    assert states == [("a", "replaced", True), ("b", "open", False), ("a", "open", False)]


def test_expired_invites_are_not_open(folder: FederationFolder) -> None:
    invite(folder, "a")

    assert [record.site for record in open_invites(folder, now=NOW + timedelta(days=13))] == ["a"]
    assert open_invites(folder, now=NOW + timedelta(days=14)) == []


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (["A"], "'A' is no name of a site, expected lower-case letters"),
        (["b", "b"], "b is named twice"),
        (["b", "a"], "a is admitted already; revoke its key with `gliorn-server sites revoke a`, or let the new key"),
    ],
)
def test_one_site_that_cannot_be_invited_stops_all(folder: FederationFolder, sites: list[str], words: str) -> None:
    folder.write_register([ADMITTED])

    with pytest.raises(ConfigError, match=words):
        invite(folder, *sites)

    assert read_invites(folder) == []


def test_admitted_site_is_invited_again_to_replace_its_key(folder: FederationFolder) -> None:
    folder.write_register([ADMITTED])

    invite(folder, "a", "b", replace_key=True)

    assert [record.replaces_key for record in read_invites(folder)] == [True, False]


def test_revoked_site_is_invited_like_a_new_one(folder: FederationFolder) -> None:
    folder.write_register([AdmittedSite("a", "key", "SHA256:a", NOW.isoformat(), revoked_at=NOW.isoformat())])

    invite(folder, "a")

    assert [record.replaces_key for record in read_invites(folder)] == [False]


def test_both_authorities_are_in_an_invite_while_they_change(folder: FederationFolder) -> None:
    add_authority(folder, now=NOW)

    [text] = invite(folder, "a")

    assert read_invite(text, now=NOW).certificates() == trusted_authorities(folder)
    assert len(trusted_authorities(folder)) == 2


def test_damaged_file_of_invites_is_said(folder: FederationFolder) -> None:
    folder.invites.write_text("[{}]")

    with pytest.raises(ConfigError, match=r"invites.json: unreadable; restore it from a copy, or delete it"):
        read_invites(folder)


def test_invite_is_read_from_the_file_as_it_was_written(folder: FederationFolder) -> None:
    invite(folder, "a")

    [record] = read_invites(folder)

    assert isinstance(record, InviteRecord)
    assert record.authorities == tuple(certificate_digest(each) for each in trusted_authorities(folder))


def test_command_prints_each_invite_on_a_line_of_its_own(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invite", "a", "b", "c", "--federation", str(folder.path)]) == 0

    assert [each.site for each in printed_invites(capsys)] == ["a", "b", "c"]


def test_command_says_that_an_older_invite_counts_no_more(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["invite", "a", "--federation", str(folder.path)])
    assert "the older unused invite for it counts no more" not in capsys.readouterr().out

    main(["invite", "a", "--federation", str(folder.path)])

    assert "the older unused invite for it counts no more" in capsys.readouterr().out


def test_command_lets_an_invite_count_for_the_days_it_is_told(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invite", "a", "--days", "3", "--federation", str(folder.path)]) == 0
    [read] = printed_invites(capsys)

    assert timedelta(days=2, hours=23) < read.expires_at - NOW < timedelta(days=3, hours=1)
    assert main(["invite", "a", "--days", "91", "--federation", str(folder.path)]) == 2
    assert "--days 91: expected 1 to 90" in capsys.readouterr().err


def test_study_with_faults_is_not_named_and_the_faults_are_said(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.study.write_text("name: necrosis\nseeed: 1\n")
    capsys.readouterr()

    assert main(["invite", "a", "--federation", str(folder.path)]) == 0

    captured = capsys.readouterr()
    [text] = [line for line in captured.out.splitlines() if line.startswith("gliorn-invite")]
    assert read_invite(text, now=NOW).study is None
    assert "the invites name no study" in captured.err
    assert "did you mean 'seed'?" in captured.err


def test_host_that_was_mistyped_after_init_is_said_before_it_is_in_any_invite(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.config.write_text(folder.config.read_text().replace("federation.example.org", "klinik-köln.de"))

    assert main(["invite", "a", "--federation", str(folder.path)]) == 2
    assert "host is 'klinik-köln.de', expected an IP address or a name" in capsys.readouterr().err
    assert read_invites(folder) == []


def test_command_outside_a_federation_says_how_to_name_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invite", "a", "--federation", str(tmp_path)]) == 2
    assert "name it with --federation, or make one with `gliorn-server init`" in capsys.readouterr().err
