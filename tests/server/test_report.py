"""The report of a run: its figures are the record's, it reaches out to nobody, and no text of a site becomes markup."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from client.app import app as client_app
from common.errors import ConfigError
from common.tasks import Split
from server.federation import Federation
from server.records import ranges
from server.report import write_report
from server.report.participation import participation_grid
from server.report.reading import read_record, read_round_lines
from server.report.wording import duration, shortened, three, threshold_text
from server.run_folder import Participants, RunFolder, create_run_folder
from simulations.engines.in_process import InProcessGrid
from tests.server.invented_runs import InventedSite, write_invented_run
from tests.tiny_hospitals import study_text, write_tiny_hospital

HOSTILE = "<script>alert('a')</script>&\"{{ 7 * 7 }}$x$"
VOID = {"meta", "br", "img", "input", "link", "hr"}
NO_NECROSIS: dict[Split, tuple[int, int]] = {"train": (20, 6), "validation": (8, 0), "test": (9, 0)}

Edit = Callable[[dict[str, Any]], None]


class Parsed(HTMLParser):
    """A page taken apart; a tag that is closed out of order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, str] = {}
        self.words: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in VOID:
            names = [f"{kind[5:]}:{name}" for kind, name in attrs if kind.startswith("data-")]
            self._open.append((tag, names[0] if names else ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if "style" not in inside:
            self.words.append(data)
        if self._open and (name := self._open[-1][1]):
            self.figures[name] = self.figures.get(name, "") + data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> Iterator[str]:
        return (values[name] or "" for _, values in self.tags if name in values)


def page_text(folder: RunFolder) -> str:
    """The report, written once for each folder."""
    path = folder.report if folder.report.is_file() else write_report(folder)
    return path.read_text(encoding="utf-8")


def parsed(folder: RunFolder) -> Parsed:
    return Parsed(page_text(folder))


def edit_record(folder: RunFolder, edit: Edit) -> None:
    record = json.loads(folder.record.read_text())
    edit(record)
    folder.record.write_text(json.dumps(record))


def figures_of(folder: RunFolder) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(folder.record.read_text())["figures"]["test"]["figures"]
    return figures


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    home = tmp_path_factory.mktemp("federation")
    sites = {name: write_tiny_hospital(home / "hospitals", name) for name in ("a", "b")}
    participants = Participants(tuple(sites), "registered", "in-process")
    folder = create_run_folder(home / "run-1", study_text=study_text(rounds=2), participants=participants)
    grid = InProcessGrid(client_app, {name: {"site-config": str(path)} for name, path in sites.items()}, workers=2)
    Federation(grid, folder, now=lambda: datetime.now(UTC)).run()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, RunFolder]:
    home = tmp_path_factory.mktemp("runs")
    a, b, c = InventedSite("a"), InventedSite("b", shift=0.4), InventedSite("c")
    too_large = "its update has norm 83, more than 10 times the others' median of 1.2"
    mixed = [
        InventedSite("a", not_accepted={2: ("failed", "no reply before the deadline")}),
        InventedSite("b", withholds=("test",)),
        InventedSite("c", not_accepted={3: ("refused", too_large), 4: ("quarantined", too_large)}, missing_test="gone"),
        InventedSite("d", joined=False),
        InventedSite("e"),
    ]
    shy = [InventedSite(name, withholds=("validation", "test")) for name in "ab"]
    one_class = [InventedSite(name, NO_NECROSIS) for name in "abc"]
    absent = [InventedSite(name, joined=False) for name in "ab"]
    return {
        "complete": write_invented_run(home / "complete", [a, b, c], evaluation={"prevalence": 0.2}),
        "degraded": write_invented_run(home / "degraded", mixed, rounds=4, num_resumed=2),
        "one-site": write_invented_run(home / "one-site", [a], rounds=1),
        "not-pooled": write_invented_run(home / "not-pooled", [*shy, c], rounds=3, evaluation={"min_pooled_sites": 3}),
        "one-class": write_invented_run(home / "one-class", one_class, rounds=3),
        "one-class-site": write_invented_run(home / "one-class-site", [InventedSite("a", NO_NECROSIS), b, c]),
        "invalid": write_invented_run(home / "invalid", [a, b], rounds=6, rounds_done=2, error="1 of 2 sites answered"),
        "never-began": write_invented_run(home / "never-began", absent, rounds_done=0, error="0 of 2 sites joined"),
    }


ALL_RUNS = (
    "complete",
    "degraded",
    "one-site",
    "not-pooled",
    "one-class",
    "one-class-site",
    "invalid",
    "never-began",
)


# --- the figures -----------------------------------------------------------------------------------------------------


def expected_text(estimate: Mapping[str, Any]) -> tuple[str, str | None]:
    """What stands in the page for an estimate of the record: its value and its interval."""
    if estimate["value"] is None:
        return "not estimable", None
    if estimate["low"] is None:
        return three(estimate["value"]), "no interval"
    return three(estimate["value"]), f"[{three(estimate['low'])}, {three(estimate['high'])}]"


def assert_shown(page: Parsed, key: str, estimate: Mapping[str, Any]) -> None:
    value, interval = expected_text(estimate)
    assert page.figures[f"figure:{key}"] == value
    assert page.figures.get(f"interval:{key}") == interval


def assert_pooled_figures_shown(folder: RunFolder) -> None:
    page, pooled = parsed(folder), figures_of(folder)["pooled"]
    assert_shown(page, "test.pooled.auc", pooled["auc"]["estimate"])
    assert page.figures["figure:test.pooled.bin_error"] == three(pooled["auc"]["bin_error"])
    at = pooled["at_threshold"]
    for name in ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy", "f1", "mcc"):
        assert_shown(page, f"test.pooled.{name}", at[name])
    counts = at["counts"]
    matrix = [page.figures[f"figure:confusion.{row}.{column}"] for row in (0, 1) for column in (0, 1)]
    order = ("true_positive", "false_negative", "false_positive", "true_negative")
    assert matrix == [str(counts[name]) for name in order]


def test_a_federation_that_ran_has_its_pooled_figures_in_the_report(real_run: RunFolder) -> None:
    assert_pooled_figures_shown(real_run)


@pytest.mark.parametrize("name", ["complete", "degraded", "one-site", "one-class-site"])
def test_pooled_figures_of_the_page_are_those_of_the_record(runs: Mapping[str, RunFolder], name: str) -> None:
    assert_pooled_figures_shown(runs[name])


@pytest.mark.parametrize("name", ["complete", "degraded", "one-class-site"])
def test_every_site_has_its_own_row_of_figures(runs: Mapping[str, RunFolder], name: str) -> None:
    page, per_site = parsed(runs[name]), figures_of(runs[name])["per_site"]

    for site, row in per_site.items():
        assert_shown(page, f"test.{site}.auc", row["auc"]["estimate"])
        assert page.figures[f"figure:test.{site}.num_necrosis"] == str(row["num_necrosis"])
        for share in ("sensitivity", "specificity", "ppv", "npv", "accuracy"):
            assert_shown(page, f"test.{site}.{share}", row["at_threshold"][share])
        counts = row["at_threshold"]["counts"]
        found = f"{counts['true_positive']}/{counts['true_positive'] + counts['false_negative']}"
        assert page.figures[f"counts:test.{site}.sensitivity"] == found


def test_the_three_aucs_and_the_calibration_are_those_of_the_record(runs: Mapping[str, RunFolder]) -> None:
    page, figures = parsed(runs["complete"]), figures_of(runs["complete"])

    assert_shown(page, "aucs.pooled", figures["pooled"]["auc"]["estimate"])
    assert_shown(page, "aucs.within_sites", figures["within_site_auc"]["estimate"])
    assert_shown(page, "aucs.macro", figures["macro_auc"]["estimate"])
    for key, name in (("brier_score", "brier"), ("slope", "slope"), ("ece", "expected_calibration_error")):
        assert_shown(page, f"calibration.{key}", figures["pooled"]["calibration"][name])


def test_predictive_values_at_a_stated_prevalence_are_shown(runs: Mapping[str, RunFolder]) -> None:
    at = figures_of(runs["complete"])["pooled"]["at_threshold"]

    assert_shown(parsed(runs["complete"]), "test.pooled.ppv_at_prevalence", at["ppv_at_prevalence"])


def test_a_figure_without_an_interval_says_why(runs: Mapping[str, RunFolder]) -> None:
    text = parsed(runs["complete"]).text

    assert "what sites send does not hold the variance of this figure" in text


# --- how the run ended -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("complete", "COMPLETE"), ("degraded", "DEGRADED"), ("invalid", "INVALID"), ("never-began", "INVALID")],
)
def test_the_outcome_stands_on_top(runs: Mapping[str, RunFolder], name: str, outcome: str) -> None:
    page = parsed(runs[name])

    classes = [values.get("class") for tag, values in page.tags if tag == "section"]
    assert classes[0] == f"outcome {outcome.lower()}"
    assert page.text.index(outcome, len(name) + 30) < 300


