"""What runs leave at a site is deleted by age and number, and never that of a run that may be under way."""

import os
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client.retention import DAY_S, KEPT_S, MOST_KEPT, SCORES_S, UNDER_WAY_S, clean_up, outdated
from client.site_memory import SiteMemory

NOW = 2_000_000_000.0


def run_folder(cache: Path, name: str, *, days: float) -> Path:
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "part").write_bytes(b"values")
    os.utime(folder, (NOW - days * DAY_S,) * 2)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_old_runs_go_and_young_ones_stay(tmp_path: Path) -> None:
    run_folder(tmp_path, "kept/old", days=181)
    run_folder(tmp_path, "kept/young", days=179)
    run_folder(tmp_path, "scores/old", days=731)
    run_folder(tmp_path, "scores/young", days=729)

    clean_up(tmp_path, now=NOW)

    assert names(tmp_path / "kept") == ["young"]
    assert names(tmp_path / "scores") == ["young"]


def test_of_many_runs_the_newest_stay_beside_those_that_may_be_under_way(tmp_path: Path) -> None:
    for number in range(12):
        run_folder(tmp_path, f"kept/over-{number:02d}", days=40 + number)
        run_folder(tmp_path, f"kept/now-{number:02d}", days=number)

    clean_up(tmp_path, now=NOW)

    assert names(tmp_path / "kept") == [f"now-{number:02d}" for number in range(12)]


def test_nothing_else_in_the_cache_is_touched(tmp_path: Path) -> None:
    exams = run_folder(tmp_path, "exams", days=9999)
    elsewhere = run_folder(tmp_path, "elsewhere", days=9999)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "link").symlink_to(elsewhere)

    clean_up(tmp_path, now=NOW)

    assert (exams / "part").exists()
    assert (elsewhere / "part").exists()


def test_the_begin_of_a_run_cleans_up_after_others(tmp_path: Path) -> None:
    run_folder(tmp_path, "kept/long-ago", days=9999)

    memory = SiteMemory(tmp_path, run="new", study_digest="0" * 64, run_id="1")
    memory.keep("own", {"value": np.zeros(1)}, round=1)

    assert names(tmp_path / "kept") == ["new-000000000000-1"]


@given(st.lists(st.floats(0, 2 * SCORES_S), max_size=30))
def test_a_run_that_wrote_lately_stays_whatever_the_others(ages: list[float]) -> None:
    written = {Path(str(number)): NOW - age for number, age in enumerate(ages)}

    gone = outdated(written, now=NOW, longest_s=KEPT_S, most=MOST_KEPT)

    assert not [folder for folder in gone if NOW - written[folder] <= UNDER_WAY_S]
    left = [folder for folder in written if folder not in gone and NOW - written[folder] > UNDER_WAY_S]
    assert len(left) <= MOST_KEPT
