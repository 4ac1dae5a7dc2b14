"""Tissues have the contrast of the specification, in the formulas and in a drawn image."""

import numpy as np
import pytest

from simulations.phantom.geometry import Head, draw_head
from simulations.phantom.grid import Array, Volume
from simulations.phantom.lesion import Looks
from simulations.phantom.placement import Lesion, place_lesion
from simulations.phantom.render import Grid, render
from simulations.phantom.scanners import SCANNERS
from simulations.phantom.tissue import (
    RELAXIVITY,
    TISSUES,
    PulseSequence,
    Tissue,
    TissueName,
    Weighting,
    spin_signal,
)

OLD_T1 = Weighting("1.5T", PulseSequence(500, 12), dose=1.0)


@pytest.mark.parametrize(
    ("tissue", "contrast_mm", "expected"),
    [
        ("white", 0.0, 1.0),
        ("csf", 0.0, 0.33),
        ("grey", 0.0, 0.84),
        ("oedema", 0.0, 0.79),
        ("solid", 0.0, 0.77),
        ("necrosis", 0.0, 0.52),
        ("solid", 0.34, 1.51),
    ],
)
def test_t1_signals_of_the_old_spin_echo(tissue: TissueName, contrast_mm: float, expected: float) -> None:
    assert OLD_T1.relative(tissue, contrast_mm) == pytest.approx(expected, abs=0.006)


def test_enhancing_tumour_in_inversion_recovery() -> None:
    modern = Weighting("3T", PulseSequence(2000, 9, 860), dose=1.0)

    assert modern.relative("solid", 0.375) == pytest.approx(2.3, abs=0.05)


T2_SIGNALS: dict[TissueName, float] = {"grey": 1.4, "oedema": 2.1, "solid": 1.65, "necrosis": 2.7}


@pytest.mark.parametrize(("hospital", "csf"), [("A", 3.44), ("B", 2.91), ("C", 4.40), ("D", 2.28), ("E", 5.22)])
def test_t2_signals(hospital: str, csf: float) -> None:
    t2 = SCANNERS[hospital].weightings()["t2"]

    assert t2.relative("csf") == pytest.approx(csf, abs=0.01)
    if hospital == "B":  # the specification's figures; longer echoes and stronger fields spread them
        assert {name: t2.relative(name) for name in T2_SIGNALS} == pytest.approx(T2_SIGNALS, rel=0.02)
    order = [t2.relative(name) for name in ("white", "grey", "solid", "oedema", "necrosis")]
    assert order == sorted(order)


def test_spin_echo_by_hand() -> None:
    # PD (1 - e^(-TR/T1)) e^(-TE/T2) with TR = T1 and TE = T2: .5 (1 - 1/e) / e
    signal = spin_signal(Tissue(1000, 50, 0.5), PulseSequence(1000, 50), relaxivity=4.0)

    assert signal == pytest.approx(0.5 * (1 - np.exp(-1)) * np.exp(-1), rel=1e-5)


def test_contrast_of_one_number_and_of_a_volume_agree() -> None:
    tissue, sequence = TISSUES["3T"]["solid"], PulseSequence(2000, 9, 860)

    volume = spin_signal(tissue, sequence, RELAXIVITY["3T"], np.array([0.0, 0.4], np.float32))

    alone = [spin_signal(tissue, sequence, RELAXIVITY["3T"], c) for c in (0.0, 0.4)]
    np.testing.assert_allclose(volume, alone, rtol=1e-5)


def make_case(**changes: object) -> tuple[Head, Lesion]:
    """A head with a solid lesion of 32 mm whose nodule fills .4 of it, without anything else."""
    numbers: dict[str, object] = {
        "pattern": 0,
        "quotient": 0.4,
        "feathering_mm": 1.5,
        "contrast_mm": 0.4,
        "oedema_ratio": 3.0,
        "subependymal": False,
        "callosal": False,
        "num_foci": 0,
        "diameter_mm": 32.0,
    } | changes
    looks = Looks(**{name: np.array([value]) for name, value in numbers.items()})
    head = draw_head(np.random.default_rng(4))
    return head, place_lesion(looks, head, np.random.default_rng(5))


def images_around(head: Head, lesion: Lesion, hospital: str) -> dict[str, Volume]:
    """Noiseless images of 2 mm, centred on the lesion; shape (k, j, i), 71 voxels each way."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = lesion.center - 70.0
    weightings = SCANNERS[hospital].weightings()
    images = render(head, lesion, Grid((71, 71, 71), affine), list(weightings.values()))
    return dict(zip(weightings, images, strict=True))


def radii_from(lesion: Lesion) -> Array:
    """Distance from the lesion's centre in radii of its ellipsoid; shape (k, j, i)."""
    mm = np.arange(-70.0, 71.0, 2.0)
    z, y, x = np.meshgrid(mm, mm, mm, indexing="ij")
    return np.asarray(np.linalg.norm(np.stack([x, y, z], -1) @ lesion.core.matrix.T, axis=-1))


