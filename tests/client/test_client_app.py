"""The border of a hospital: every message is answered, and what goes wrong leaves as a code alone."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.app import SITE_CONFIG_KEY, app
from client.site import Site
from common.errors import ConfigError, DataError, TrainingError
from common.flower_private import new_context, take_server_identity
from common.messages import (
    PING_TYPE,
    ping_records,
    read_compare_reply,
    read_evaluate_reply,
    read_manifest,
    read_train_reply,
    task_records,
)
from common.models import initial_state
from common.record_values import PROTOCOL
from common.study import parse_study
from common.tasks import (
    CompareReply,
    CompareTask,
    DescribeTask,
    EvaluateReply,
    EvaluateTask,
    Failure,
    ModelOfRun,
    SiteManifest,
    TrainReply,
    TrainTask,
)
from tests.tiny_hospitals import study_text, write_tiny_hospital

STUDY = parse_study(study_text(), origin="study")
STATE = initial_state(STUDY.model, num_sequences=3, seed=0)
EVALUATE = EvaluateTask(STUDY, "test", 0.0, STATE, run="run", round=1, class_weights=(1.0, 1.0), class_counts=(3, 2))
TRAIN = task_records(TrainTask(STUDY, "run", 1, (1.0, 1.0), 0.0, STATE, class_counts=(3, 2)))
SECRET = "/data/Miller-1947/t1.nii.gz"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hospital(tmp_path_factory.mktemp("hospital"), "a")


def ask(
    content: RecordDict, message_type: str, site_config: object, *, ttl: float = 60, clock_behind_s: float = 0
) -> RecordDict:
    take_server_identity(run_id=1, node_id=1)
    message = Message(content, 2, message_type, ttl=ttl)
    message.metadata.created_at -= clock_behind_s
    config = {} if site_config is None else {SITE_CONFIG_KEY: str(site_config)}
    context: Context = new_context(run_id=1, node_id=2, node_config=config, run_config={})

    reply = app(message, context)

    assert reply.has_content()
    return reply.content


def test_ping_is_answered_with_nothing_of_the_site() -> None:
    answer = ask(ping_records(), PING_TYPE, site_config=None)

    assert answer == ping_records()


def failure_of(content: RecordDict) -> str:
    assert list(content) == ["reply"]
    assert dict(content.config_records["reply"]).keys() == {"protocol", "failure"}
    failure = read_train_reply(content, study=STUDY)
    assert isinstance(failure, Failure)
    return failure.code


def test_site_answers_all_three_questions(hospital: Path) -> None:
    described = ask(task_records(DescribeTask(STUDY)), "query.describe", hospital)
    trained = ask(TRAIN, "train", hospital)
    evaluated = ask(task_records(EVALUATE), "evaluate", hospital)

    assert isinstance(read_manifest(described), SiteManifest)
    assert isinstance(read_train_reply(trained, study=STUDY), TrainReply)
    assert isinstance(read_evaluate_reply(evaluated, EVALUATE), EvaluateReply)


@pytest.mark.parametrize("message_type", ["query.describe", "train", "evaluate"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(RecordDict(), id="nothing"),
        pytest.param(RecordDict({"task": ConfigRecord({"protocol": PROTOCOL})}), id="no study"),
        pytest.param(RecordDict({"task": ConfigRecord({"protocol": 99, "study": "{}"})}), id="another protocol"),
    ],
)
def test_message_that_is_no_task_is_answered_with_a_code(
    content: RecordDict, message_type: str, hospital: Path
) -> None:
    assert failure_of(ask(content, message_type, hospital)) == "protocol"


def test_configuration_is_the_hospital_s_own_and_never_the_run_s(hospital: Path, tmp_path: Path) -> None:
    assert failure_of(ask(TRAIN, "train", None)) == "config"
    assert failure_of(ask(TRAIN, "train", tmp_path / "absent.yaml")) == "config"

    take_server_identity(run_id=1, node_id=1)
    named_by_run = new_context(run_id=1, node_id=2, node_config={}, run_config={SITE_CONFIG_KEY: str(hospital)})
    assert failure_of(app(Message(TRAIN, 2, "train"), named_by_run).content) == "config"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(DataError(SECRET), "data", id="data"),
        pytest.param(ConfigError(SECRET), "config", id="config"),
        pytest.param(TrainingError(SECRET), "training", id="training"),
        pytest.param(ValueError(SECRET), "internal", id="our own mistake"),
        pytest.param(MemoryError(SECRET), "internal", id="memory"),
        pytest.param(RecursionError(SECRET), "internal", id="recursion"),
    ],
)
def test_error_leaves_as_a_code_and_its_text_is_in_no_log(
    error: Exception,
    code: str,
    hospital: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    def fail(site: Site, task: TrainTask) -> TrainReply:
        raise error

    monkeypatch.setattr(Site, "train", fail)

    content = ask(TRAIN, "train", hospital)

    assert failure_of(content) == code
    assert "Miller" not in repr(content)
    assert "Miller" not in caplog.text
    assert code in caplog.text or type(error).__name__ in caplog.text
    assert ("gliorn-client check" in caplog.text) == (code in ("data", "config"))


def test_reply_that_cannot_be_packed_leaves_as_a_code(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = Site.describe
    no_json: Any = {SECRET: {SECRET}}
    monkeypatch.setattr(Site, "describe", lambda site: replace(describe(site), missing_sequences=no_json))

    content = ask(task_records(DescribeTask(STUDY)), "query.describe", hospital)

    assert failure_of(content) == "internal"


def test_work_that_takes_longer_than_the_coordinator_waits_is_given_up(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(site: Site, task: TrainTask) -> TrainReply:
        time.sleep(60)
        raise AssertionError("nobody ended it")

    monkeypatch.setattr(Site, "train", hang)

    assert failure_of(ask(TRAIN, "train", hospital, ttl=2)) == "timeout"


def test_the_coordinators_clock_may_differ(hospital: Path) -> None:
    described = ask(task_records(DescribeTask(STUDY)), "query.describe", hospital, clock_behind_s=3600)

    assert isinstance(read_manifest(described), SiteManifest)


def test_site_is_opened_once_and_again_for_another_study(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really_open: Callable[..., Site] = Site.open

    def count(config: object, study: object) -> Site:
        opened.append("")
        return really_open(config, study)

    monkeypatch.setattr(Site, "open", count)
    first, second = (task_records(DescribeTask(parse_study(study_text(seed=s), origin="study"))) for s in (100, 101))

    for content in (first, first, second, second, first):
        ask(content, "query.describe", hospital)

    assert len(opened) == 3


def test_site_that_could_not_be_opened_is_tried_again_once_it_is_mended(tmp_path: Path) -> None:
    path = write_tiny_hospital(tmp_path, "a")
    table = path.parent / "table.tsv"
    rows = table.read_text()
    table.write_text(rows.replace("necrosis", "nekrosis", 1))
    describe = task_records(DescribeTask(STUDY))

    broken = failure_of(ask(describe, "query.describe", path))
    table.write_text(rows)
    mended = read_manifest(ask(describe, "query.describe", path))

    assert broken == "config"
    assert isinstance(mended, SiteManifest)


def test_two_runs_tested_here_are_compared_in_sums(hospital: Path) -> None:
    other_state = initial_state(STUDY.model, num_sequences=3, seed=1)
    for run, state in (("new", STATE), ("old", other_state)):
        ask(task_records(replace(EVALUATE, run=run, state=state)), "evaluate", hospital)
    task = CompareTask(STUDY, ModelOfRun("new", STUDY.digest), ModelOfRun("old", STUDY.digest))

    first = read_compare_reply(ask(task_records(task), "query.compare", hospital), task)
    assert isinstance(first, CompareReply)
    assert first.site is not None
    with_pools = replace(task, pools=first.site.histograms)
    second = read_compare_reply(ask(task_records(with_pools), "query.compare", hospital), with_pools)

    assert first.site.num_patients == (3, 3)
    assert isinstance(second, CompareReply)
    assert second.sums == first.site.own  # this site alone is the pool


def test_run_that_was_not_tested_here_is_answered_with_a_code(hospital: Path) -> None:
    task = CompareTask(STUDY, ModelOfRun("unknown", STUDY.digest), ModelOfRun("run", STUDY.digest))

    assert failure_of(ask(task_records(task), "query.compare", hospital)) == "data"
