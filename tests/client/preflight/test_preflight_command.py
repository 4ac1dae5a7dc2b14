"""`gliorn-client check --data-only` as a person types it, its JSON and its page."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import cli
from client.preflight.pictures import TILE, draw_case
from client.preflight.workers import num_workers
from client.preprocessing.volume import Volume
from client.rehearsal.direction import judge_direction
from common.metrics.bins import MarginBins
from tests.tiny_hospitals import study_text, write_tiny_hospital


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_tiny_hospital(tmp_path, "a", splits=(("train", 3, 3),))


def run(site: Path, *arguments: object) -> int:
    return cli.main(["check", "--data-only", "--workers", "1", "--site", str(site), *map(str, arguments)])


def test_sound_data_end_with_0_and_need_no_study(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(site)

    output = capsys.readouterr().out
    assert status == 0
    assert "6 exams, 18 files read to their end" in output
    assert not list((site.parent / "cache").rglob("*.exam")), "nothing is prepared"


def test_what_blocks_ends_with_2_and_says_which_case_and_what_to_do(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.parent / "0002_t2.nii.gz").write_bytes(b"")

    status = run(site)

    output = capsys.readouterr().out
    assert status == 2
    assert "FAIL    file-empty: row 3 (patient 0002): t2: has 0 bytes" in output
    assert "-> copy it again" in output
    assert f"then gliorn-client check --site {site} --data-only" in output


def test_what_fix_can_mend_is_said(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site.parent / "0001_t1.json").write_text('{"PatientName": "X"}')

    assert run(site) == 2
    assert f"mended by: gliorn-client fix --site {site} --out DIR" in capsys.readouterr().out


def test_json_names_every_case(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for patient in ("0001", "0002"):
        (site.parent / f"{patient}_t1.nii.gz").write_bytes(b"no image")

    status = run(site, "--json")

    values = json.loads(capsys.readouterr().out)
    (found,) = [each for each in values["preflight"][""] if each["severity"] == "block"]
    assert status == 2
    assert found["check"] == "file-unreadable"
    assert found["cases"] == ["row 2 (patient 0001)", "row 3 (patient 0002)"]
    assert [each["name"] for each in values["findings"] if each["level"] == "FAIL"] == ["file-unreadable"]


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_page_shows_every_case_most_suspicious_first_and_needs_nothing_else(site: Path, tmp_path: Path) -> None:
    (site.parent / "0004_t2.nii.gz").write_bytes(b"")
    table = site.parent / "table.tsv"
    table.write_text(table.read_text().replace("0005", "<b>5"))
    for path in site.parent.glob("0005_*"):
        path.rename(path.with_name(path.name.replace("0005", "<b>5")))
    (tmp_path / "study.yaml").write_text(study_text())

    status = run(site, "--html", tmp_path / "page.html", "--study", tmp_path / "study.yaml")

    text = (tmp_path / "page.html").read_text()
    page = Page()
    page.feed(text)
    assert status == 2
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert {"script", "link", "b"}.isdisjoint(page.tags)
    names = re.findall(r"<strong>(.*?)</strong>", text)
    assert set(names[:2]) == {"row 5 (patient 0004)", "row 6 (patient &lt;b&gt;5)"}
    assert "64 x 64 x 64 mm" in text
    picture = Image.open(io.BytesIO(base64.b64decode(page.sources[-1].partition(",")[2])))
    assert picture.size == (3 * TILE, 3 * TILE)


def test_a_page_that_cannot_be_written_is_refused_at_once(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(site, "--html", site.parent / "absent" / "page.html") == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err


def test_a_picture_shows_right_at_the_right_and_up_upwards() -> None:
    values = np.zeros((40, 40, 40), np.float32)
    values[30:34, 18:22, 30:34] = 1.0  # to the patient's right and upwards
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -78.0
    flipped = Volume(values[::-1], affine @ np.array([[-1.0, 0, 0, 39], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))

    pictures = [
        np.asarray(
            Image.open(io.BytesIO(draw_case({"t1": volume}, centre=(50.0, 2.0, 50.0), crop_mm=None))).convert("L")
        )
        for volume in (Volume(values, affine), flipped)
    ]

    rows, columns = np.nonzero(pictures[0][:TILE, TILE : 2 * TILE] > 200)  # the coronal tile
    assert abs(columns.mean() - (TILE / 2 + 50 / 1.5)) < 2
    assert abs(rows.mean() - (TILE / 2 - 50 / 1.5)) < 2
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_labels_the_wrong_way_round_are_suspected_with_enough_patients() -> None:
    bins = MarginBins(num_bins=32, limit=4.0)
    labels = np.repeat([0, 1], 12)
    margins = np.random.default_rng(0).normal(0, 1, 24) + np.where(labels == 1, -1.5, 1.5)

    inverted = judge_direction(margins, labels, bins, study="s")
    right = judge_direction(-margins, labels, bins, study="s")
    perfect = judge_direction(np.where(labels == 1, -3.0, 3.0), labels, bins, study="s")
    few = judge_direction(margins[6:18], labels[6:18], bins, study="s")

    assert [each.level for each in (inverted, right, perfect, few)] == ["warning", "ok", "warning", "ok"]
    assert "fewer than 10 patients" in few.found


def test_workers_are_those_asked_for_or_at_most_four() -> None:
    assert num_workers(7) == 7
    assert 1 <= num_workers(None) <= 4
