"""Reports of runs with other methods: models of the sites' own, no global model, sites that are held out."""

from pathlib import Path

import pytest

from server.report import write_report
from server.report.reading import read_record
from server.run_folder import RunFolder
from tests.server.invented_runs import InventedSite, write_invented_run
from tests.server.test_report import Parsed, assert_shown, parsed

SITES = [InventedSite(name) for name in ("bern", "graz", "lund", "metz")]


def report_of(folder: RunFolder) -> Parsed:
    write_report(folder)
    return parsed(folder)


@pytest.fixture(scope="module")
def personalized(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_invented_run(
        tmp_path_factory.mktemp("personal") / "run", SITES, rounds=3, personalization={"method": "ditto"}
    )


def test_own_models_stand_beside_the_shared_one_site_by_site_and_pooled(personalized: RunFolder) -> None:
    page = report_of(personalized)

    record = read_record(personalized)
    for model, name in (("shared", "test"), ("own", "personal_test")):
        evaluated = record.evaluated(name)  # type: ignore[arg-type]
        assert evaluated is not None
        assert evaluated.figures is not None
        within = evaluated.figures.within_site_auc.estimate
        for row, figures in [*evaluated.figures.per_site.items(), ("pooled", evaluated.figures.pooled)]:
            assert figures.at_threshold is not None
            found = {
                "auc": within if row == "pooled" else figures.auc.estimate,
                "sensitivity": figures.at_threshold.sensitivity,
                "specificity": figures.at_threshold.specificity,
            }
            for measure, estimate in found.items():
                assert_shown(page, f"personal.{row}.{model}.{measure}", vars(estimate))
    assert "Every site has a model of its own beside the shared one, by Ditto." in page.text


def test_own_models_have_a_threshold_of_their_own(personalized: RunFolder) -> None:
    point = read_record(personalized).operating_point

    assert point is not None
    assert point.personal is not None
    assert point.personal.threshold is None
    assert point.personal.per_site is not None
    thresholds = {own.threshold for own in point.personal.per_site.values()}
    assert len(point.personal.per_site) == 4
    assert len(thresholds) > 1
    assert point.threshold not in thresholds


def test_report_of_a_study_without_own_models_does_not_speak_of_them(tmp_path: Path) -> None:
    folder = write_invented_run(tmp_path / "run", SITES, rounds=2)

    assert "own model" not in report_of(folder).text
    assert read_record(folder).evaluated("personal_test") is None


def test_run_of_sites_that_train_alone_says_that_there_is_no_global_model(tmp_path: Path) -> None:
    folder = write_invented_run(tmp_path / "run", SITES, rounds=2, aggregation={"method": "local"})

    page = report_of(folder)

    text = page.text
    assert "local: no global model" in text
    assert "A site’s row is the model that it trained by itself" in text
    assert "shared model" not in text.split("Who took part")[0]
    assert list(folder.model.iterdir()) == []
    record = read_record(folder)
    assert record.models == {}
    test = record.evaluated("test")
    assert test is not None
    assert test.figures is not None
    assert test.roc == []
    assert test.figures.pooled.auc.estimate.value is None
    assert_shown(page, "test.pooled.auc_within_sites", vars(test.figures.within_site_auc.estimate))
    assert "Threshold of bern" in text
    assert "bern after round 2, graz after round 2" in text
    assert "scores of different models have no common scale" in text


def test_site_that_is_held_out_is_missing_in_no_round_and_said_to_be_tested_alone(tmp_path: Path) -> None:
    held_out = {"min_sites": 1, "held_out": ["metz"]}
    folder = write_invented_run(
        tmp_path / "run", SITES, rounds=2, participation=held_out, personalization={"method": "ditto"}
    )

    text = report_of(folder).text

    assert "All 3 sites took part in every one of the 2 rounds" in text
    assert "metz trained in none, as the study says, and answered in the test." in text
    assert "metz – held out: a site that does not train has no model of its own" in text


@pytest.mark.parametrize(
    ("norm", "said"),
    [("group", ""), ("fedbn", "own scale, shift and statistics of"), ("silobn", "own statistics of")],
)
def test_what_a_pooled_figure_compares_is_said_where_normalisation_stays_at_its_site(
    tmp_path: Path, norm: str, said: str
) -> None:
    page = report_of(write_invented_run(tmp_path / "run", SITES, rounds=1, model={"norm": norm, "width": 0.125}))

    assert ("Each site scores its patients with its own" in page.text) == bool(said)
    assert said in page.text
