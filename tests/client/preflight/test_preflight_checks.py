"""Checks of lists, paths, grids and values on inputs that are small enough to check in the head."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from client.config import read_site_config
from client.preflight.examine import FileFacts, check_values
from client.preflight.findings import Finding, Hit, gather
from client.preflight.image import ImageFile
from client.preflight.listing import Listing, listing_of_table
from client.preflight.manifest import FileManifest
from client.preflight.personal import check_paths, check_sidecar, check_tree, walk_tree
from client.preflight.registry import CHECKS, FIXABLE, registry_table
from client.preflight.rows import check_identifiers, check_labels, check_sequences, check_splits, sequence_by_name
from client.preflight.run import run_preflight
from client.table import table_rows
from tests.tiny_hospitals import write_tiny_hospital

ROOT = Path(__file__).parents[3]
LABELS = {"necrosis": 1, "recurrence": 0}


def listing(tmp_path: Path, *rows: str, header: str = "patient_id,label,t1") -> Listing:
    path = tmp_path / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    columns, lines = table_rows(path)
    return listing_of_table(path, columns, lines)


def checks(hits: Iterable[Hit]) -> list[str]:
    return [hit.check for hit in hits]


def test_page_of_the_checks_is_that_of_the_registry() -> None:
    page = (ROOT / "docs" / "preflight.md").read_text(encoding="utf-8")

    assert registry_table() in page


def test_every_check_says_what_it_means_and_what_to_do() -> None:
    assert all(check.meaning and check.remedy and check.family for check in CHECKS.values())
    assert not any(check.meaning.endswith(".") or check.remedy.endswith(".") for check in CHECKS.values())
    assert CHECKS.keys() > FIXABLE


def test_findings_come_in_the_order_of_the_registry_with_each_case_once() -> None:
    hits = [Hit("few-slices", "b", "has 3"), Hit("file-empty", "a", "t1"), Hit("file-empty", "a", "t2")]

    findings = gather([*hits, hits[0]])

    assert [finding.check for finding in findings] == ["file-empty", "few-slices"]
    assert findings[0] == Finding("file-empty", "block", (hits[1], hits[2]))
    assert findings[0].cases == ("a",)
    assert findings[0].sentence == "a: t1, and 1 more"


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("sub-01_T1w.nii.gz", "t1"),
        ("sub-01_ce-gadolinium_T1w.nii.gz", "t1ce"),
        ("007_t1ce.nii", "t1ce"),
        ("BraTS_t1c.nii.gz", "t1ce"),
        ("T1_Gd.nii.gz", "t1ce"),
        ("scan-t2.nii.gz", "t2"),
        ("T2_FLAIR.nii.gz", "flair"),
        ("t2star.nii.gz", "t2*"),
        ("volume.nii.gz", None),
        ("patient12_3.nii.gz", None),
        ("smart1.nii.gz", None),
    ],
)
def test_a_name_speaks_of_a_sequence(name: str, sequence: str | None) -> None:
    assert sequence_by_name(name) == sequence


IDENTIFIERS = {
    "two spellings of a number": (("007,necrosis,a.nii", "7,necrosis,b.nii"), ["id-leading-zeros"] * 2),
    "zeros in the path alone": (("7,necrosis,scans/007_a.nii",), ["id-leading-zeros"]),
    "the number itself in the path": (("7,necrosis,scans/7/ses-01/a.nii",), []),
    "letter case": (("ab1,necrosis,a.nii", "AB1,necrosis,b.nii"), ["id-letter-case"] * 2),
    "a space": (("a 1,necrosis,a.nii",), ["id-characters"]),
    "twice": (("a1,necrosis,a.nii", "a1,necrosis,b.nii"), ["id-duplicate"]),
    "plain": (("a1,necrosis,a.nii", "a2,necrosis,b.nii", "a10,necrosis,c.nii"), []),
}


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_identifiers_that_were_spoilt_are_found(name: str, tmp_path: Path) -> None:
    rows, expected = IDENTIFIERS[name]

    assert checks(check_identifiers(listing(tmp_path, *rows))) == expected


ROWS = {
    "too few fields": ("a,necrosis", ["row-incomplete"]),
    "no patient": (",necrosis,", ["row-incomplete", "row-incomplete"]),
    "absent file": ("a,necrosis,a.nii", ["file-absent"]),
    "no NIfTI": ("a,necrosis,a.dcm", ["file-unreadable"]),
    "out of the folder": ("a,necrosis,../table.nii", ["link-outside"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_cannot_be_used_are_found(name: str, tmp_path: Path) -> None:
    row, expected = ROWS[name]
    folder = tmp_path / "hospital"
    folder.mkdir()
    (tmp_path / "table.nii").write_bytes(b"x")

    assert checks(listing(folder, row).hits) == expected


def test_splits_are_one_a_patient_and_known(tmp_path: Path) -> None:
    header = "patient_id,label,t1,split,exam_id"
    rows = ("a,necrosis,a.nii,train,1", "a,necrosis,b.nii,test,2", "b,necrosis,c.nii,holdout,1", "c,necrosis,d.nii,,1")

    hits = list(check_splits(listing(tmp_path, *rows, header=header)))

    assert [(hit.check, hit.case) for hit in hits] == [
        ("split-leak", "row 3 (patient a, exam 2)"),
        ("split-unknown", "row 4 (patient b, exam 1)"),
        ("split-unknown", "row 5 (patient c, exam 1)"),
    ]


def label_checks(tmp_path: Path, words: Iterable[str], participants: Mapping[str, str] | None = None) -> list[str]:
    rows = [f"p{number},{word},{number}.nii" for number, word in enumerate(words)]
    return checks(check_labels(listing(tmp_path, *rows), LABELS, participants or {}))


def test_classes_that_are_absent_or_small_are_found(tmp_path: Path) -> None:
    assert label_checks(tmp_path, ["recurrence"] * 5) == ["class-missing"]
    assert label_checks(tmp_path, ["recurrence"] * 5 + ["necrosis"] * 2) == ["class-small"]
    assert label_checks(tmp_path, ["recurrence"] * 5 + ["necrosis"] * 3) == []


def test_prevalence_is_suspected_only_beyond_chance(tmp_path: Path) -> None:
    assert label_checks(tmp_path, ["recurrence"] * 10 + ["necrosis"] * 16) == []
    assert label_checks(tmp_path, ["recurrence"] * 8 + ["necrosis"] * 32) == ["prevalence-far"]


def test_words_of_labels_are_checked(tmp_path: Path) -> None:
    sound = ["recurrence"] * 3 + ["necrosis"] * 3

    assert label_checks(tmp_path, [*sound, "mixed", ""]) == ["label-unknown"] * 2
    assert label_checks(tmp_path, sound, {"p0": "necrosis", "p3": "necrosis"}) == ["label-differs"]
    ambiguous = check_labels(listing(tmp_path, "a,necrosis,a.nii"), {**LABELS, "Mixed pathology": 1}, {})
    assert next(iter(ambiguous)).check == "label-ambiguous"


def test_a_patient_of_two_labels_is_found(tmp_path: Path) -> None:
    rows = listing(tmp_path, "a,necrosis,1,a.nii", "a,recurrence,2,b.nii", header="patient_id,label,exam_id,t1")

    assert "label-contradicts" in checks(check_labels(rows, LABELS, {}))


def test_columns_of_volumes_with_other_names_are_told(tmp_path: Path) -> None:
    extra = listing(tmp_path, "a,necrosis,,,,f.nii", header="patient_id,label,t1,t2,t1ce,flair")
    misnamed = listing(tmp_path, "a,necrosis,,,f.nii", header="patient_id,label,t1,t2,t1gd")

    assert "sequence-extra" in checks(check_sequences(extra, None))
    assert "sequence-misnamed" in checks(check_sequences(misnamed, None))


PATHS = {
    "plain": (("sub-1/anat/sub-1_T1w.nii", "sub-2/anat/sub-2_T1w.nii", "sub-3/anat/sub-3_T1w.nii"), 0),
    "a family name": (("Okonkwo/T1.nii", "p2/T1.nii", "p3/T1.nii"), 1),
    "a given name": (("julia/T1.nii", "p2/T1.nii"), 1),
    "a date of birth": (("x_19640812/T1.nii", "p2/T1.nii"), 1),
    "a caret": (("A^B/T1.nii", "p2/T1.nii"), 1),
    "a name above all": (("/home/julia/p1/T1.nii", "/home/julia/p2/T1.nii", "/home/julia/p3/T1.nii"), 0),
    "a word of all": (("Export/1/T1.nii", "Export/2/T1.nii", "Export/3/T1.nii"), 0),
}


@pytest.mark.parametrize("name", PATHS)
def test_names_in_paths_are_found(name: str, tmp_path: Path) -> None:
    paths, expected = PATHS[name]
    rows = [f"p{number},necrosis,{path}" for number, path in enumerate(paths)]

    assert len(list(check_paths(listing(tmp_path, *rows)))) == expected


SIDECARS = {
    "scanner alone": ('{"Manufacturer": "X", "PatientSex": "F", "EchoTime": 0.1}', []),
    "a name": ('{"PatientName": "X"}', ["sidecar-personal"]),
    "an empty name": ('{"PatientName": ""}', []),
    "nested": ('{"a": [{"PatientBirthDate": "1964"}]}', ["sidecar-personal"]),
    "identifiers": ('{"StudyInstanceUID": "1.2"}', ["sidecar-personal"]),
    "no JSON": ("{", ["sidecar-unreadable"]),
    "too deep": ("[" * 100_000, ["sidecar-unreadable"]),
    "no text": ("\udcff", ["sidecar-unreadable"]),
}


@pytest.mark.parametrize("name", SIDECARS)
def test_sidecars_are_read(name: str, tmp_path: Path) -> None:
    text, expected = SIDECARS[name]
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")

    assert [check for check, _ in check_sidecar(tmp_path / "a.nii.gz")] == expected


def test_what_else_lies_in_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name in ("a.nii", "other.nii.gz", "cache/b.nii", "scan.dcm"):
        (tmp_path / name).write_bytes(b"x")
    rows = listing(tmp_path, "a,necrosis,a.nii")
    tree = walk_tree(tmp_path, without=(tmp_path / "cache",))

    assert sorted(checks(check_tree(rows, tree))) == ["dicom-in-tree", "file-unlisted"]
    assert not walk_tree(tmp_path, most=2).complete
    assert "tree-too-large" in checks(check_tree(rows, walk_tree(tmp_path, most=2)))


def test_a_file_that_changed_under_an_unchanged_time_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"one")
    manifest = FileManifest(b"", secret=b"s")
    assert list(manifest.compare([("case", "t1", FileFacts(path, "1" * 64, "", 3))])) == []

    again = FileManifest(manifest.encoded(), secret=b"s")
    hits = list(again.compare([("case", "t1", FileFacts(path, "2" * 64, "", 3))]))

    assert checks(hits) == ["file-changed"]
    assert str(path).encode() not in manifest.encoded()
    assert list(FileManifest(b"[1", secret=b"s").compare([("case", "t1", FileFacts(path, "2" * 64, "", 3))])) == []


def test_a_huge_slope_makes_values_infinite() -> None:
    image = nibabel.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4))
    data = bytearray(image.to_bytes())
    data[112:116] = np.array([3e38], "<f4").tobytes()

    assert [check for check, _ in check_values(ImageFile(lambda: bytes(data)))] == ["voxels-not-finite"]


def test_the_preflight_of_a_tiny_hospital_over_two_processes_is_that_over_one(tmp_path: Path) -> None:
    config = read_site_config(write_tiny_hospital(tmp_path, "a", splits=(("train", 5, 4),)))
    seen: list[tuple[int, int]] = []

    one = run_preflight(config, None)
    two = run_preflight(config, None, workers=2, on_exam=lambda done, total: seen.append((done, total)))

    assert one == two
    assert seen == [(done, 9) for done in range(1, 10)]
    assert not one.blocked


def test_exams_that_are_not_eligible_are_not_checked(tmp_path: Path) -> None:
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 3, 3),))
    table = site.parent / "table.tsv"
    header, first, *rows = table.read_text().splitlines()
    (site.parent / first.split("\t")[3]).write_bytes(b"")
    changed = [f"{header}\tirradiated", f"{first}\tno".replace("recurrence", ""), *(f"{row}\tyes" for row in rows)]
    table.write_text("\n".join(changed) + "\n")
    rule = {"column": "irradiated", "exclude": ["no"], "reason": "never irradiated"}
    site.write_text(yaml.safe_dump({**yaml.safe_load(site.read_text()), "eligibility": [rule]}))

    preflight = run_preflight(read_site_config(site), None)

    assert not preflight.blocked
    assert len(preflight.listing.rows) == 5


def test_a_table_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 1, 1),))
    (site.parent / "table.tsv").write_bytes(b"\xff\xfe\x00")

    preflight = run_preflight(read_site_config(site), None)

    assert [finding.check for finding in preflight.findings] == ["source-unreadable", "file-unlisted"]
    assert preflight.blocked
