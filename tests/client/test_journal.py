"""The site's log of what left it."""

import json
import stat
from pathlib import Path

import pytest
from flwr.app import Message

from client.app import app
from client.journal import JOURNAL_VARIABLE, NUM_KEPT, Entry, JournalReader, append, read_entry
from client.kit import SITE_CONFIG_KEY
from client.sayings import answer_in_words, size_in_words
from common.flower_private import new_context, take_server_identity
from common.messages import task_records
from common.models import build_model, get_state
from common.study import parse_study
from common.tasks import DescribeTask, EvaluateTask, TrainTask
from tests.full_disk import fill_the_disk
from tests.tiny_hospitals import study_text, write_tiny_hospital

STUDY = parse_study(study_text(), origin="study")
TRAINED = Entry(
    time="2026-11-23T12:00:00+00:00",
    kind="train",
    study="tiny",
    study_digest="d" * 64,
    run="one",
    round=3,
    rounds=10,
    seconds=14.2,
    sent={"state": {"arrays": 62, "bytes": 5_200_000}},
    facts={"steps": 12, "patients": 40, "mean_loss": 0.5312},
)


def ask(task: DescribeTask | TrainTask | EvaluateTask, message_type: str, site: Path) -> Message:
    take_server_identity(run_id=1, node_id=1)
    context = new_context(run_id=1, node_id=2, node_config={SITE_CONFIG_KEY: str(site)}, run_config={})
    return app(Message(task_records(task), 2, message_type), context)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_answer_is_written_down_by_names_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, journal = write_tiny_hospital(tmp_path, "a"), tmp_path / "journal.jsonl"
    monkeypatch.setenv(JOURNAL_VARIABLE, str(journal))
    state = get_state(build_model(STUDY.model, num_sequences=3))
    train = TrainTask(
        study=STUDY, run="one", round=2, class_weights=(1.0, 1.0), fedprox_mu=0.0, state=state, class_counts=(3, 2)
    )

    ask(DescribeTask(STUDY), "query.describe", site)
    ask(train, "train", site)
    ask(
        EvaluateTask(
            STUDY, "validation", None, state, run="run", round=1, class_weights=(1.0, 1.0), class_counts=(3, 2)
        ),
        "evaluate",
        site,
    )
    described, trained, evaluated = lines_of(journal)

    num_bytes = sum(array.nbytes for array in state.values())
    assert (described["kind"], described["study_digest"]) == ("describe", STUDY.digest)
    assert (trained["kind"], trained["run"], trained["round"], trained["rounds"]) == ("train", "one", 2, 2)
    sent = trained["sent"]
    assert isinstance(sent, dict)
    assert sent["state"]["arrays"] == len(state)
    assert num_bytes <= sent["state"]["bytes"] <= num_bytes * 1.2 + 200 * len(state)
    assert isinstance(trained["facts"], dict)
    assert trained["facts"]["patients"] == 8
    assert evaluated["kind"] == "evaluate"
    assert str(tmp_path) not in journal.read_text()


def test_failure_is_written_down_as_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal.jsonl"
    monkeypatch.setenv(JOURNAL_VARIABLE, str(journal))

    ask(DescribeTask(STUDY), "query.describe", tmp_path / "absent.yaml")

    (line,) = lines_of(journal)
    assert (line["failure"], line["study"]) == ("config", "tiny")
    assert str(tmp_path) not in journal.read_text()


def test_answer_that_cannot_be_written_down_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write_tiny_hospital(tmp_path, "a")
    monkeypatch.setenv(JOURNAL_VARIABLE, str(tmp_path / "absent" / "journal.jsonl"))

    answer = ask(DescribeTask(STUDY), "query.describe", site)

    assert answer.content.config_records["reply"]["failure"] == "internal"


def test_cache_on_a_full_disk_costs_the_task_and_says_so_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site, journal = write_tiny_hospital(tmp_path, "a"), tmp_path / "journal.jsonl"
    monkeypatch.setenv(JOURNAL_VARIABLE, str(journal))
    reader = JournalReader(journal)
    with monkeypatch.context() as full:
        fill_the_disk(full)
        missed = ask(DescribeTask(STUDY), "query.describe", site)

    answered = ask(DescribeTask(STUDY), "query.describe", site)

    assert dict(missed.content.config_records["reply"])["failure"] == "config"
    assert "failure" not in answered.content.config_records["reply"]
    assert "failed (config); the disk that holds the folder `cache` of site.yaml is full" in caplog.text
    failed, _ = reader.new_entries()
    assert "could not describe itself (config): the disk that holds the folder `cache`" in answer_in_words(
        failed, sent=""
    )
    assert str(tmp_path) not in journal.read_text() + caplog.text


def test_journal_is_its_owners_alone_and_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"

    for _ in range(100):
        append(journal, TRAINED, max_bytes=1000)

    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["journal.jsonl", *(f"journal.jsonl.{number}" for number in range(1, NUM_KEPT + 1))]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < (NUM_KEPT + 1) * 1600


def test_reader_gives_each_new_entry_once_also_across_rotations(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    append(journal, TRAINED)
    reader = JournalReader(journal)
    seen: list[Entry] = []

    for _ in range(50):
        append(journal, TRAINED, max_bytes=1000)
        seen += reader.new_entries()

    assert seen == [TRAINED] * 50


def test_line_that_is_not_finished_waits_for_its_end(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    reader = JournalReader(journal)
    line = TRAINED.to_line()
    with journal.open("w") as file:
        file.write(line[:50])
        file.flush()
        early = list(reader.new_entries())
        file.write(line[50:])
        file.flush()
        late = list(reader.new_entries())

    assert (early, late) == ([], [TRAINED])


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"time": "yesterday", "kind": "train"}', "3"])
def test_line_that_is_no_entry_is_passed_over(line: str) -> None:
    assert read_entry(line) is None


def test_person_reads_one_plain_line_for_a_round() -> None:
    line = answer_in_words(TRAINED, sent=f"sent {size_in_words(5_200_000)}")

    assert line == "round 3 of 10: trained 12 steps on 40 patients, mean loss 0.531, 14 s; sent 5.2 MB"


def test_line_of_a_refused_bundle_tells_both_digests() -> None:
    refused = Entry(TRAINED.time, "bundle", failure="bundle", facts={"installed": "a" * 64, "offered": "b" * 64})

    line = answer_in_words(refused, sent="")

    assert "a" * 64 in line
    assert "b" * 64 in line
    assert "ran nothing of it" in line


@pytest.mark.parametrize(
    ("code", "advice"),
    [("data", "gliorn-client check"), ("consent", "gliorn-client accept"), ("disclosure", "own rules")],
)
def test_line_of_a_failure_says_what_to_do(code: str, advice: str) -> None:
    failed = Entry(TRAINED.time, "train", study="tiny", round=3, rounds=10, failure=code)

    line = answer_in_words(failed, sent="")

    assert line.startswith(f"round 3 of 10: could not train ({code})")
    assert advice in line
