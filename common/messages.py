"""Tasks and replies as Flower records and back. The only file that knows the keys of the records.

What is read from a peer is checked here for presence, type and range; what it means is checked where it is used.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.cohort_statistics import CohortStatistics
from common.duplicates import BlindedPatients
from common.errors import ProtocolError
from common.metrics.bins import MAX_BINS, Histogram, MarginBins
from common.metrics.paired import DifferenceSums, SiteComparison
from common.metrics.site_statistics import MAX_PATIENTS, SiteStatistics
from common.model_state import Array, state_digest
from common.record_values import PROTOCOL, Values, array_record, lists_of_integers, read_arrays
from common.study import Study
from common.tasks import (
    SPLITS,
    CompareReply,
    CompareTask,
    DescribeTask,
    DuplicatesReply,
    DuplicatesTask,
    EvaluateReply,
    EvaluateTask,
    Evaluation,
    Failure,
    ModelOfRun,
    OwnChoice,
    Reply,
    SentState,
    SiteManifest,
    Split,
    StatisticsReply,
    StatisticsTask,
    TrainReply,
    TrainTask,
)
from common.update_codec import CodedUpdate

MESSAGE_TYPES = {
    DescribeTask: "query.describe",
    TrainTask: "train",
    EvaluateTask: "evaluate",
    CompareTask: "query.compare",
    StatisticsTask: "query.statistics",
    DuplicatesTask: "query.duplicates",
}
"""Flower's message type for each task; the part after the dot names the handler."""

PING_TYPE = "query.ping"
"""Message type of a ping, which asks nothing but an answer."""

_KEY_STATE, _KEY_TASK, _KEY_REPLY, _KEY_STATISTICS = "state", "task", "reply", "statistics"
_KEY_CONTROL, _KEY_PERSONAL, _KEY_PERSONAL_STATISTICS = "control", "personal", "personal-statistics"
_KEY_UPDATE, _KEY_SCALES = "update", "scales"
_KEY_COMPARISON, _KEY_COHORT, _KEY_PATIENTS = "comparison", "cohort-statistics", "blinded-patients"
_ARRAYS_IN_WORDS = {
    _KEY_STATE: "model state",
    _KEY_CONTROL: "control variate",
    _KEY_UPDATE: "coded update",
    _KEY_SCALES: "scales of a coded update",
}
_HISTOGRAMS = ("first_recurrence", "first_necrosis", "second_recurrence", "second_necrosis")
_RUN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_DIGEST = r"[0-9a-f]{64}"
_DIGEST_OR_NONE = r"([0-9a-f]{64})?"
_RUN_ID = r"[0-9a-f]{0,32}"
_MAX_COUNT = 10**9
_SHORT_TEXT = r"[ -~]{0,80}"
_PLAN = r"[a-z0-9_ ]{1,80}"
_T = TypeVar("_T")


def bins_of(study: Study) -> MarginBins:
    """The score bins that all sites of a study count in."""
    return MarginBins(num_bins=study.evaluation.num_bins, limit=study.evaluation.margin_limit)


# --- tasks ------------------------------------------------------------------------------------------------------------


