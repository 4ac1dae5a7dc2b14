"""Every fault that is put into a phantom hospital is found, and clean hospitals are not blocked."""

import shutil
from pathlib import Path

import pytest

from client.config import read_site_config
from client.preflight.registry import CHECKS
from client.preflight.run import Preflight, run_preflight
from common.study import parse_study
from simulations.phantom.federation import write_hospitals
from simulations.phantom.injection import FAULTS, inject
from simulations.phantom.spec import PhantomOptions
from tests.tiny_hospitals import study_text

SPACING_MM = 5.0
NEEDS_MANY = {name for name, fault in FAULTS.items() if fault.least_patients > 2}


@pytest.fixture(scope="session")
def hospital_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients of the hospital that lacks no sequence."""
    folder = tmp_path_factory.mktemp("phantoms")
    options = PhantomOptions(seed=1, spacing_mm=SPACING_MM)
    (site,) = write_hospitals(folder, ["A"], options, num_patients={"A": 4})
    return site.parent


def checked(folder: Path) -> Preflight:
    return run_preflight(read_site_config(folder / "site.yaml"), None)


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - NEEDS_MANY))
def test_fault_is_found(name: str, hospital_a: Path, tmp_path: Path) -> None:
    fault = inject(name, hospital_a, tmp_path / "hospital")

    found = {finding.check: finding for finding in checked(tmp_path / "hospital").findings}

    assert fault.check in found, f"found {sorted(found)}"
    assert found[fault.check].sentence
    assert found[fault.check].remedy == CHECKS[fault.check].remedy


def test_labels_that_are_swapped_in_every_file_are_suspected(tmp_path: Path, hospital_a: Path) -> None:
    folder = tmp_path / "hospital"
    inject("labels swapped everywhere", hospital_a, folder)
    header, *rows = (folder / "table.tsv").read_text().splitlines()
    necrosis = next(row for row in rows if "\tnecrosis\t" in row)
    many = [necrosis.replace(necrosis.split("\t")[0], f"sub-{number:03d}", 1) for number in range(14)]
    (folder / "table.tsv").write_text("\n".join([header, *rows, *many]) + "\n")

    found = {finding.check for finding in checked(folder).findings}

    assert "prevalence-far" in found


def test_clean_hospitals_are_not_blocked(tmp_path: Path) -> None:
    counts = {"A": 2, "B": 3, "C": 2, "D": 3, "E": 2, "F": 2}
    options = PhantomOptions(seed=2, spacing_mm=SPACING_MM, label_noise=0.0)

    blocked = {
        site.parent.name: [finding.sentence for finding in checked(site.parent).findings if finding.severity == "block"]
        for site in write_hospitals(tmp_path, list(counts), options, num_patients=counts)
    }

    assert blocked == {f"hospital-{letter.lower()}": [] for letter in counts}


def test_clean_hospital_has_no_warning_but_that_it_is_small(hospital_a: Path) -> None:
    assert {finding.check for finding in checked(hospital_a).findings} <= {"class-small"}


def test_injection_writes_the_same_bytes_at_every_call(hospital_a: Path, tmp_path: Path) -> None:
    copies = [tmp_path / "one", tmp_path / "two"]
    for name in ("gz bit flipped", "NaN block", "T2 is a T1", "header extension"):
        for copy in copies:
            inject(name, hospital_a, copy / name)

        contents = [{path.name: path.read_bytes() for path in (copy / name).rglob("*.nii.gz")} for copy in copies]

        assert contents[0] == contents[1]
        assert contents[0] != {path.name: path.read_bytes() for path in hospital_a.rglob("*.nii.gz")}


def test_a_study_that_refuses_exams_without_a_sequence_blocks_them(tmp_path: Path) -> None:
    (site,) = write_hospitals(tmp_path, ["F"], PhantomOptions(spacing_mm=SPACING_MM), num_patients={"F": 2})
    config = read_site_config(site)
    fill = {"missing_sequence": "zero_fill"}
    studies = [
        parse_study(study_text(), origin="study"),
        parse_study(study_text(preprocessing=fill, augmentation={"drop_sequence": 0.1}), origin="study"),
    ]

    refused, filled = (run_preflight(config, study) for study in studies)

    assert [finding.check for finding in refused.findings if finding.severity == "block"] == ["sequence-missing"]
    assert len(refused.findings[0].cases) == 2
    assert not filled.blocked


BIDS_FAULTS = ["gz with a bad CRC", "NaN block", "duplicate image", "T2 is a FLAIR", "descrip", "personal sidecar"]


@pytest.mark.parametrize("name", BIDS_FAULTS)
def test_fault_is_found_in_a_bids_folder(name: str, hospital_a: Path, tmp_path: Path) -> None:
    fault = inject(name, hospital_a, tmp_path / "hospital")
    site = tmp_path / "hospital" / "site.yaml"
    site.write_text(site.read_text().replace("table: table.tsv", "bids: .\n  label_column: diagnosis"))

    findings = {finding.check: finding for finding in checked(tmp_path / "hospital").findings}

    assert fault.check in findings, f"found {sorted(findings)}"
    assert all("sub-A00" in case for case in findings[fault.check].cases)
    assert {check for check in findings if CHECKS[check].severity == "block"} <= {fault.check}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("letter", list("ABCDEF"))
def test_every_fault_is_found_at_every_hospital(letter: str, tmp_path: Path) -> None:
    many = {"C": 150, "F": 80}.get(letter, 50)  # the more necroses, the more alike are both classes' numbers
    hospitals = {
        num_patients: write_hospitals(
            tmp_path / str(num_patients),
            [letter],
            PhantomOptions(seed=3, spacing_mm=spacing_mm, label_noise=0.0),
            num_patients={letter: num_patients},
        )[0].parent
        for num_patients, spacing_mm in ((6, 2.0), (many, 8.0))
    }
    missed = []

    for name, fault in FAULTS.items():
        if fault.needs_t2 and letter == "F":
            continue
        inject(name, hospitals[6 if fault.least_patients <= 6 else many], tmp_path / "copy")
        if fault.check not in {finding.check for finding in checked(tmp_path / "copy").findings}:
            missed.append(name)
        shutil.rmtree(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy-outside", ignore_errors=True)

    assert missed == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_of_300_clean_exams_is_blocked(tmp_path: Path) -> None:
    counts = dict.fromkeys("ABCDEF", 50)
    options = PhantomOptions(seed=5, spacing_mm=2.0)

    blocked = [
        finding.sentence
        for site in write_hospitals(tmp_path, list(counts), options, num_patients=counts)
        for finding in checked(site.parent).findings
        if finding.severity == "block"
    ]

    assert blocked == []
