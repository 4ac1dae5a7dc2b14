"""The gatekeeper: which replies may touch the global model. Whole rounds with faulty sites are in test_rounds.py."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import ProtocolError
from common.metrics.bins import MarginBins
from common.metrics.site_statistics import SiteStatistics
from common.tasks import Evaluation, SiteManifest, TrainReply
from server.gatekeeper import outlying_updates, screen_train_reply

STUDY, COHORT = "5" * 64, "c" * 64
GLOBAL = {"w": np.zeros(2, dtype=np.float32)}
STATISTICS = SiteStatistics.from_margins(
    np.array([-1.0, 1.0]), np.array([0, 1]), bins=MarginBins(num_bins=8, limit=3.0), threshold=None
)
REPLY = TrainReply(
    study_digest=STUDY,
    round=2,
    state={"w": np.array([3.0, 4.0], dtype=np.float32)},
    num_patients=(6, 2),
    num_steps=2,
    train_loss=0.5,
    optimizer="fresh",
    seconds=(0.0, 1.0),
    evaluation=Evaluation(split="validation", statistics=STATISTICS, withheld="", cohort_digest=COHORT),
)
MANIFEST = SiteManifest(
    site="a",
    study_digest=STUDY,
    num_patients={"train": (6, 2), "validation": (1, 1), "test": (1, 1)},
    num_exams={"train": 8, "validation": 2, "test": 2},
    cohort_digests={"train": "d" * 64, "validation": COHORT, "test": "e" * 64},
    missing_sequences={},
    crop_centers={},
    device="cpu",
    torch_threads=1,
    versions={},
)


def screen(reply: TrainReply) -> float:
    return screen_train_reply(reply, study_digest=STUDY, round=2, manifest=MANIFEST, global_state=GLOBAL)


def test_sound_reply_passes_with_the_norm_of_its_update() -> None:
    assert screen(REPLY) == 5.0


def test_reply_that_withholds_its_counts_passes() -> None:
    withheld = replace(REPLY.evaluation, statistics=None, withheld="min_cell")

    assert screen(replace(REPLY, evaluation=withheld)) == 5.0


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"study_digest": "6" * 64}, "study 666666666666, expected 555555555555", id="study"),
        pytest.param({"round": 1}, "a reply to round 1, expected round 2", id="replay"),
        pytest.param({"num_patients": (0, 0)}, "trained on 0 patients, expected 8", id="nobody"),
        pytest.param({"num_patients": (6, 3)}, r"trained on 9 patients \(6, 3\), registered 8 \(6, 2\)", id="more"),
        pytest.param({"num_patients": (1, 7)}, r"registered 8 \(6, 2\)", id="as many, of another class"),
        pytest.param({"state": {"w": np.array([np.nan, 0], dtype=np.float32)}}, "w holds NaN or infinite", id="NaN"),
        pytest.param({"state": {"w": np.array([np.inf, 0], dtype=np.float32)}}, "w holds NaN or infinite", id="inf"),
        pytest.param({"state": {"w": np.zeros(1, dtype=np.float32)}}, r"w has shape \(1,\)", id="shape"),
        pytest.param({"state": {"w": np.zeros(2, dtype=np.float16)}}, "type float16, expected", id="type"),
        pytest.param({"state": {"v": np.zeros(2, dtype=np.float32)}}, "lacks 'w' and has 'v'", id="name"),
    ],
)
def test_reply_that_does_not_fit_is_refused_with_what_was_expected(changes: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ProtocolError, match=refusal):
        screen(replace(REPLY, **changes))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"split": "test"}, "evaluated the test patients, expected validation", id="split"),
        pytest.param({"cohort_digest": "0" * 64}, "not those registered before the first round", id="cohort"),
        pytest.param(
            {"statistics": STATISTICS + STATISTICS},
            r"counted \(2, 2\) validation patients, registered \(1, 1\)",
            id="counts",
        ),
    ],
)
def test_evaluation_of_other_patients_is_refused(changes: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ProtocolError, match=refusal):
        screen(replace(REPLY, evaluation=replace(REPLY.evaluation, **changes)))


def test_update_far_larger_than_the_others_is_named() -> None:
    outliers = outlying_updates({"a": 1.0, "b": 2.0, "c": 31.0}, max_ratio=20)

    assert outliers == {"c": "its update has norm 31, more than 20 times the others' median of 1.5"}


@pytest.mark.parametrize(
    "norms",
    [
        pytest.param({"a": 1.0, "b": 2.0, "c": 15.0}, id="within the ratio"),
        pytest.param({"a": 1.0, "b": 1e6}, id="two sites: who is the outlier?"),
        pytest.param({"a": 0.0, "b": 0.0, "c": 1.0}, id="the others stand still"),
        pytest.param({}, id="nobody"),
    ],
)
def test_nobody_is_named_without_a_measure(norms: dict[str, float]) -> None:
    assert outlying_updates(norms, max_ratio=10) == {}


def test_small_update_is_no_outlier() -> None:
    assert outlying_updates({"a": 1e-9, "b": 1.0, "c": 1.0}, max_ratio=10) == {}