def task_records(
    task: DescribeTask | TrainTask | EvaluateTask | CompareTask | StatisticsTask | DuplicatesTask,
) -> RecordDict:
    """A task as Flower records."""
    config: dict[str, Any] = {"protocol": PROTOCOL, "study": task.study.model_dump_json()}
    match task:
        case TrainTask():
            config |= {
                "run": task.run,
                "round": task.round,
                "class-weights": list(task.class_weights),
                "class-counts": list(task.class_counts),
                "fedprox-mu": task.fedprox_mu,
                "best-round": task.best_round,
                "run-id": task.run_id,
            }
        case EvaluateTask():
            config |= {
                "run": task.run,
                "round": task.round,
                "class-weights": list(task.class_weights),
                "class-counts": list(task.class_counts),
                "split": task.split,
                "threshold": [] if task.threshold is None else [task.threshold],
                "own-round": int(task.own_round),
                "run-id": task.run_id,
            }
        case CompareTask():
            for place, model in (("first", task.first), ("second", task.second)):
                config |= {
                    f"{place}-run": model.run,
                    f"{place}-study": model.study_digest,
                    f"{place}-personal": int(model.personal),
                    f"{place}-run-id": model.run_id,
                }
        case DuplicatesTask():
            config |= {"run": task.run}
    records = RecordDict({_KEY_TASK: ConfigRecord(config)})
    if isinstance(task, DuplicatesTask) and task.patients is not None:
        records[_KEY_PATIENTS] = _patients_record(task.patients)
    if isinstance(task, TrainTask | EvaluateTask):
        _add_state(records, task)
    if isinstance(task, CompareTask) and task.pools is not None:
        records[_KEY_COMPARISON] = MetricRecord({**_histogram_lists(task.pools)})
    if isinstance(task, TrainTask) and task.control is not None:
        records[_KEY_CONTROL] = array_record(task.control)
    return records


def _add_state(records: RecordDict, task: TrainTask | EvaluateTask) -> None:
    sent = task.sent or SentState("whole", state_digest(task.state))
    config = records.config_records[_KEY_TASK]
    config["state-way"], config["state-digest"], config["state-reference"] = sent.way, sent.digest, sent.reference
    if sent.way == "whole":
        records[_KEY_STATE] = array_record(task.state)
    if sent.update is not None:
        records[_KEY_UPDATE] = array_record(sent.update.values)
        records[_KEY_SCALES] = array_record(sent.update.scales)


def _read_state(records: RecordDict, values: "Values", study: Study) -> tuple[dict[str, Array], SentState]:
    """The state, empty where it did not come whole, and how it came."""
    way = values.choice("state-way", ("whole", "difference", "held"))
    is_coded = way == "difference"
    if is_coded and study.communication.download == "fp32":
        raise ProtocolError(
            "the global model came as a coded difference, and the study's communication.download is fp32; both sides "
            "need the same version of this program"
        )
    sent = SentState(
        way,
        values.text("state-digest", pattern=_DIGEST),
        values.text("state-reference", pattern=_DIGEST if is_coded else ""),
        _read_update(records) if is_coded else None,
    )
    return _read_arrays(records) if way == "whole" else {}, sent


def _read_update(records: RecordDict) -> CodedUpdate:
    return CodedUpdate(_read_arrays(records, key=_KEY_UPDATE), _read_arrays(records, key=_KEY_SCALES))


def ping_records() -> RecordDict:
    """A ping, or the answer to one, as Flower records."""
    return RecordDict({_KEY_TASK: ConfigRecord({"protocol": PROTOCOL})})


def read_describe_task(records: RecordDict) -> DescribeTask:
    """Read a task at a site.

    Raises:
        ProtocolError: If a value is missing, of the wrong type or out of range.
    """
    return DescribeTask(Values(records, _KEY_TASK).study())


def read_train_task(records: RecordDict) -> TrainTask:
    """Read a task at a site; raises like `read_describe_task`."""
    values = Values(records, _KEY_TASK)
    study = values.study()
    state, sent = _read_state(records, values, study)
    return TrainTask(
        study=study,
        run=values.text("run", pattern=_RUN),
        round=values.whole("round", low=1, high=study.rounds),
        class_weights=_class_weights(values),
        class_counts=_class_counts(values),
        fedprox_mu=values.number("fedprox-mu", low=0.0, high=100.0),
        best_round=values.whole("best-round", low=0, high=study.rounds),
        run_id=values.text("run-id", pattern=_RUN_ID),
        state=state,
        sent=sent,
        control=_read_arrays(records, key=_KEY_CONTROL) if study.training.control_variates else None,
    )


