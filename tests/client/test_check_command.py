"""`gliorn-client check` as a person types it: what it rehearses, in which order, and how it ends."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from client import cli
from client.rehearsal.trial import Trial
from common.hello import StudyOffer
from common.study import parse_study
from server.provisioning import CertificateAuthority, make_certificate_authority, make_site_key_pair
from tests.tiny_gateway import FEDERATION_ID, YEAR, TinyGateway, TinyServers
from tests.tiny_hospitals import study_text, write_tiny_hospital

SPLITS = (("train", 2, 1), ("validation", 1, 1), ("test", 1, 1))
OF_A_FINDING = {"part", "name", "level", "found", "advice", "study"}
TEXT = study_text(participation={"round_timeout_s": 36_000})  # however busy this machine is
DIGEST = parse_study(TEXT, origin="study").digest
OFFER = StudyOffer(name="tiny", digest=DIGEST, text=TEXT)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return make_certificate_authority("gliorn one CA 1", now=datetime.now(UTC) - timedelta(days=1), lifetime=YEAR)


@pytest.fixture
def gateway(tmp_path: Path, authority: CertificateAuthority) -> Iterator[TinyGateway]:
    servers = TinyServers(tmp_path)
    yield servers.https(TinyGateway(authority, changes={"studies": (OFFER,)}))
    servers.stop()


@dataclass(frozen=True)
class EnrolledSite:
    """A tiny hospital with a kit for a gateway."""

    file: Path

    @property
    def kit(self) -> Path:
        return self.file.parent / "federation"

    def write(self, **settings: object) -> None:
        self.file.write_text(yaml.safe_dump(yaml.safe_load(self.file.read_text()) | settings))

    def accept(self, text: str = TEXT) -> None:
        (self.kit / "accepted").mkdir()
        digest = parse_study(text, origin="study").digest
        (self.kit / "accepted" / f"{digest}.yaml").write_text(text)


@pytest.fixture
def site(tmp_path: Path, gateway: TinyGateway) -> EnrolledSite:
    site = EnrolledSite(write_tiny_hospital(tmp_path, "a", splits=SPLITS))
    site.kit.mkdir()
    (site.kit / "ca.crt").write_bytes(gateway.authority.certificate)
    (site.kit / "site.key").write_bytes(make_site_key_pair().private_key)
    (site.kit / "site.key").chmod(0o600)
    site.write(
        server={
            "address": f"127.0.0.1:{gateway.port}",
            "ca_certificate": "federation/ca.crt",
            "private_key": "federation/site.key",
            "federation": "one",
            "federation_id": FEDERATION_ID,
        }
    )
    return site


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def quick_trial(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Spare a test the process of a real round where it is about something else; the studies it was asked for."""
    asked: list[str] = []

    def trial(site_file: Path, study: Any, *, limit_s: float) -> Trial:
        asked.append(study.digest)
        return Trial(time.monotonic(), 0.1, 0.1, 0.1, 5, 0.7, 0.1, 3, 2, "cpu", 10**6, None, None)

    monkeypatch.setattr("client.rehearsal.computing.start_trial", trial)
    return asked


class Ended(NamedTuple):
    """How a check with --json ended."""

    status: int
    values: dict[str, Any]

    @property
    def failures(self) -> list[tuple[str, str]]:
        return [(each["part"], each["name"]) for each in self.values["findings"] if each["level"] == "FAIL"]

    def finding(self, part: str, name: str) -> dict[str, str]:
        (found,) = [each for each in self.values["findings"] if (each["part"], each["name"]) == (part, name)]
        return dict(found)


@pytest.fixture
def check(site: EnrolledSite, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run(*arguments: object) -> Ended:
        status = cli.main(["check", "--site", str(site.file), "--json", *map(str, arguments)])
        return Ended(status, json.loads(capsys.readouterr().out))

    return run


def test_a_site_that_is_ready_passes_every_part_and_is_told_the_next_step(
    site: EnrolledSite, capsys: pytest.CaptureFixture[str]
) -> None:
    site.accept()
    before = set(site.kit.rglob("*"))

    status = cli.main(["check", "--site", str(site.file)])

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        *("kit:", "connection:", "consent:", "computing, study tiny:", "data, study tiny:"),
        "This, and nothing about a single patient, is what the coordinator is told:",
        "computing, study tiny:",
    ]
    assert lines[-2].endswith(" 0 failures")
    assert lines[-1] == f"Next: gliorn-client --site {site.file}"
    assert set(site.kit.rglob("*")) == before  # no journal line, no state of Flower


def test_json_holds_every_finding_and_what_the_coordinator_would_be_told(
    site: EnrolledSite, check: Callable[..., Ended], quick_trial: list[str]
) -> None:
    site.write(studies=[DIGEST])

    ended = check()

    assert (ended.status, ended.failures) == (0, [])
    assert {each["part"] for each in ended.values["findings"]} == {"kit", "connection", "consent", "data", "computing"}
    assert all(each.keys() == OF_A_FINDING for each in ended.values["findings"])
    assert sum(ended.values["counts"].values()) == len(ended.values["findings"])
    (manifest,) = ended.values["manifests"]
    assert manifest["study_digest"] == DIGEST
    assert manifest["num_patients"]["train"] == [2, 1]
    assert quick_trial == [DIGEST]


