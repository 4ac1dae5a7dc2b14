"""`admit` and `sites` as a coordinator types them, with requests that the site's own side made."""

import base64
import io
import json
import os
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from client.enroll import enroll
from common.enrolment import REQUEST_PREFIX, Invite, Request, _packed, _seal, make_request, read_invite, read_request
from common.errors import ConfigError
from server.admission import admit
from server.cli import main
from server.federation_folder import AdmittedSite, FederationFolder, admitted
from server.invites import read_invites

NOW = datetime.now(UTC)
KEY = ec.generate_private_key(ec.SECP384R1())
Invites = Callable[..., list[Invite]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> FederationFolder:
    assert main(["init", str(tmp_path / "f"), "--name", "necrosis", "--host", "localhost"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("GLIORN_FEDERATION", str(tmp_path / "f"))
    return FederationFolder(tmp_path / "f")


@pytest.fixture
def invites(folder: FederationFolder, capsys: pytest.CaptureFixture[str]) -> Invites:
    def invites(*arguments: str) -> list[Invite]:
        assert main(["invite", *arguments, "--federation", str(folder.path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [read_invite(line, now=NOW) for line in lines if line.startswith("gliorn-invite")]

    return invites


def type_admit(folder: FederationFolder, *requests: str) -> int:
    return main(["admit", "--federation", str(folder.path), *requests])


def a_request(invite: Invite) -> str:
    return make_request(invite, ec.generate_private_key(ec.SECP384R1()))


def state_of(folder: FederationFolder) -> tuple[bytes, bytes]:
    register, invites = (path.read_bytes() if path.exists() else b"" for path in (folder.register, folder.invites))
    return register, invites


def refused(folder: FederationFolder, request: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said to a request that changes nothing."""
    before = state_of(folder)
    capsys.readouterr()

    assert type_admit(folder, request) == 2

    assert state_of(folder) == before
    return capsys.readouterr().err


def test_three_sites_enrol_and_are_admitted_with_one_command_each(
    folder: FederationFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    assert main(["invite", "a", "b", "c", "--federation", str(folder.path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gliorn-invite")]
    requests = []
    for number, line in enumerate(lines):
        (tmp_path / str(number)).mkdir()
        requests.append(enroll(line, tmp_path / str(number) / "site.yaml", now=NOW).request)

    assert type_admit(folder, *requests) == 0

    said = capsys.readouterr().out
    keys = admitted(folder.read_register())
    assert list(keys) == ["a", "b", "c"]
    for name, site in keys.items():
        assert f"{name}: admitted, key {site.fingerprint}" in said
    assert [record.state for record in read_invites(folder)] == ["used"] * 3
    assert [record.token for record in read_invites(folder)] == [None] * 3


def test_requests_are_read_from_stdin_among_other_lines(
    folder: FederationFolder, invites: Invites, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [a_request(invite) for invite in invites("a", "b")]
    monkeypatch.setattr("sys.stdin", io.StringIO("Send this:\n" + "\nNext: wait\n  ".join(requests) + "\n"))

    assert type_admit(folder, "-") == 0
    assert list(admitted(folder.read_register())) == ["a", "b"]


@pytest.mark.parametrize("mark", ["", "> ", "  "])
@pytest.mark.parametrize("source", ["-", "argument"])
def test_requests_are_taken_as_mail_wrapped_them(
    folder: FederationFolder, invites: Invites, monkeypatch: pytest.MonkeyPatch, source: str, mark: str
) -> None:
    wrapped = [textwrap.fill(a_request(invite), 76, break_on_hyphens=False) for invite in invites("a", "b")]
    text = textwrap.indent("\n".join(wrapped) + "\n\nRegards\n", mark)
    if source == "-":
        monkeypatch.setattr("sys.stdin", io.StringIO("Dear colleague\n" + text))

    assert type_admit(folder, "-" if source == "-" else text) == 0
    assert list(admitted(folder.read_register())) == ["a", "b"]


def test_line_below_a_request_that_was_not_wrapped_is_none_of_it(
    folder: FederationFolder, invites: Invites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(a_request(invites("a")[0]) + "\nRegards\n"))

    assert type_admit(folder, "-") == 0


def test_open_invite_of_a_revoked_site_counts_no_more(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_admit(folder, a_request(invites("a")[0])) == 0
    [invite] = invites("--replace-key", "a")
    assert main(["sites", "--federation", str(folder.path), "revoke", "a"]) == 0

    said = refused(folder, a_request(invite), capsys)

    assert "the invite counts no more since a was revoked at" in said
    assert type_admit(folder, a_request(invites("a")[0])) == 0


def test_stdin_without_a_request_is_refused(
    folder: FederationFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))

    assert type_admit(folder, "-") == 2
    assert "no line of 1 begins with gliorn-request-1." in capsys.readouterr().err


def test_refused_request_does_not_stop_the_others_and_is_counted(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (a_request(invite) for invite in invites("a", "b"))

    assert type_admit(folder, first, "gliorn-request-1.nonsense", second) == 2

    assert list(admitted(folder.read_register())) == ["a", "b"]
    assert "request 2 of 3 refused: the request was changed or is incomplete" in capsys.readouterr().err


def test_same_request_again_is_refused_as_admitted_already(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")
    request = a_request(invite)
    assert type_admit(folder, request) == 0

    said = refused(folder, request, capsys)

    assert "this very request was admitted already, as a at" in said
    assert "nothing has changed" in said


def test_second_request_with_a_used_invite_is_refused(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")
    assert type_admit(folder, a_request(invite)) == 0

    said = refused(folder, a_request(invite), capsys)

    assert "the invite for a was used already, at" in said
    assert "`gliorn-server sites revoke a`" in said


def test_request_for_another_federation_is_refused(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")

    said = refused(folder, a_request(invite.model_copy(update={"federation_id": "0" * 32})), capsys)

    assert f"for another federation (id {'0' * 32}), this one is necrosis (id {invite.federation_id})" in said


def test_request_with_an_invite_that_was_never_made_is_refused(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")

    said = refused(folder, a_request(invite.model_copy(update={"id": "0" * 16})), capsys)

    assert f"no invite {'0' * 16} was made here; invite a anew" in said


def test_request_after_the_invite_s_end_is_refused(folder: FederationFolder, invites: Invites) -> None:
    [invite] = invites("a", "--days", "1")

    with pytest.raises(ConfigError, match=r"the invite for a expired at .*; invite a anew"):
        admit(folder, a_request(invite), now=NOW + timedelta(days=1, hours=2))


def test_request_with_an_invite_that_a_newer_one_replaced_is_refused(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [older] = invites("a")
    [newer] = invites("a")

    said = refused(folder, a_request(older), capsys)

    assert "replaced by a newer one for a at" in said
    assert type_admit(folder, a_request(newer)) == 0


def test_request_of_somebody_without_the_invite_s_token_is_refused(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")

    said = refused(folder, a_request(invite.model_copy(update={"token": os.urandom(32)})), capsys)

    assert "was changed after it was made, or is not from the holder of the invite for a" in said


def test_holder_of_an_invite_cannot_enrol_under_another_name(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")

    said = refused(folder, a_request(invite.model_copy(update={"site": "b"})), capsys)

    assert "not from the holder of the invite for a" in said


def test_holder_of_an_invite_cannot_enrol_the_key_of_another(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")
    own, other = (read_request(a_request(invite)).request for _ in range(2))
    forged = own.model_copy(update={"public_key": other.public_key})

    said = refused(folder, sealed(forged, invite.token), capsys)

    assert "does not prove that its sender holds the private key" in said


def test_key_that_is_admitted_under_another_name_is_refused(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = invites("a", "b")
    assert type_admit(folder, make_request(first, KEY)) == 0

    said = refused(folder, make_request(second, KEY), capsys)

    assert "is admitted already, under the name a; every site needs a key of its own" in said


def test_key_that_was_revoked_can_never_come_back(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_admit(folder, make_request(invites("a")[0], KEY)) == 0
    assert main(["sites", "revoke", "a", "--federation", str(folder.path)]) == 0

    said = refused(folder, make_request(invites("a")[0], KEY), capsys)

    assert "was revoked at" in said
    assert "can never be admitted again; invite a anew, and have it enrol with a new key" in said


def test_revoked_site_comes_back_with_a_new_key(folder: FederationFolder, invites: Invites) -> None:
    assert type_admit(folder, a_request(invites("a")[0])) == 0
    assert main(["sites", "revoke", "a", "--federation", str(folder.path)]) == 0

    assert type_admit(folder, a_request(invites("a")[0])) == 0

    register = folder.read_register()
    assert [(site.name, site.revoked_at is None) for site in register] == [("a", False), ("a", True)]
    assert register[0].fingerprint != register[1].fingerprint


def test_new_key_takes_the_place_of_the_old_one_when_the_invite_says_so(
    folder: FederationFolder, invites: Invites
) -> None:
    assert type_admit(folder, make_request(invites("a")[0], KEY)) == 0
    [invite] = invites("a", "--replace-key")
    assert folder.read_register()[0].revoked_at is None  # until the new one is admitted

    assert type_admit(folder, a_request(invite)) == 0

    register = folder.read_register()
    assert [(site.name, site.revoked_at is None) for site in register] == [("a", False), ("a", True)]
    assert admitted(register)["a"].fingerprint == register[1].fingerprint


def test_site_that_was_admitted_meanwhile_is_not_admitted_twice(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")
    folder.write_register([AdmittedSite("a", "another key", "SHA256:another", NOW.isoformat())])

    said = refused(folder, a_request(invite), capsys)

    assert "a is admitted already, with another key; revoke that" in said


def test_crash_between_register_and_invites_leaves_a_site_that_is_admitted_once(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    [invite] = invites("a")
    request, before = make_request(invite, KEY), folder.invites.read_bytes()
    assert type_admit(folder, request) == 0
    folder.invites.write_bytes(before)

    said = refused(folder, request, capsys)

    assert "is admitted already, as a at" in said
    assert "nothing has changed" in said


@pytest.fixture
def open_request(invites: Invites) -> str:
    """A request that would be admitted."""
    return make_request(invites("a")[0], KEY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), other=st.characters(), bits=st.integers(1, 255))
def test_any_changed_character_or_byte_is_refused_and_changes_nothing(
    folder: FederationFolder, open_request: str, place: float, other: str, bits: int
) -> None:
    before = state_of(folder)
    index = int(place * len(open_request))
    body = open_request.removeprefix(REQUEST_PREFIX)
    content = bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    content[int(place * len(content))] ^= bits
    changed_byte = REQUEST_PREFIX + base64.urlsafe_b64encode(bytes(content)).decode().rstrip("=")
    assume(other != open_request[index])

    with pytest.raises(ConfigError):
        admit(folder, changed_byte, now=NOW)
    with pytest.raises(ConfigError):
        admit(folder, open_request[:index] + other + open_request[index + 1 :], now=NOW)

    assert state_of(folder) == before


# --- sites ------------------------------------------------------------------------------------------------------------


def test_sites_lists_who_was_ever_admitted(
    folder: FederationFolder, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_admit(folder, *map(a_request, invites("a", "b"))) == 0
    assert main(["sites", "revoke", "a", "--federation", str(folder.path)]) == 0
    capsys.readouterr()

    assert main(["sites", "--federation", str(folder.path)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert main(["sites", "--json", "--federation", str(folder.path)]) == 0
    values = json.loads(capsys.readouterr().out)

    assert header.split() == ["SITE", "KEY", "ADMITTED", "REVOKED"]
    assert first.split()[0] == "a"
    assert not first.endswith("-")
    assert second.split()[0] == "b"
    assert second.endswith("-")
    assert [(value["name"], value["revoked_at"] is None) for value in values] == [("a", False), ("b", True)]


def test_sites_without_any_says_the_next_step(folder: FederationFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "--federation", str(folder.path)]) == 0
    assert "Next: gliorn-server invite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["revoke"], "no site is named"),
        (["revoke", "a", "x"], "x: no such site is admitted now, expected one of a"),
    ],
)
def test_revoking_nobody_or_somebody_unknown_is_refused_whole(
    folder: FederationFolder,
    invites: Invites,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert type_admit(folder, a_request(invites("a")[0])) == 0

    assert main(["sites", *arguments, "--federation", str(folder.path)]) == 2
    assert words in capsys.readouterr().err
    assert list(admitted(folder.read_register())) == ["a"]


def sealed(request: Request, token: bytes) -> str:
    payload = _packed(request)
    return REQUEST_PREFIX + base64.urlsafe_b64encode(_seal(token, payload) + payload).decode().rstrip("=")