def _class_weights(values: "Values") -> tuple[float, float]:
    weights = values.numbers("class-weights", length=2, low=0.0, high=1e6)
    return weights[0], weights[1]


def _class_counts(values: "Values") -> tuple[int, int]:
    counts = values.wholes("class-counts", length=2, low=0, high=_MAX_COUNT)
    return counts[0], counts[1]


def read_evaluate_task(records: RecordDict) -> EvaluateTask:
    """Read a task at a site; raises like `read_describe_task`."""
    values = Values(records, _KEY_TASK)
    study = values.study()
    state, sent = _read_state(records, values, study)
    return EvaluateTask(
        study=study,
        run=values.text("run", pattern=_RUN),
        round=values.whole("round", low=0, high=study.rounds),
        class_weights=_class_weights(values),
        class_counts=_class_counts(values),
        split=values.choice("split", ("validation", "test")),
        threshold=_threshold(values, "threshold"),
        own_round=bool(values.whole("own-round", low=0, high=1)),
        run_id=values.text("run-id", pattern=_RUN_ID),
        state=state,
        sent=sent,
    )


def read_compare_task(records: RecordDict) -> CompareTask:
    """Read a task at a site; raises like `read_describe_task`."""
    values = Values(records, _KEY_TASK)
    first, second = (
        ModelOfRun(
            run=values.text(f"{place}-run", pattern=_RUN),
            study_digest=values.text(f"{place}-study", pattern=r"[0-9a-f]{64}"),
            personal=bool(values.whole(f"{place}-personal", low=0, high=1)),
            run_id=values.text(f"{place}-run-id", pattern=_RUN_ID),
        )
        for place in ("first", "second")
    )
    lists = _integer_lists(records)
    pools = None if lists is None else _read_histograms(lists)
    return CompareTask(values.study(), first, second, pools)


def read_statistics_task(records: RecordDict) -> StatisticsTask:
    """Read a task at a site; raises like `read_describe_task`."""
    return StatisticsTask(Values(records, _KEY_TASK).study())


def read_duplicates_task(records: RecordDict) -> DuplicatesTask:
    """Read a task at a site; raises like `read_describe_task`."""
    values = Values(records, _KEY_TASK)
    patients = _read_patients(records) if _KEY_PATIENTS in records else None
    return DuplicatesTask(values.study(), values.text("run", pattern=_RUN), patients)


def _threshold(values: "Values", key: str) -> float | None:
    threshold = values.numbers(key, length=None, low=-np.inf, high=np.inf)
    if len(threshold) > 1:
        raise ProtocolError(f"{key} has {len(threshold)} values, expected none or one")
    return threshold[0] if threshold else None


# --- replies ----------------------------------------------------------------------------------------------------------


def reply_records(reply: Reply) -> RecordDict:
    """A reply as Flower records."""
    match reply:
        case Failure():
            return RecordDict({_KEY_REPLY: ConfigRecord({"protocol": PROTOCOL, "failure": reply.code})})
        case SiteManifest():
            return RecordDict({_KEY_REPLY: ConfigRecord(_manifest_config(reply))})
        case TrainReply():
            config = _evaluation_config(reply.evaluation) | {
                "study-digest": reply.study_digest,
                "round": reply.round,
                "num-patients": list(reply.num_patients),
                "num-steps": reply.num_steps,
                "train-loss": reply.train_loss,
                "optimizer": reply.optimizer,
                "seconds": list(reply.seconds),
                "plan": reply.plan,
                "step-microseconds": json.dumps(dict(reply.step_microseconds)),
                "damaged": list(reply.damaged),
                "held": reply.held,
            }
            records = RecordDict({_KEY_REPLY: ConfigRecord(config)})
            if reply.state:
                records[_KEY_STATE] = array_record(reply.state)
            if reply.update is not None:
                records[_KEY_UPDATE] = array_record(reply.update.values)
                records[_KEY_SCALES] = array_record(reply.update.scales)
            if reply.control is not None:
                records[_KEY_CONTROL] = array_record(reply.control)
            return _with_statistics(records, reply.evaluation)
        case EvaluateReply():
            config = _evaluation_config(reply.evaluation) | {
                "study-digest": reply.study_digest,
                "seconds": [reply.seconds],
                "damaged": list(reply.damaged),
                "held": reply.held,
            }
            config |= _choice_config(reply.choice)
            records = _with_statistics(RecordDict({_KEY_REPLY: ConfigRecord(config)}), reply.evaluation)
            if reply.personal is not None:
                own = _evaluation_config(reply.personal) | _choice_config(reply.personal_choice)
                records[_KEY_PERSONAL] = ConfigRecord(own)
                _with_statistics(records, reply.personal, key=_KEY_PERSONAL_STATISTICS)
            return records
        case CompareReply():
            return _compare_reply_records(reply)
        case StatisticsReply() | DuplicatesReply():
            return _cohort_reply_records(reply)