def test_a_study_without_consent_fails_and_is_rehearsed_all_the_same(
    check: Callable[..., Ended], quick_trial: list[str]
) -> None:
    ended = check()

    assert (ended.status, ended.failures) == (2, [("consent", "not accepted")])
    assert DIGEST in ended.finding("consent", "not accepted")["found"]
    assert "gliorn-client accept --site" in ended.finding("consent", "not accepted")["advice"]
    assert len(ended.values["manifests"]) == 1
    assert quick_trial == [DIGEST]


def test_of_two_offered_studies_the_accepted_one_is_rehearsed(
    site: EnrolledSite, gateway: TinyGateway, check: Callable[..., Ended], quick_trial: list[str]
) -> None:
    other = study_text(name="other")
    second = StudyOffer(name="other", digest=parse_study(other, origin="study").digest, text=other)
    gateway.changes["studies"] = (OFFER, second, second)  # the federation's own, and two runs of the other
    site.accept(other)

    ended = check()

    assert ended.failures == []
    assert ended.finding("consent", "not accepted")["level"] == "warning"
    assert ended.finding("consent", "accepted")["study"] == "other"
    assert quick_trial == [second.digest]


def test_a_named_study_that_is_not_offered_fails(
    site: EnrolledSite, check: Callable[..., Ended], quick_trial: list[str], tmp_path: Path
) -> None:
    site.accept()
    (tmp_path / "mine.yaml").write_text(study_text(rounds=77))

    ended = check("--study", tmp_path / "mine.yaml")

    assert (ended.status, ended.failures) == (2, [("consent", "--study")])
    assert f"tiny ({DIGEST[:16]}…)" in ended.finding("consent", "--study")["found"]


def test_a_study_whose_text_is_not_that_of_its_digest_fails(
    gateway: TinyGateway, check: Callable[..., Ended], quick_trial: list[str]
) -> None:
    gateway.changes["studies"] = (OFFER.model_copy(update={"text": study_text(rounds=77)}),)

    ended = check()

    assert ended.failures == [("consent", "study")]
    assert quick_trial == []


def test_data_and_computing_are_rehearsed_though_nobody_answers(
    site: EnrolledSite, check: Callable[..., Ended], quick_trial: list[str]
) -> None:
    site.accept()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = yaml.safe_load(site.file.read_text())["server"]
        site.write(server=server | {"address": f"127.0.0.1:{closed.getsockname()[1]}"})
        ended = check()

    assert (ended.status, ended.failures) == (2, [("connection", "TCP")])
    assert len(ended.values["manifests"]) == 1
    assert quick_trial == [DIGEST]  # its text lies in the kit since it was accepted


def test_without_a_coordinator_s_answer_and_without_a_study_the_way_on_is_said(
    gateway: TinyGateway, check: Callable[..., Ended]
) -> None:
    gateway.fault = "revoked"

    ended = check()

    assert (ended.status, ended.failures) == (2, [("connection", "admission")])
    assert "--study FILE" in ended.finding("consent", "studies")["advice"]
    assert ended.values["manifests"] == []


def test_a_server_section_without_a_key_fails_and_the_rest_is_rehearsed(
    site: EnrolledSite, check: Callable[..., Ended], quick_trial: list[str], tmp_path: Path
) -> None:
    site.write(server={"address": "127.0.0.1:9092"})
    (tmp_path / "study.yaml").write_text(TEXT)

    ended = check("--study", tmp_path / "study.yaml")

    assert (ended.status, ended.failures) == (2, [("kit", "server")])
    assert "gliorn-client enroll" in ended.finding("kit", "server")["advice"]
    assert quick_trial == [DIGEST]


def test_all_faults_of_the_data_are_told_and_no_step_is_tried(site: EnrolledSite, check: Callable[..., Ended]) -> None:
    site.accept()
    for volume in sorted(site.file.parent.glob("*_t1.nii.gz"))[:2]:
        volume.write_bytes(b"no image")

    ended = check()

    assert (ended.status, ended.failures) == (2, [("data", "file-unreadable")])
    assert ended.finding("data", "file-unreadable")["found"].startswith("2 cases, the first row 2 (patient 0001): t1: ")
    assert ended.finding("computing", "step")["level"] == "warning"
    assert ended.values["manifests"] == []


def test_all_that_the_site_s_own_rules_forbid_is_told_at_once(
    site: EnrolledSite, check: Callable[..., Ended], quick_trial: list[str]
) -> None:
    site.accept()
    site.write(disclosure={"min_patients": 4, "max_bins": 16})

    ended = check()

    assert (ended.status, ended.failures) == (2, [("data", "disclosure"), ("data", "disclosure")])
    assert ended.values["manifests"] == []
    assert "min_cell (5)" in ended.finding("data", "validation")["found"]


def test_nothing_is_prepared_where_the_disk_has_no_room(
    site: EnrolledSite, check: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.accept()
    real = shutil.disk_usage(site.file.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: real._replace(free=1000))

    ended = check()

    assert (ended.status, ended.failures) == (2, [("computing", "disk")])
    assert not list((site.file.parent / "cache").rglob("*.exam"))


def test_whether_the_site_is_open_now_is_told(
    site: EnrolledSite, gateway: TinyGateway, check: Callable[..., Ended]
) -> None:
    gateway.changes["studies"] = ()
    site.write(working_hours=["mon-sun 00:00-24:00"])

    assert check().finding("kit", "working hours")["found"] == "open now, by this machine's local time"


def test_without_a_server_section_a_study_is_needed(site: EnrolledSite, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(site.file.read_text())
    del values["server"]
    site.file.write_text(yaml.safe_dump(values))

    status = cli.main(["check", "--site", str(site.file)])

    assert status == 2
    assert "gliorn-client: --study FILE is missing" in capsys.readouterr().err