def test_a_degraded_run_names_who_was_missing_when_and_why(runs: Mapping[str, RunFolder]) -> None:
    text = parsed(runs["degraded"]).text

    assert "a was not in round 2: failed: no reply before the deadline" in text
    assert "c 4 quarantined its update has norm 83" in text
    assert "d 1–4 absent never connected" in text
    assert "b not in these figures – withheld: a class has fewer patients than the site shows" in text


def test_an_invalid_run_has_its_rounds_and_no_test_figures(runs: Mapping[str, RunFolder]) -> None:
    page = parsed(runs["invalid"])

    assert "There is no result. The run ended after 2 rounds: 1 of 2 sites answered" in page.text
    assert "figure-training-loss" in list(page.attributes("id"))
    assert not [key for key in page.figures if key.startswith("figure:test")]


def test_a_run_without_any_round_says_so(runs: Mapping[str, RunFolder]) -> None:
    text = parsed(runs["never-began"]).text

    assert "The run ended before its first round was done: 0 of 2 sites joined" in text
    assert "a did not join – never connected" in text


def test_a_run_without_pooled_figures_says_why_and_who(runs: Mapping[str, RunFolder]) -> None:
    text = parsed(runs["not-pooled"]).text

    assert "No pooled figure was formed: the counts of 1 of the 3 sites that the study asks for." in text
    assert "b – withheld" in text
    assert "No state has a pooled validation result, so the last one was kept" in text


