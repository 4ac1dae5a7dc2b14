"""A site of a federation does nothing for a study that nobody at the site has agreed to."""

import io
import logging
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from client.app import SITE_CONFIG_KEY, app
from client.cli import main
from client.config import ServerSpec, SiteConfig, parse_site_config, read_site_config
from client.consent import has_consented, keep_consent, plain_text, require_consent
from client.kit import Kit, kit_of
from common.errors import ConfigError, ConsentError
from common.flower_private import new_context, take_server_identity
from common.hello import StudyOffer
from common.messages import read_manifest, task_records
from common.study import Study, parse_study
from common.tasks import DescribeTask, Failure
from server.provisioning import make_certificate_authority, make_site_key_pair
from tests.tiny_gateway import FEDERATION_ID, YEAR, TinyGateway, TinyServers

NOW = datetime.now(UTC)
TEXT = """
name: necrosis
seed: 7
rounds: 1
preprocessing: {spacing_mm: [4, 4, 4], size_voxels: [16, 16, 16], crop: lesion}
training: {learning_rate: 1e-5, batch_size: 4, local_epochs: 1}
participation: {min_sites: 1}
"""
STUDY = parse_study(TEXT, origin="study.yaml")
OTHER = STUDY.model_copy(update={"name": "other"})


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """site.yaml of an enrolled site, which was never connected and has no readable data."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    kit = tmp_path / "federation"
    kit.mkdir(mode=0o700)
    (kit / "ca.crt").write_bytes(AUTHORITY.certificate)
    (kit / "site.key").write_bytes(make_site_key_pair().private_key)
    (tmp_path / "table.tsv").write_text("no data")
    return write_site(tmp_path, "a.org:9092")


AUTHORITY = make_certificate_authority("one", now=NOW - timedelta(days=2), lifetime=YEAR)


def write_site(folder: Path, address: str, studies: str = "[]") -> Path:
    path = folder / "site.yaml"
    path.write_text(
        f"name: a\ndata: {{table: table.tsv}}\nlabel_map: {{n: 1, r: 0}}\ncache: cache\nstudies: {studies}\n"
        f"server: {{address: '{address}', ca_certificate: federation/ca.crt, private_key: federation/site.key,\n"
        f"  federation: one, federation_id: '{FEDERATION_ID}'}}\n"
    )
    return path


def kit_at(site: Path) -> tuple[SiteConfig, Kit]:
    config = read_site_config(site)
    return config, kit_of(config, origin=site)


def test_site_without_a_server_needs_no_consent() -> None:
    config = parse_site_config("name: a\ndata: {table: t.tsv}\nlabel_map: {n: 1, r: 0}\ncache: c\n", origin="x")

    require_consent(config, STUDY)


def test_site_of_a_federation_refuses_what_nobody_agreed_to_and_says_what_to_do(hospital: Path) -> None:
    config = read_site_config(hospital)

    with pytest.raises(ConsentError, match=rf"necrosis with the digest {STUDY.digest}: nobody .*gliorn-client accept"):
        require_consent(config, STUDY)


def test_kit_without_a_key_shows_no_consent(hospital: Path) -> None:
    config = read_site_config(hospital).model_copy(update={"server": ServerSpec(address="a.org:1")})

    with pytest.raises(ConsentError, match="it names no private_key"):
        require_consent(config, STUDY)


@pytest.mark.parametrize("digest", [STUDY.digest[:16], STUDY.digest[:63], STUDY.digest.upper(), STUDY.digest + "0"])
def test_anything_but_a_whole_digest_in_the_configuration_is_refused(hospital: Path, digest: str) -> None:
    path = write_site(hospital.parent, "a.org:1", f"['{digest}']")

    with pytest.raises(ConfigError, match=rf"{len(digest)} characters\), expected the whole digest of a study, 64 of"):
        read_site_config(path)


def test_digest_in_the_site_s_configuration_is_consent_to_that_study_alone(hospital: Path) -> None:
    config = read_site_config(write_site(hospital.parent, "a.org:1", f"['{STUDY.digest}']"))

    assert has_consented(config, STUDY)
    assert not has_consented(config, OTHER)


def test_accepted_file_is_consent_until_it_is_deleted(hospital: Path) -> None:
    config, kit = kit_at(hospital)

    path = keep_consent(kit, STUDY, now=NOW)

    assert path == kit.accepted / f"{STUDY.digest}.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert has_consented(config, STUDY)
    assert not has_consented(config, OTHER)
    path.unlink()
    assert not has_consented(config, STUDY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (plain_text(OTHER), "was changed and holds another study"),
        ("", "cannot be read as a study"),
        ("\udcff", "cannot be read as a study"),
    ],
)
def test_file_that_only_bears_the_digest_in_its_name_is_no_consent(hospital: Path, content: str, words: str) -> None:
    config, kit = kit_at(hospital)
    kit.accepted.mkdir()
    (kit.accepted / f"{STUDY.digest}.yaml").write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(ConsentError, match=words):
        require_consent(config, STUDY)


@given(
    rate=st.floats(1e-12, 10),
    mu=st.floats(0, 100),
    prevalence=st.none() | st.floats(0.001, 0.999),
    spacing=st.tuples(*[st.floats(0.3, 10)] * 3),
)
def test_settings_as_they_are_shown_and_kept_have_the_study_s_digest(
    rate: float, mu: float, prevalence: float | None, spacing: tuple[float, float, float]
) -> None:
    study = Study.model_validate(
        STUDY.model_dump()
        | {
            "training": STUDY.training.model_dump() | {"learning_rate": rate, "fedprox_mu": mu},
            "preprocessing": STUDY.preprocessing.model_dump() | {"spacing_mm": spacing},
            "evaluation": STUDY.evaluation.model_dump() | {"prevalence": prevalence},
        }
    )

    assert parse_study(plain_text(study), origin="kept").digest == study.digest


def describe(site: Path) -> str:
    take_server_identity(run_id=1, node_id=1)
    context = new_context(run_id=1, node_id=2, node_config={SITE_CONFIG_KEY: str(site)}, run_config={})
    answer = read_manifest(app(Message(task_records(DescribeTask(STUDY)), 2, "query.describe"), context).content)
    assert isinstance(answer, Failure)
    return answer.code


def test_app_answers_with_consent_before_it_looks_at_any_data_and_names_the_command(
    hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        code = describe(hospital)

    assert code == "consent"
    assert "gliorn-client accept" in caplog.text
    assert STUDY.digest not in caplog.text
    assert not (hospital.parent / "cache").exists()


def test_app_goes_on_to_the_data_once_the_site_has_agreed(hospital: Path) -> None:
    keep_consent(kit_at(hospital)[1], STUDY, now=NOW)

    assert describe(hospital) in ("config", "data")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_person_who_types_the_digest_s_beginning_agrees(
    hospital: Path, study_file: Path, types: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    types(STUDY.digest[:8] + "\n")

    status = main(["accept", "--site", str(hospital), "--study", str(study_file)])

    assert status == 0
    assert "learning_rate: 1.0e-05" in capsys.readouterr().out
    assert has_consented(read_site_config(hospital), STUDY)


@pytest.mark.parametrize("typed", ["yes\n", "\n", "", "00000000\n"])
def test_person_who_types_anything_else_does_not(
    hospital: Path,
    study_file: Path,
    types: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    typed: str,
) -> None:
    types(typed)

    status = main(["accept", "--site", str(hospital), "--study", str(study_file)])

    assert status == 2
    assert "not agreed" in capsys.readouterr().err
    assert not has_consented(read_site_config(hospital), STUDY)


def test_script_agrees_to_a_digest_that_it_names(hospital: Path, study_file: Path) -> None:
    arguments = ["accept", "--site", str(hospital), "--study", str(study_file), "--yes"]

    assert main([*arguments, "--digest", STUDY.digest.upper()]) == 0
    assert has_consented(read_site_config(hospital), STUDY)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--yes"], "--yes needs --digest"),
        (["--yes", "--digest", STUDY.digest[:16]], "has 16 characters, expected the whole digest of the study, 64"),
        (["--yes", "--digest", "0" * 64], "expected the study 0000000000000000"),
        (["--study", "nowhere.yaml"], "--study nowhere.yaml: cannot be read"),
    ],
)
def test_command_refuses_what_names_no_study(
    hospital: Path, study_file: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    status = main(["accept", "--site", str(hospital), "--study", str(study_file), *options])

    assert status == 2
    assert words in capsys.readouterr().err
    assert not has_consented(read_site_config(hospital), STUDY)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[TinyServers]:
    servers = TinyServers(tmp_path)
    yield servers
    servers.stop()


def offer(study: Study, **changes: str) -> StudyOffer:
    return StudyOffer(name=study.name, digest=study.digest, text=plain_text(study)).model_copy(update=changes)


def connected(hospital: Path, servers: TinyServers, *offers: StudyOffer) -> Path:
    gateway = servers.https(TinyGateway(AUTHORITY, changes={"studies": offers}))
    return write_site(hospital.parent, f"127.0.0.1:{gateway.port}")


def test_study_is_fetched_from_the_coordinator(
    hospital: Path, servers: TinyServers, types: Callable[[str], None]
) -> None:
    site = connected(hospital, servers, offer(STUDY), offer(STUDY))
    types(STUDY.digest[:8] + "\n")

    assert main(["accept", "--site", str(site)]) == 0
    assert has_consented(read_site_config(site), STUDY)


def test_one_of_several_studies_is_named_by_its_digest(
    hospital: Path, servers: TinyServers, capsys: pytest.CaptureFixture[str]
) -> None:
    site = connected(hospital, servers, offer(STUDY), offer(OTHER))

    assert main(["accept", "--site", str(site)]) == 2
    assert f"several studies; name one with --digest:\n  - necrosis: {STUDY.digest}" in capsys.readouterr().err
    assert main(["accept", "--site", str(site), "--yes", "--digest", OTHER.digest]) == 0
    assert has_consented(read_site_config(site), OTHER)
    assert not has_consented(read_site_config(site), STUDY)


@pytest.mark.parametrize("changes", [{"digest": OTHER.digest}, {"text": "name: necrosis"}], ids=["digest", "text"])
def test_offer_that_is_not_what_its_digest_says_is_refused(
    hospital: Path, servers: TinyServers, capsys: pytest.CaptureFixture[str], changes: dict[str, str]
) -> None:
    site = connected(hospital, servers, offer(STUDY, **changes))

    assert main(["accept", "--site", str(site)]) == 2
    assert "is not what its digest says" in capsys.readouterr().err


def test_coordinator_without_a_study_is_said(
    hospital: Path, servers: TinyServers, capsys: pytest.CaptureFixture[str]
) -> None:
    site = connected(hospital, servers)

    assert main(["accept", "--site", str(site)]) == 2
    assert "expected a study, found: none" in capsys.readouterr().err


def test_comments_of_an_offered_text_are_neither_shown_nor_kept(
    hospital: Path, servers: TinyServers, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# \u202eagree blindly\n" + plain_text(STUDY)
    site = connected(hospital, servers, offer(STUDY, text=text))

    assert main(["accept", "--site", str(site), "--yes", "--digest", STUDY.digest]) == 0
    assert "blindly" not in capsys.readouterr().out
    [kept] = kit_at(site)[1].accepted.iterdir()
    assert "blindly" not in kept.read_text()
