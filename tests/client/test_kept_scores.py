"""What a site keeps of its test evaluations, and what of it leaves for a comparison."""

import json
import logging
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.config import DisclosureSpec
from client.kept_scores import compare_kept, keep_scores, read_scores
from common.errors import DataError, DisclosureError, ProtocolError
from common.metrics.bins import MarginBins, add_histograms
from common.metrics.paired import pooled_difference, site_difference
from common.study import parse_study
from common.tasks import CompareReply, CompareTask, ModelOfRun
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(), origin="study")
FIRST, SECOND = ModelOfRun("new", "a" * 64), ModelOfRun("old", "b" * 64)
TASK = CompareTask(STUDY, FIRST, SECOND)
COHORT = "c" * 64
ALL_MAY_LEAVE = DisclosureSpec(min_patients=1, min_cell=1, max_bins=256)
LABELS = np.array([0, 0, 0, 1, 1], dtype=np.int64)
MARGINS = {FIRST: [-2.0, -1.0, 0.5, 1.0, 2.0], SECOND: [-1.0, 1.5, 0.0, -0.5, 2.0]}


def keep(cache: Path, model: ModelOfRun, *, cohort: str = COHORT, num_bins: int = 16) -> None:
    bins = MarginBins(num_bins, 3.0)
    keep_scores(cache, model, np.array(MARGINS[model]), LABELS, bins=bins, cohort_digest=cohort, round=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    keep(tmp_path, FIRST)
    keep(tmp_path, SECOND, num_bins=32)
    return tmp_path


def test_scores_are_kept_for_the_owner_alone_and_read_back(cache: Path) -> None:
    (path,) = (cache / "scores" / f"new-{'a' * 12}").iterdir()

    tested = read_scores(cache, FIRST)

    assert tested is not None
    assert (tested.cohort_digest, tested.round, tested.scores.num_bins) == (COHORT, 2, 16)
    np.testing.assert_array_equal(tested.scores.index, MarginBins(16, 3.0).index(np.array(MARGINS[FIRST])))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_site_s_own_models_are_kept_beside_the_global_one(cache: Path) -> None:
    own = replace(FIRST, personal=True)
    MARGINS[own] = MARGINS[SECOND]
    keep(cache, own)

    tested = [read_scores(cache, model) for model in (FIRST, own)]

    assert tested[0] is not None
    assert tested[1] is not None
    assert tested[0].scores.index.tolist() != tested[1].scores.index.tolist()


def test_damaged_file_counts_as_none(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = cache / "scores" / f"new-{'a' * 12}" / "global.json"
    path.write_text(path.read_text().replace("16", "17"))

    with caplog.at_level(logging.WARNING):
        assert read_scores(cache, FIRST) is None

    assert "damaged" in caplog.text


def test_first_answer_holds_histograms_and_the_site_s_own_difference(cache: Path) -> None:
    reply = compare_kept(cache, ALL_MAY_LEAVE, TASK, cohort_digest=COHORT, study_digest=STUDY.digest)

    assert reply.site is not None
    found = site_difference(reply.site)
    # New: all 6 pairs right. Old: −0.5 above −1 only, 2 above all.
    assert found.first == 1.0
    assert found.second == pytest.approx(4 / 6)
    assert reply.sums is None


def test_second_answer_holds_the_sums_by_the_pools_of_all_sites(cache: Path) -> None:
    site = compare_kept(cache, ALL_MAY_LEAVE, TASK, cohort_digest=COHORT, study_digest=STUDY.digest).site
    assert site is not None
    pools = (add_histograms(site.histograms[0], site.histograms[0]), add_histograms(*[site.histograms[1]] * 2))

    task = replace(TASK, pools=pools)
    reply = compare_kept(cache, ALL_MAY_LEAVE, task, cohort_digest=COHORT, study_digest=STUDY.digest)

    assert reply.site is None
    assert reply.sums is not None
    both = reply.sums + reply.sums
    assert pooled_difference(pools, both).difference.value == pytest.approx(1 - 4 / 6)


def test_class_below_min_cell_leaves_nothing(cache: Path) -> None:
    rules = DisclosureSpec(min_patients=1, min_cell=3, max_bins=256)

    for task in (TASK, replace(TASK, pools=(((0,) * 16, (0,) * 16), ((0,) * 32, (0,) * 32)))):
        reply = compare_kept(cache, rules, task, cohort_digest=COHORT, study_digest=STUDY.digest)

        assert (reply.withheld, reply.site, reply.sums) == ("min_cell", None, None)


def test_finer_histogram_than_the_site_shows_is_refused(cache: Path) -> None:
    rules = DisclosureSpec(min_patients=1, min_cell=1, max_bins=16)

    with pytest.raises(DisclosureError, match="asks for 32 bins, this site shows at most 16"):
        compare_kept(cache, rules, TASK, cohort_digest=COHORT, study_digest=STUDY.digest)


def test_run_that_was_never_tested_here_is_refused(cache: Path) -> None:
    task = replace(TASK, second=ModelOfRun("other", "b" * 64))

    with pytest.raises(DataError, match="run other: this site keeps no test scores of it"):
        compare_kept(cache, ALL_MAY_LEAVE, task, cohort_digest=COHORT, study_digest=STUDY.digest)


def test_run_of_that_name_on_another_study_is_another_run(cache: Path) -> None:
    task = replace(TASK, second=ModelOfRun("old", "d" * 64))

    with pytest.raises(DataError, match="keeps no test scores"):
        compare_kept(cache, ALL_MAY_LEAVE, task, cohort_digest=COHORT, study_digest=STUDY.digest)


def test_other_test_patients_are_refused(cache: Path) -> None:
    keep(cache, SECOND, cohort="e" * 64)

    with pytest.raises(DataError, match="run old: was tested on other patients"):
        compare_kept(cache, ALL_MAY_LEAVE, TASK, cohort_digest=COHORT, study_digest=STUDY.digest)


def test_pools_that_do_not_hold_the_site_s_patients_are_refused(cache: Path) -> None:
    task = replace(TASK, pools=(((3,) + (0,) * 15, (2,) + (0,) * 15), ((3,) + (0,) * 31, (2,) + (0,) * 31)))

    with pytest.raises(ProtocolError, match="does not hold this site's own patients"):
        compare_kept(cache, ALL_MAY_LEAVE, task, cohort_digest=COHORT, study_digest=STUDY.digest)


def test_no_identifier_is_kept(cache: Path) -> None:
    body = json.loads(json.loads((cache / "scores" / f"new-{'a' * 12}" / "global.json").read_text())["body"])

    assert set(body) == {"cohort_digest", "round", "num_bins", "index", "labels"}


def test_a_second_pool_for_the_same_pair_of_runs_is_refused_and_the_same_one_again_is_not(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = compare_kept(cache, ALL_MAY_LEAVE, TASK, cohort_digest=COHORT, study_digest=STUDY.digest).site
    assert site is not None
    first = replace(TASK, pools=site.histograms)
    larger = [add_histograms(each, each) for each in site.histograms]
    with_another = replace(TASK, pools=(larger[0], larger[1]))
    turned_round = replace(TASK, first=SECOND, second=FIRST, pools=(larger[1], larger[0]))

    def answer(task: CompareTask) -> CompareReply:
        return compare_kept(cache, ALL_MAY_LEAVE, task, cohort_digest=COHORT, study_digest=STUDY.digest)

    one, same, other, other_way = (answer(task) for task in (first, first, with_another, turned_round))

    assert one.sums is not None
    assert same == one
    for refused in (other, other_way):
        assert (refused.withheld, refused.sums) == ("other_pools", None)
    assert "has answered for these two runs before, with other pools" in caplog.text
    for path in (cache / "scores").rglob("answered/*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_run_of_the_same_name_and_study_has_scores_of_its_own(cache: Path) -> None:
    assert read_scores(cache, replace(FIRST, run_id="0123456789abcdef")) is None