def test_a_test_without_necrosis_is_not_estimable_and_says_why(runs: Mapping[str, RunFolder]) -> None:
    page = parsed(runs["one-class"])

    assert page.figures["figure:test.pooled.auc"] == "not estimable"
    assert "a class has no patients, and the AUC compares patients of two classes" in page.text
    assert "no validation patient has necrosis" in page.text
    assert "There is no ROC curve: a class has no test patients." in page.text


def test_a_threshold_above_every_score_is_put_into_words(runs: Mapping[str, RunFolder], tmp_path: Path) -> None:
    folder = copy_of(runs["complete"], tmp_path)

    edit_record(folder, lambda record: record["operating_point"].update(threshold="inf"))

    assert "nobody is called necrosis" in parsed(folder).text


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_RUNS)
def test_the_page_reaches_out_to_nobody(runs: Mapping[str, RunFolder], name: str) -> None:
    text = page_text(runs[name])
    page = Parsed(text)

    assert re.findall(r"https?:|@import|//[a-z]", text) == []
    assert {link for kind in ("href", "xlink:href") for link in page.attributes(kind) if link[0] != "#"} == set()
    assert {where for where in re.findall(r"url\(([^)]*)\)", text) if where[0] != "#"} == set()
    assert {tag for tag, _ in page.tags} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "image",
        "foreignobject",
    } == set()
    assert list(page.attributes("src")) == []


