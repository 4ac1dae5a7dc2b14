"""The wire: what is sent is what is read, and whatever else a peer sends is a ProtocolError that names it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.messages import (
    bins_of,
    read_describe_task,
    read_evaluate_reply,
    read_evaluate_task,
    read_manifest,
    read_train_reply,
    read_train_task,
    reply_records,
    task_records,
)
from common.metrics.site_statistics import SiteStatistics
from common.model_state import Array, state_digest
from common.record_values import PROTOCOL
from common.study import parse_study
from common.tasks import (
    DescribeTask,
    EvaluateReply,
    EvaluateTask,
    Evaluation,
    Failure,
    SentState,
    SiteManifest,
    TrainReply,
    TrainTask,
)
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(rounds=50), origin="study")
ARRAYS: dict[str, Array] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "num_batches": np.array(3, dtype=np.int64),
}
DIGEST = "0123456789abcdef" * 4


def statistics(margins: list[float], threshold: float | None) -> SiteStatistics:
    labels = np.arange(len(margins), dtype=np.int64) % 2
    return SiteStatistics.from_margins(np.array(margins), labels, bins=bins_of(STUDY), threshold=threshold)


def train_reply() -> TrainReply:
    evaluation = Evaluation(
        split="validation", statistics=statistics([-1.0, 2.0], None), withheld="", cohort_digest=DIGEST
    )
    return TrainReply(STUDY.digest, 1, ARRAYS, (3, 4), 5, 0.5, "fresh", (1.0, 2.0), evaluation=evaluation)


def manifest() -> SiteManifest:
    return SiteManifest(
        site="a",
        study_digest=STUDY.digest,
        num_patients={"train": (3, 4), "validation": (2, 2), "test": (1, 0)},
        num_exams={"train": 9, "validation": 4, "test": 1},
        cohort_digests=dict.fromkeys(("train", "validation", "test"), DIGEST),
        missing_sequences={"t2": 1},
        crop_centers={"point": 14},
        device="cpu",
        torch_threads=2,
        versions={"torch": "2.13.0"},
    )


def train_task() -> TrainTask:
    return TrainTask(STUDY, "run-1", 3, (0.6, 2.5), 0.01, ARRAYS, class_counts=(9, 4), best_round=2)


def evaluate_task(threshold: float | None = 0.25) -> EvaluateTask:
    return EvaluateTask(
        STUDY, "test", threshold, ARRAYS, run="run", round=1, class_weights=(1.0, 1.0), class_counts=(3, 2)
    )


def evaluate_reply() -> EvaluateReply:
    evaluation = Evaluation(split="test", statistics=statistics([0.0, 1.0], 0.25), withheld="", cohort_digest=DIGEST)
    return EvaluateReply(STUDY.digest, evaluation, 1.5)


def read_train(records: RecordDict) -> TrainReply | Failure:
    return read_train_reply(records, study=STUDY)


def read_evaluate(records: RecordDict) -> EvaluateReply | Failure:
    return read_evaluate_reply(records, evaluate_task(0.0))


Reader = Callable[[RecordDict], object]
MESSAGES: dict[str, tuple[RecordDict, Reader]] = {
    "describe task": (task_records(DescribeTask(STUDY)), read_describe_task),
    "train task": (task_records(train_task()), read_train_task),
    "evaluate task": (task_records(evaluate_task()), read_evaluate_task),
    "manifest": (reply_records(manifest()), read_manifest),
    "train reply": (reply_records(train_reply()), read_train),
    "evaluate reply": (reply_records(evaluate_reply()), read_evaluate),
}
READERS = [pytest.param(reader, id=name) for name, (_, reader) in MESSAGES.items()]


def config_key(records: RecordDict) -> str:
    return "task" if "task" in records else "reply"


def changed(records: RecordDict, **values: Any) -> RecordDict:
    """The records with some values of the configuration replaced; `_` stands for `-`."""
    key = config_key(records)
    config = dict(records.config_records[key]) | {name.replace("_", "-"): value for name, value in values.items()}
    return RecordDict({**records, key: ConfigRecord(config)})


# --- what is sent is what is read -------------------------------------------------------------------------------------

SHARES = st.floats(0, 1e6)


@given(
    st.integers(1, 50),
    st.tuples(SHARES, SHARES),
    st.floats(0, 100),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
def test_train_task_is_read_as_it_was_sent(round: int, weights: tuple[float, float], mu: float, run: str) -> None:
    task = replace(train_task(), round=round, class_weights=weights, fedprox_mu=mu, run=run)

    read = read_train_task(task_records(task))

    assert state_digest(read.state) == state_digest(task.state)
    assert read.sent == SentState("whole", state_digest(task.state))
    assert replace(read, state=task.state, sent=None) == task


@given(st.none() | st.floats(allow_nan=False), st.sampled_from(["validation", "test"]))
def test_evaluate_task_is_read_as_it_was_sent(threshold: float | None, split: Any) -> None:
    task = replace(evaluate_task(threshold), split=split)

    read = read_evaluate_task(task_records(task))

    assert state_digest(read.state) == state_digest(task.state)
    assert read.sent == SentState("whole", state_digest(task.state))
    assert replace(read, state=task.state, sent=None) == task


def test_describe_task_is_read_as_it_was_sent() -> None:
    assert read_describe_task(task_records(DescribeTask(STUDY))) == DescribeTask(STUDY)


COUNTS = st.tuples(st.integers(0, 10**9), st.integers(0, 10**9))
NAMED_COUNTS = st.dictionaries(st.from_regex(r"[ -~]{0,20}", fullmatch=True), st.integers(0, 10**9), max_size=4)


@given(COUNTS, NAMED_COUNTS, NAMED_COUNTS, st.integers(1, 4096))
def test_manifest_is_read_as_it_was_sent(
    patients: tuple[int, int], missing: dict[str, int], centers: dict[str, int], threads: int
) -> None:
    sent = replace(
        manifest(),
        num_patients=manifest().num_patients | {"train": patients},
        missing_sequences=missing,
        crop_centers=centers,
        torch_threads=threads,
    )

    assert read_manifest(reply_records(sent)) == sent


@given(
    st.integers(1, 50),
    COUNTS,
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.floats(-50, 50), max_size=6),
    st.sampled_from(["", "min_cell", "no_patients"]),
)
def test_train_reply_is_read_as_it_was_sent(
    round: int, patients: tuple[int, int], loss: float, margins: list[float], withheld: str
) -> None:
    counts = None if withheld else statistics(margins, None)
    evaluation = Evaluation(split="validation", statistics=counts, withheld=withheld, cohort_digest=DIGEST)
    sent = replace(train_reply(), round=round, num_patients=patients, train_loss=loss, evaluation=evaluation)

    read = read_train(reply_records(sent))

    assert isinstance(read, TrainReply)
    assert state_digest(read.state) == state_digest(sent.state)
    assert replace(read, state=sent.state) == sent


@given(st.lists(st.floats(-50, 50), max_size=6), st.floats(-5, 5), st.floats(0, 1e9))
def test_evaluate_reply_is_read_as_it_was_sent(margins: list[float], threshold: float, seconds: float) -> None:
    evaluation = replace(evaluate_reply().evaluation, statistics=statistics(margins, threshold))
    sent = replace(evaluate_reply(), evaluation=evaluation, seconds=seconds)

    assert read_evaluate(reply_records(sent)) == sent


@pytest.mark.parametrize("reader", [read_manifest, read_train, read_evaluate])
def test_failure_is_read_in_the_place_of_every_reply(reader: Reader) -> None:
    assert reader(reply_records(Failure("data"))) == Failure("data")


# --- what is not ------------------------------------------------------------------------------------------------------

EACH_KEY = [
    pytest.param(records, reader, key, id=f"{name}: {key}")
    for name, (records, reader) in MESSAGES.items()
    for key in records.config_records[config_key(records)]
    if key != "protocol"
]


@pytest.mark.parametrize(("records", "reader", "key"), EACH_KEY)
def test_missing_value_is_named(records: RecordDict, reader: Reader, key: str) -> None:
    part = config_key(records)
    config = {name: value for name, value in records.config_records[part].items() if name != key}

    with pytest.raises(ProtocolError, match=f"'{key}' is missing; both sides need the same version"):
        reader(RecordDict({**records, part: ConfigRecord(config)}))


@pytest.mark.parametrize(("records", "reader", "key"), EACH_KEY)
def test_value_of_another_type_is_named(records: RecordDict, reader: Reader, key: str) -> None:
    part = config_key(records)

    with pytest.raises(ProtocolError, match=f"'{key}' must be of type"):
        reader(RecordDict({**records, part: ConfigRecord({**records.config_records[part], key: b"\x00"})}))


@pytest.mark.parametrize(("records", "reader"), MESSAGES.values(), ids=MESSAGES)
def test_missing_part_of_a_message_is_named(records: RecordDict, reader: Reader) -> None:
    for part in records:
        rest = RecordDict({name: record for name, record in records.items() if name != part})

        with pytest.raises(ProtocolError, match=r"has no '(task|reply)' part|holds no (model state|statistics)"):
            reader(rest)


@pytest.mark.parametrize(("records", "reader"), MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize(
    "protocol",
    [0, PROTOCOL - 1, PROTOCOL + 1, True, float(PROTOCOL), str(PROTOCOL), b"2" * 10_000],
    ids=lambda value: type(value).__name__,
)
def test_another_protocol_is_refused_in_few_words(records: RecordDict, reader: Reader, protocol: Any) -> None:
    with pytest.raises(ProtocolError, match=f"this program speaks {PROTOCOL}; install the same version") as caught:
        reader(changed(records, protocol=protocol))

    assert len(str(caught.value)) < 200


BAD_VALUES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such round": ("train reply", {"round": 51}, "'round' is 51, expected 1 to 50"),
    "no step done": ("train reply", {"num_steps": 0}, "'num-steps' is 0"),
    "negative patients": ("train reply", {"num_patients": [-1, 4]}, "'num-patients' is -1, expected 0 to"),
    "too many patients": ("train reply", {"num_patients": [3, 10**9 + 1]}, "'num-patients' is 1000000001"),
    "three classes": ("train reply", {"num_patients": [1, 2, 3]}, "'num-patients' must be 2 whole numbers"),
    "loss is not a number": ("train reply", {"train_loss": float("nan")}, "'train-loss' is nan"),
    "loss is infinite": ("train reply", {"train_loss": float("inf")}, "'train-loss' is inf"),
    "negative time": ("train reply", {"seconds": [-1.0, 0.0]}, "'seconds' is -1.0"),
    "digest in capitals": ("train reply", {"study_digest": "A" * 64}, "'study-digest' does not have the form"),
    "unknown optimiser state": ("train reply", {"optimizer": "stale"}, "'optimizer' must be one of 'fresh'"),
    "unknown reason": ("train reply", {"withheld": "shy"}, "'withheld' must be one of ''"),
    "text as failure": ("train reply", {"failure": "no /data/Miller.nii"}, "'failure' does not have the form"),
    "long failure": ("train reply", {"failure": "a" * 41}, "'failure' does not have the form"),
    "site that is a path": ("manifest", {"site": "../a"}, "'site' does not have the form"),
    "no threads": ("manifest", {"torch_threads": 0}, "'torch-threads' is 0, expected 1 to 4096"),
    "JSON cut off": ("manifest", {"versions": '{"torch": '}, "'versions' is not readable as JSON"),
    "JSON without end": ("manifest", {"versions": "[" * 100_000}, "'versions' is not readable as JSON"),
    "JSON list": ("manifest", {"versions": "[1]"}, "'versions' must be a short list of names"),
    "version of two lines": ("manifest", {"versions": '{"torch": "2\\n3"}'}, "'versions' must be short texts"),
    "half a character": ("manifest", {"versions": '{"torch": "\\ud800"}'}, "'versions' must be short texts"),
    "long version": ("manifest", {"versions": json.dumps({"torch": "2" * 81})}, "'versions' must be short texts"),
    "count that is none": ("manifest", {"missing_sequences": '{"t1": 1.5}'}, "'missing-sequences' must be counts"),
    "negative count": ("manifest", {"crop_centers": '{"point": -1}'}, "'crop-centers' must be counts"),
    "run that is a path": ("train task", {"run": "a/b"}, "'run' does not have the form"),
    "negative pull": ("train task", {"fedprox_mu": -0.1}, "'fedprox-mu' is -0.1, expected 0.0 to 100.0"),
    "broken study": ("train task", {"study": "{}"}, "the study in the message has 6 faults"),
    "two thresholds": ("evaluate task", {"threshold": [0.0, 1.0]}, "threshold has 2 values, expected none or one"),
    "threshold that is no number": ("evaluate task", {"threshold": [float("nan")]}, "'threshold' is nan"),
    "training patients": ("evaluate task", {"split": "train"}, "'split' must be one of 'validation', 'test'"),
}


@pytest.mark.parametrize(("message", "values", "refusal"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_value_out_of_range_is_refused_by_name(message: str, values: dict[str, Any], refusal: str) -> None:
    records, reader = MESSAGES[message]

    with pytest.raises(ProtocolError) as caught:
        reader(changed(records, **values))

    assert refusal in str(caught.value)


def npy(array: Array) -> bytes:
    return bytes(FlowerArray(array).data)


BAD_ARRAYS = {
    "no NumPy file": FlowerArray("float32", (2,), "numpy.ndarray", b"\x00" * 8),
    "nothing": FlowerArray("float32", (2,), "numpy.ndarray", b""),
    "cut off": FlowerArray("float32", (2, 3), "numpy.ndarray", npy(ARRAYS["weight"])[:-1]),
    "more than it says": FlowerArray("float32", (2, 3), "numpy.ndarray", npy(ARRAYS["weight"]) + b"\x00"),
    "terabytes": FlowerArray(
        "float32", (2, 3), "numpy.ndarray", npy(ARRAYS["weight"]).replace(b"(2, 3)", b"(2, 9999999999999)")
    ),
    "pickled objects": FlowerArray("object", (1,), "numpy.ndarray", npy(np.zeros(1)).replace(b"<f8", b"|O8")),
    "texts": FlowerArray(np.array(["a", "b"])),
    "torch": FlowerArray("float32", (2,), "torch.tensor", b"\x00"),
}


@pytest.mark.parametrize("array", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_array_that_cannot_be_read_is_refused_by_name(array: FlowerArray) -> None:
    records, reader = MESSAGES["train reply"]
    spoilt = RecordDict({**records, "state": ArrayRecord({"weight": array})})

    with pytest.raises(ProtocolError, match="array 'weight' of the model state is unreadable: "):
        reader(spoilt)


def with_statistics(**changes: Any) -> RecordDict:
    records, _ = MESSAGES["evaluate reply"]
    return RecordDict({**records, "statistics": MetricRecord({**records.metric_records["statistics"], **changes})})


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"num_patients": [5, 5]}, "histogram_recurrence does not add up", id="more patients"),
        pytest.param({"histogram_necrosis": [0] * 31}, "histogram_necrosis has 31 values, expected 32", id="bins"),
        pytest.param({"loss_sum": [-1]}, "loss_sum holds something else than integers from 0", id="negative"),
        pytest.param({"confusion": [2, 0, 0, 0]}, "confusion has another number of patients", id="confusion"),
        pytest.param({"score_of_Miller": [3]}, "1 unknown names", id="extra"),
        pytest.param({"loss_sum": 1.5}, "'loss_sum' must be a list of whole numbers", id="no list"),
        pytest.param({"loss_sum": [1.5]}, "'loss_sum' must be a list of whole numbers", id="no whole number"),
    ],
)
def test_statistics_that_no_cohort_can_have_are_refused(changes: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_evaluate(with_statistics(**changes))

    assert refusal in str(caught.value)


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats()
SCALARS = NUMBERS | st.booleans() | st.text(max_size=9) | st.binary(max_size=9)
VALUES = SCALARS | st.lists(st.integers(-9, 9), max_size=4) | st.lists(st.floats(), max_size=3)


@st.composite
def spoilt_messages(draw: st.DrawFn) -> tuple[RecordDict, Reader]:
    """A message with some of its parts or values gone, or replaced by anything of Flower's types."""
    records, reader = draw(st.sampled_from(list(MESSAGES.values())))
    part = config_key(records)
    config = dict(records.config_records[part])
    for key in draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[key] = draw(VALUES)
    spoilt: dict[str, Any] = {**records, part: ConfigRecord(config)}
    other = draw(st.sampled_from(["", "state", "statistics", part]))
    if other:
        arrays = st.builds(FlowerArray, st.text(max_size=5), st.just((1,)), st.text(max_size=5), st.binary(max_size=90))
        spoilt[other] = draw(
            st.builds(MetricRecord, st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3))
            | st.builds(ConfigRecord, st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
            | st.builds(ArrayRecord, st.dictionaries(st.text(max_size=5), arrays, max_size=2))
        )
    return RecordDict(spoilt), reader


@given(spoilt_messages())
def test_garbage_is_read_as_nothing_but_a_refusal(message: tuple[RecordDict, Reader]) -> None:
    records, reader = message

    try:
        read = reader(records)
    except ProtocolError as error:
        assert len(str(error)) < 1500  # noqa: PT017 - both ends are fine, others are not
    else:
        assert type(read).__name__ in "DescribeTask TrainTask EvaluateTask SiteManifest TrainReply EvaluateReply"


@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_damaged_array_is_read_as_numbers_or_refused(start: int, noise: bytes) -> None:
    records, reader = MESSAGES["train reply"]
    data = bytearray(npy(ARRAYS["weight"]))
    data[start : start + len(noise)] = noise
    array = FlowerArray("float32", (2, 3), "numpy.ndarray", bytes(data))

    try:
        read = reader(RecordDict({**records, "state": ArrayRecord({"weight": array})}))
    except ProtocolError as error:
        assert "array 'weight' of the model state is unreadable" in str(error)  # noqa: PT017 - as above
    else:
        assert isinstance(read, TrainReply)
        assert read.state["weight"].dtype.kind in "fiu"