@pytest.mark.parametrize("hospital", ["A", "B"])
def test_drawn_image_holds_the_tissues_at_their_signal(hospital: str) -> None:
    head, lesion = make_case()
    weightings = SCANNERS[hospital].weightings()

    images = images_around(head, lesion, hospital)

    middle = radii_from(lesion) < 0.3
    for name in ("t1", "t2"):
        drawn, weighting = images[name], weightings[name]
        assert np.median(drawn[middle]) == pytest.approx(weighting.relative("solid"), rel=0.02)
        for tissue in ("white", "grey", "csf", "oedema", "necrosis"):
            signal = weighting.relative(tissue)
            share = (np.abs(drawn - signal) < 0.015).mean()
            assert share > 0.002, f"{tissue} has its own signal in too few voxels of {name}: {share}"
    # A solid lesion enhances half as much in the middle, which is where the agent is measured here.
    assert images["t1ce"][35, 35, 35] == pytest.approx(weightings["t1ce"].relative("solid", 0.2), rel=0.06)


def test_lesion_quotient_is_the_area_of_the_t2_nodule_over_that_of_the_core() -> None:
    areas = []
    for quotient in (0.2, 0.6):
        head, lesion = make_case(quotient=quotient)
        t2, weighting = images_around(head, lesion, "B")["t2"], SCANNERS["B"].weightings()["t2"]
        dark = t2[35] < (weighting.relative("solid") + weighting.relative("necrosis")) / 2
        areas.append(int((dark & (radii_from(lesion)[35] < 0.85)).sum()))

    assert areas[1] / areas[0] == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize(
    ("pattern", "is_bright_inside"), [(0, True), (1, False), (2, False)], ids=["solid", "thick ring", "thin ring"]
)
def test_rings_are_dark_inside(pattern: int, is_bright_inside: bool) -> None:
    head, lesion = make_case(pattern=pattern, diameter_mm=40.0)
    images = images_around(head, lesion, "B")
    added, radii = images["t1ce"] - images["t1"], radii_from(lesion)

    inside, rim = added[radii < 0.25].mean(), added[(radii > 0.75) & (radii < 0.95)].mean()

    assert rim > 0.3
    assert bool(inside > 0.3 * rim) == is_bright_inside


def test_oedema_is_bright_on_t2_and_spares_grey_matter() -> None:
    head, lesion = make_case()
    little = images_around(head, place(head, 0.5), "B")["t2"]
    much = images_around(head, lesion, "B")["t2"]
    grey = SCANNERS["B"].weightings()["t2"].relative("grey")

    changed = np.abs(much - little) > 0.1

    assert changed.sum() > 1000
    assert (much[changed] > little[changed]).mean() > 0.99
    assert (np.abs(little[changed] - grey) < 0.02).mean() < 0.02


def place(head: Head, oedema_ratio: float) -> Lesion:
    return make_case(oedema_ratio=oedema_ratio)[1]


def test_thick_slice_is_the_mean_of_thin_ones() -> None:
    head, lesion = make_case()
    weightings = list(SCANNERS["B"].weightings().values())
    thick, thin = np.diag([3.0, 3.0, 6.0, 1.0]), np.diag([3.0, 3.0, 2.0, 1.0])
    thick[:3, 3], thin[:3, 3] = [-60.0, -60.0, 0.0], [-60.0, -60.0, -2.0]

    one = render(head, lesion, Grid((40, 40, 1), thick), weightings)
    three = render(head, lesion, Grid((40, 40, 3), thin), weightings)

    np.testing.assert_allclose(one[:, 0], three.mean(axis=1), atol=1e-3)


def test_distractors_take_contrast_without_a_lesion() -> None:
    head = draw_head(np.random.default_rng(4))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-90.0, -110.0, 30.0]
    weightings = SCANNERS["B"].weightings()

    t1, t1ce = render(head, None, Grid((91, 111, 20), affine), [weightings["t1"], weightings["t1ce"]])

    added = t1ce - t1
    inside_brain = added[5, 35:75, 38:44]
    assert added.max() > 0.5  # the sinus
    assert (added > 0.05).sum() > 1000  # the scalp
    assert np.abs(inside_brain).max() < 1e-6