@pytest.mark.parametrize("name", ALL_RUNS)
def test_ids_are_unique_and_every_reference_has_its_target(runs: Mapping[str, RunFolder], name: str) -> None:
    text = page_text(runs[name])
    page = Parsed(text)

    ids = list(page.attributes("id"))
    assert len(ids) == len(set(ids))
    named = {link[1:] for link in page.attributes("href")} | set(re.findall(r"url\(#([^)]*)\)", text))
    named |= {target for label in page.attributes("aria-labelledby") for target in label.split()}
    assert named <= set(ids)


@pytest.mark.parametrize("name", ALL_RUNS)
def test_the_notice_is_the_first_and_the_last_word(runs: Mapping[str, RunFolder], name: str) -> None:
    notice = "Research use only. Not a medical device; not for diagnosis or treatment."

    body = page_text(runs[name]).partition("<body>")[2]
    text = Parsed(f"<body>{body.replace('</html>', '')}").text

    assert text.startswith(notice)
    assert text.count(notice) == 2


def test_texts_of_sites_stay_texts(runs: Mapping[str, RunFolder], tmp_path: Path) -> None:
    folder = copy_of(runs["degraded"], tmp_path)
    for path in (folder.record, folder.rounds):
        values = path.read_text()
        hostile = json.dumps(HOSTILE)
        values = values.replace('"a":', f"{hostile}:").replace('"a"', hostile)
        path.write_text(values.replace("no reply before the deadline", hostile[1:-1]))

    page = parsed(folder)

    assert {tag for tag, _ in page.tags} & {"script", "b"} == set()
    assert f"{HOSTILE} 2 failed {HOSTILE}" in page.text
    drawn = re.search(r"<svg.*?</svg>", folder.report.read_text(), flags=re.DOTALL)
    assert drawn is not None
    assert "&lt;script&gt;" in drawn.group()
    assert not any(name.startswith("on") for _, values in page.tags for name in values)


def test_every_figure_has_a_title_and_a_description(runs: Mapping[str, RunFolder]) -> None:
    page = parsed(runs["complete"])

    drawings = [values for tag, values in page.tags if tag == "svg"]
    assert len(drawings) == 8
    assert all(values["role"] == "img" and values["aria-labelledby"] for values in drawings)
    assert [tag for tag, _ in page.tags].count("desc") == 8


def test_every_cell_of_the_participation_grid_has_a_word(runs: Mapping[str, RunFolder]) -> None:
    page = parsed(runs["degraded"])

    cells = [values for tag, values in page.tags if tag == "td" and "sign" in (values.get("class") or "")]
    assert len(cells) == 5 * 4
    assert "c, round 3: refused" in [values["title"] for values in cells]
    assert "• accepted • accepted × refused Q quarantined" in page.text


def test_a_long_run_shares_cells_and_stays_small(runs: Mapping[str, RunFolder]) -> None:
    record, rounds = read_record(runs["degraded"]), read_round_lines(runs["degraded"])
    many = [rounds[0].model_copy(update={"round": number}) for number in range(1, 251)]
    many[100] = rounds[1].model_copy(update={"round": 101})

    grid = participation_grid(record, many)

    assert grid.per_cell == 3
    cells = [cell for block in grid.blocks for name, row in block.rows if name == "a" for cell in row]
    assert len(cells) == 84
    assert [cell.words for cell in cells if cell.status != "accepted"] == ["a, rounds 100–102: failed in 1 of 3"]


def test_the_same_run_gives_the_same_bytes(runs: Mapping[str, RunFolder]) -> None:
    first = page_text(runs["complete"])

    assert write_report(runs["complete"]).read_text(encoding="utf-8") == first


# --- writing and reading ---------------------------------------------------------------------------------------------