def _compare_reply_records(reply: CompareReply) -> RecordDict:
    config: dict[str, Any] = {
        "protocol": PROTOCOL,
        "study-digest": reply.study_digest,
        "cohort": reply.cohort_digest,
        "withheld": reply.withheld,
    }
    records = RecordDict({_KEY_REPLY: ConfigRecord(config)})
    lists: dict[str, list[int]] = {}
    if reply.site is not None:
        lists = _histogram_lists(reply.site.histograms)
        if reply.site.own is not None:
            lists["sums"] = reply.site.own.to_integers()
    if reply.sums is not None:
        lists["sums"] = reply.sums.to_integers()
    if lists:
        records[_KEY_COMPARISON] = MetricRecord({name: list(values) for name, values in lists.items()})
    return records


def failure_code(records: RecordDict) -> str | None:
    """The code of the failure that any reply reports; None for a reply that reports none.

    Raises:
        ProtocolError: If the reply has no readable beginning.
    """
    failure = Values(records, _KEY_REPLY).failure()
    return None if failure is None else failure.code


def read_manifest(records: RecordDict) -> SiteManifest | Failure:
    """Read a site's answer to a `DescribeTask`.

    Raises:
        ProtocolError: If a value is missing, of the wrong type or out of range.
    """
    values = Values(records, _KEY_REPLY)
    if (failure := values.failure()) is not None:
        return failure
    patients: dict[Split, tuple[int, int]] = {}
    for split in SPLITS:
        counts = values.wholes(f"num-patients-{split}", length=2, low=0, high=_MAX_COUNT)
        patients[split] = (counts[0], counts[1])
    return SiteManifest(
        site=values.text("site", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
        study_digest=values.text("study-digest", pattern=r"[0-9a-f]{64}"),
        num_patients=patients,
        num_exams={split: values.whole(f"num-exams-{split}", low=0, high=_MAX_COUNT) for split in SPLITS},
        cohort_digests={split: values.text(f"cohort-{split}", pattern=r"[0-9a-f]{64}") for split in SPLITS},
        missing_sequences=values.named_counts("missing-sequences"),
        crop_centers=values.named_counts("crop-centers"),
        device=values.text("device", pattern=r"[A-Za-z0-9][\w .:()/+-]{0,79}"),
        torch_threads=values.whole("torch-threads", low=1, high=4096),
        versions=values.named_texts("versions"),
    )


def read_train_reply(records: RecordDict, *, study: Study) -> TrainReply | Failure:
    """Read a site's answer to a `TrainTask`; raises like `read_manifest`.

    A coded update is read as it came: it takes the state that the site was sent to decode it.
    """
    values = Values(records, _KEY_REPLY)
    if (failure := values.failure()) is not None:
        return failure
    patients = values.wholes("num-patients", length=2, low=0, high=_MAX_COUNT)
    is_coded = study.communication.upload != "fp32"
    seconds = values.numbers("seconds", length=2, low=0.0, high=1e9)
    return TrainReply(
        study_digest=values.text("study-digest", pattern=r"[0-9a-f]{64}"),
        round=values.whole("round", low=1, high=study.rounds),
        state={} if study.aggregation.method == "local" or is_coded else _read_arrays(records),
        num_patients=(patients[0], patients[1]),
        num_steps=values.whole("num-steps", low=1, high=_MAX_COUNT),
        train_loss=values.number("train-loss", low=-sys.float_info.max, high=sys.float_info.max),
        optimizer=values.choice("optimizer", ("fresh", "continued")),
        seconds=(seconds[0], seconds[1]),
        plan=values.text("plan", pattern=_PLAN),
        step_microseconds=values.named_counts("step-microseconds"),
        evaluation=_read_evaluation(records, values, study=study, has_threshold=False),
        control=_read_arrays(records, key=_KEY_CONTROL) if study.training.control_variates else None,
        update=_read_update(records) if is_coded else None,
        damaged=values.damaged(),
        held=values.text("held", pattern=_DIGEST_OR_NONE),
    )


def read_evaluate_reply(records: RecordDict, task: EvaluateTask) -> EvaluateReply | Failure:
    """Read a site's answer to an `EvaluateTask`; raises like `read_manifest`."""
    values = Values(records, _KEY_REPLY)
    if (failure := values.failure()) is not None:
        return failure
    study, is_test = task.study, task.split == "test"
    personal, personal_choice = None, None
    if study.personalization.method != "none" and _KEY_PERSONAL in records:  # a site held out has no model of its own
        own = Values(records, _KEY_PERSONAL)
        personal_choice = _read_choice(own, study) if is_test else None
        personal = _read_evaluation(
            records,
            own,
            study=study,
            has_threshold=personal_choice is not None and personal_choice.reason != "no_class",
            key=_KEY_PERSONAL_STATISTICS,
        )
    choice = _read_choice(values, study) if is_test and study.aggregation.method == "local" else None
    has_threshold = task.threshold is not None if choice is None else choice.reason != "no_class"
    return EvaluateReply(
        study_digest=values.text("study-digest", pattern=r"[0-9a-f]{64}"),
        evaluation=_read_evaluation(records, values, study=study, has_threshold=has_threshold),
        seconds=values.numbers("seconds", length=1, low=0.0, high=1e9)[0],
        personal=personal,
        choice=choice,
        personal_choice=personal_choice,
        damaged=values.damaged(),
        held=values.text("held", pattern=_DIGEST_OR_NONE),
    )


def read_compare_reply(records: RecordDict, task: CompareTask) -> CompareReply | Failure:
    """Read a site's answer to a `CompareTask`; raises like `read_manifest`."""
    values = Values(records, _KEY_REPLY)
    if (failure := values.failure()) is not None:
        return failure
    withheld = values.choice("withheld", ("", "min_cell", "no_patients", "other_pools"))
    site, sums = None, None
    if not withheld:
        lists = _integer_lists(records)
        if lists is None:
            raise ProtocolError("the reply holds no comparison and does not say that it is withheld")
        if "sums" in lists:
            sums = DifferenceSums.from_integers(lists["sums"])
        if task.pools is None:
            site, sums = _read_site_comparison(lists, sums), None
        elif sums is None:
            raise ProtocolError("the reply holds no sums, expected them for the pools that were sent")
    return CompareReply(
        study_digest=values.text("study-digest", pattern=r"[0-9a-f]{64}"),
        cohort_digest=values.text("cohort", pattern=r"[0-9a-f]{64}"),
        withheld=withheld,
        site=site,
        sums=sums,
    )


def read_statistics_reply(records: RecordDict, task: StatisticsTask) -> StatisticsReply | Failure:
    """Read a site's answer to a `StatisticsTask`; raises like `read_manifest`."""
    values = Values(records, _KEY_REPLY)
    if (failure := values.failure()) is not None:
        return failure
    withheld = values.choice("withheld", ("", "min_cell"))
    statistics = None
    if not withheld:
        record = records.get(_KEY_COHORT)
        if not isinstance(record, MetricRecord):
            raise ProtocolError("the reply holds no statistics and does not say that they are withheld")
        statistics = CohortStatistics.from_integers(lists_of_integers(record), task.study.sequences)
    return StatisticsReply(
        study_digest=values.text("study-digest", pattern=r"[0-9a-f]{64}"), withheld=withheld, statistics=statistics
    )


def _cohort_reply_records(reply: StatisticsReply | DuplicatesReply) -> RecordDict:
    config: dict[str, Any] = {"protocol": PROTOCOL, "study-digest": reply.study_digest}
    if isinstance(reply, DuplicatesReply):
        return RecordDict({_KEY_REPLY: ConfigRecord(config), _KEY_PATIENTS: _patients_record(reply.patients)})
    records = RecordDict({_KEY_REPLY: ConfigRecord(config | {"withheld": reply.withheld})})
    if reply.statistics is not None:
        integers = reply.statistics.to_integers()
        records[_KEY_COHORT] = MetricRecord({name: list(cells) for name, cells in integers.items()})
    return records


def read_duplicates_reply(records: RecordDict) -> DuplicatesReply | Failure:
    """Read a site's answer to a `DuplicatesTask`; raises like `read_manifest`."""
    values = Values(records, _KEY_REPLY)
    if (failure := values.failure()) is not None:
        return failure
    return DuplicatesReply(
        study_digest=values.text("study-digest", pattern=r"[0-9a-f]{64}"), patients=_read_patients(records)
    )


def _patients_record(patients: Sequence[BlindedPatients]) -> ConfigRecord:
    return ConfigRecord({str(place): list(each.groups) for place, each in enumerate(patients)})


def _read_patients(records: RecordDict) -> tuple[BlindedPatients, ...]:
    record = records.get(_KEY_PATIENTS)
    if not isinstance(record, ConfigRecord) or set(record) != {str(place) for place in range(len(record))}:
        raise ProtocolError("the message holds no blinded patients; both sides need the same version of this program")
    read = []
    for place in range(len(record)):
        groups = record[str(place)]
        if not isinstance(groups, list) or not all(isinstance(group, bytes) for group in groups):
            raise ProtocolError("blinded patients must be lists of bytes")
        read.append(BlindedPatients.from_groups(cast(list[bytes], groups)))
    return tuple(read)


# --- parts ------------------------------------------------------------------------------------------------------------


def _manifest_config(manifest: SiteManifest) -> dict[str, Any]:
    config: dict[str, Any] = {
        "protocol": PROTOCOL,
        "site": manifest.site,
        "study-digest": manifest.study_digest,
        "missing-sequences": json.dumps(manifest.missing_sequences, sort_keys=True),
        "crop-centers": json.dumps(manifest.crop_centers, sort_keys=True),
        "device": manifest.device,
        "torch-threads": manifest.torch_threads,
        "versions": json.dumps(manifest.versions, sort_keys=True),
    }
    for split in SPLITS:
        config[f"num-patients-{split}"] = list(manifest.num_patients[split])
        config[f"num-exams-{split}"] = manifest.num_exams[split]
        config[f"cohort-{split}"] = manifest.cohort_digests[split]
    return config


def _evaluation_config(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "split": evaluation.split,
        "withheld": evaluation.withheld,
        "cohort": evaluation.cohort_digest,
    }


def _choice_config(choice: OwnChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    threshold = [] if choice.threshold is None else [choice.threshold]
    return {"chosen-round": choice.round, "chosen-threshold": threshold, "no-threshold": choice.reason}


def _read_choice(values: "Values", study: Study) -> OwnChoice:
    choice = OwnChoice(
        round=values.whole("chosen-round", low=0, high=study.rounds),
        threshold=_threshold(values, "chosen-threshold"),
        reason=values.choice("no-threshold", ("", "no_class", "withheld")),
    )
    if (choice.threshold is None) != bool(choice.reason):
        raise ProtocolError("'chosen-threshold' must be there exactly where 'no-threshold' gives no reason")
    return choice


def _with_statistics(records: RecordDict, evaluation: Evaluation, *, key: str = _KEY_STATISTICS) -> RecordDict:
    if evaluation.statistics is not None:
        integers = evaluation.statistics.to_integers()
        records[key] = MetricRecord({name: list(values) for name, values in integers.items()})
    return records


def _read_evaluation(
    records: RecordDict, values: "Values", *, study: Study, has_threshold: bool, key: str = _KEY_STATISTICS
) -> Evaluation:
    withheld = values.choice("withheld", ("", "min_cell", "no_patients"))
    statistics = None
    if not withheld:
        record = records.get(key)
        if not isinstance(record, MetricRecord):
            raise ProtocolError("the reply holds no statistics and does not say that they are withheld")
        integers = lists_of_integers(record)
        statistics = SiteStatistics.from_integers(integers, bins=bins_of(study), has_threshold=has_threshold)
    return Evaluation(
        split=values.choice("split", ("validation", "test")),
        statistics=statistics,
        withheld=withheld,
        cohort_digest=values.text("cohort", pattern=r"[0-9a-f]{64}"),
    )


def _histogram_lists(histograms: tuple[Histogram, Histogram]) -> dict[str, list[int]]:
    rows = (row for histogram in histograms for row in histogram)
    return {name: list(row) for name, row in zip(_HISTOGRAMS, rows, strict=True)}


def _integer_lists(records: RecordDict) -> dict[str, list[int]] | None:
    record = records.get(_KEY_COMPARISON)
    if record is None:
        return None
    if not isinstance(record, MetricRecord) or not set(record) <= {*_HISTOGRAMS, "sums"}:
        raise ProtocolError("the comparison in the message is no lists of whole numbers under the names expected")
    lists = {}
    for name, numbers in record.items():
        if not (isinstance(numbers, list) and all(type(number) is int for number in numbers)):
            raise ProtocolError(f"comparison: {name!r} must be a list of whole numbers")
        lists[name] = cast(list[int], numbers)
    return lists


def _read_histograms(lists: Mapping[str, list[int]]) -> tuple[Histogram, Histogram]:
    if not set(_HISTOGRAMS) <= set(lists):
        raise ProtocolError("comparison: histograms are missing; both sides need the same version of this program")
    rows = [lists[name] for name in _HISTOGRAMS]
    lengths, counts = [len(row) for row in rows], [sum(row) for row in rows]
    if lengths[0] != lengths[1] or lengths[2] != lengths[3] or not all(2 <= length <= MAX_BINS for length in lengths):
        raise ProtocolError(f"comparison: histograms of {lengths} bins, expected two of one length for each model")
    if any(value < 0 for row in rows for value in row) or sum(counts[:2]) > MAX_PATIENTS:
        raise ProtocolError("comparison: counts are below 0 or of more patients than there can be")
    if counts[:2] != counts[2:]:
        raise ProtocolError("comparison: the two histograms are of different patients")
    return (tuple(rows[0]), tuple(rows[1])), (tuple(rows[2]), tuple(rows[3]))


def _read_site_comparison(lists: Mapping[str, list[int]], own: DifferenceSums | None) -> SiteComparison:
    site = SiteComparison(_read_histograms(lists), own)
    if (own is None) == (min(site.num_patients) > 0) or (own is not None and own.num_patients != site.num_patients):
        raise ProtocolError("comparison: the sums are not of the patients in the histograms")
    return site


def _read_arrays(records: RecordDict, *, key: str = _KEY_STATE) -> dict[str, Array]:
    return read_arrays(records, key=key, what=_ARRAYS_IN_WORDS[key])
