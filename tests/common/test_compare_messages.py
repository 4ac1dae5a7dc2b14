"""Tasks and replies of a comparison on the wire: what goes in comes out, and what cannot be is refused."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from common.errors import ProtocolError
from common.messages import read_compare_reply, read_compare_task, reply_records, task_records
from common.metrics.paired import KeptScores, difference_sums, site_comparison
from common.study import parse_study
from common.tasks import CompareReply, CompareTask, Failure, ModelOfRun
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(), origin="study")
TASK = CompareTask(STUDY, ModelOfRun("new", "a" * 64, personal=True), ModelOfRun("old", "b" * 64))
A, B = (KeptScores(np.array(index), np.array([0, 0, 1, 1]), 8) for index in ([0, 1, 2, 3], [1, 0, 0, 3]))
SITE = site_comparison(A, B)
FIRST_REPLY = CompareReply(STUDY.digest, "c" * 64, "", site=SITE)
POOLS_TASK = replace(TASK, pools=SITE.histograms)
SECOND_REPLY = CompareReply(STUDY.digest, "c" * 64, "", sums=difference_sums(A, B, SITE.histograms))


def altered(name: str, numbers: list[int]) -> RecordDict:
    records = reply_records(FIRST_REPLY)
    lists = dict(records.metric_records["comparison"])
    records["comparison"] = MetricRecord({**lists, name: numbers})
    return records


@pytest.mark.parametrize("task", [TASK, POOLS_TASK], ids=["first", "second"])
def test_task_comes_out_as_it_went_in(task: CompareTask) -> None:
    assert read_compare_task(task_records(task)) == task


def test_replies_come_out_as_they_went_in() -> None:
    withheld = CompareReply(STUDY.digest, "c" * 64, "min_cell")

    assert read_compare_reply(reply_records(FIRST_REPLY), TASK) == FIRST_REPLY
    assert read_compare_reply(reply_records(SECOND_REPLY), POOLS_TASK) == SECOND_REPLY
    assert read_compare_reply(reply_records(withheld), TASK) == withheld
    assert read_compare_reply(reply_records(Failure("data")), TASK) == Failure("data")


def test_site_with_one_class_sends_no_sums_of_its_own() -> None:
    one = KeptScores(np.array([1, 2]), np.array([0, 0]), 8)
    reply = CompareReply(STUDY.digest, "c" * 64, "", site=site_comparison(one, one))

    assert read_compare_reply(reply_records(reply), TASK) == reply


def test_every_message_is_whole_numbers_and_no_patient() -> None:
    lists = reply_records(FIRST_REPLY).metric_records["comparison"]

    assert {name: len(values) for name, values in lists.items() if isinstance(values, list)} == {
        **dict.fromkeys(("first_recurrence", "first_necrosis", "second_recurrence", "second_necrosis"), 8),
        "sums": 6,
    }


@pytest.mark.parametrize(
    ("records", "message"),
    [
        pytest.param(altered("first_necrosis", [1]), "expected two of one length", id="length"),
        pytest.param(altered("first_necrosis", [3, -1, 0, 0, 0, 0, 0, 0]), "counts are below 0", id="negative"),
        pytest.param(altered("first_necrosis", [3, 0, 0, 0, 0, 0, 0, 0]), "of different patients", id="patients"),
        pytest.param(altered("sums", [1, 1, 0, 0, 0, 0]), "not of the patients in the histograms", id="sums"),
        pytest.param(altered("names", [1]), "under the names expected", id="unknown"),
        pytest.param(reply_records(SECOND_REPLY), "histograms are missing", id="sums alone"),
    ],
)
def test_reply_that_contradicts_itself_is_refused(records: RecordDict, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        read_compare_reply(records, TASK)


def test_reply_without_the_sums_that_were_asked_for_is_refused() -> None:
    records = reply_records(FIRST_REPLY)
    lists = {name: values for name, values in records.metric_records["comparison"].items() if name != "sums"}
    records["comparison"] = MetricRecord(lists)

    with pytest.raises(ProtocolError, match="expected them for the pools"):
        read_compare_reply(records, POOLS_TASK)