def copy_of(folder: RunFolder, where: Path) -> RunFolder:
    copy = RunFolder(where / "copy")
    copy.path.mkdir()
    for path in (folder.study, folder.record, folder.rounds):
        (copy.path / path.name).write_bytes(path.read_bytes())
    return copy


def test_a_report_that_cannot_be_written_leaves_the_old_one_whole(
    runs: Mapping[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(runs["complete"], tmp_path)
    folder.report.write_text("the old one")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            write_report(folder)

    assert folder.report.read_text() == "the old one"
    write_report(folder)
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "record.json",
        "report.html",
        "rounds.jsonl",
        "study.yaml",
    ]


def damage_version(folder: RunFolder) -> None:
    edit_record(folder, lambda record: record.update(schema=2))


def damage_figures(folder: RunFolder) -> None:
    edit_record(folder, lambda record: record["figures"]["test"]["figures"]["pooled"].pop("auc"))


def half_a_line(folder: RunFolder) -> None:
    folder.rounds.write_bytes(folder.rounds.read_bytes()[:-200])


def one_round_less(folder: RunFolder) -> None:
    folder.rounds.write_text("".join(folder.rounds.read_text().splitlines(keepends=True)[:-1]))


def rounds_in_disorder(folder: RunFolder) -> None:
    folder.rounds.write_text("".join(reversed(folder.rounds.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda f: f.record.unlink(), "no record.json in it; it is written when a run ends", id="running"),
        pytest.param(lambda f: f.rounds.unlink(), "no rounds.jsonl in it", id="no-rounds"),
        pytest.param(lambda f: f.study.unlink(), "expected the folder of a run", id="another-folder"),
        pytest.param(lambda f: f.record.write_bytes(b"\xff\xfe"), "record.json: unreadable", id="no-text"),
        pytest.param(lambda f: f.record.write_text('{"schema": 1, "no'), "record.json: damaged", id="half-a-record"),
        pytest.param(damage_version, "another version of this program .at schema", id="version"),
        pytest.param(damage_figures, "damaged.*at figures.test.figures.pooled.auc", id="figure-gone"),
        pytest.param(half_a_line, "rounds.jsonl: line 8: damaged", id="half-a-line"),
        pytest.param(one_round_less, "7 rounds, expected the 8 that the record names", id="a-round-gone"),
        pytest.param(rounds_in_disorder, "line 1 is of round 8", id="disorder"),
    ],
)
def test_a_damaged_run_folder_is_named_with_what_is_wrong(
    runs: Mapping[str, RunFolder], tmp_path: Path, damage: Callable[[RunFolder], object], message: str
) -> None:
    folder = copy_of(runs["complete"], tmp_path)
    damage(folder)

    with pytest.raises(ConfigError, match=message):
        write_report(folder)
    assert not folder.report.exists()


def test_a_line_of_a_round_that_was_never_committed_is_left_aside(
    runs: Mapping[str, RunFolder], tmp_path: Path
) -> None:
    folder = copy_of(runs["complete"], tmp_path)
    folder.rounds.write_text(folder.rounds.read_text() + '{"round": 9, "half')

    assert parsed(folder).text == parsed(runs["complete"]).text


# --- words -----------------------------------------------------------------------------------------------------------


def test_numbers_are_written_in_one_way() -> None:
    assert [three(0.87149), three(-0.5), three(-0.0001), three(1)] == ["0.871", "−0.500", "0.000", "1.000"]
    assert ranges([9, 1, 2, 3, 7]) == "1–3, 7, 9"
    assert [duration(each) for each in (0.5, 12, 125, 3 * 3600, 3 * 86400)] == [
        "0.50 s",
        "12.0 s",
        "2 min 5 s",
        "3 h 0 min",
        "3 d 0 h",
    ]
    assert threshold_text(0.0) == "margin 0.000, probability 0.500"


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    assert shortened("university-hospital-north-2", 12) == "univer…rth-2"
