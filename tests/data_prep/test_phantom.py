"""The built-in cohort: its laws, its physics, and that its classes differ by what they should."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.phantom import CLASSES, Cohort, SiteArrays, default_sites, site_arrays, site_names, write_site
from data_prep.phantom.anatomy import ATLAS_TISSUES, TISSUES, AnatomyRange, load_atlas, section, template_points, warp
from data_prep.phantom.cohort import draw_patient, patient_fractions
from data_prep.phantom.ct import TISSUE_HU, CtProtocol, attenuation_hu, ct_image, noise_hu
from data_prep.phantom.fields import PixelGrid, detect
from data_prep.phantom.lesions import EARLY_MM, draw_aggressiveness, draw_lesion, load_outlines, outline_distance_mm
from data_prep.phantom.mri import MriProtocol, mri_image, rician, spin_echo, tissue_signals
from data_prep.phantom.plan import TEST, TRAIN, VAL, draw_plan, share_out
from fedhpc.errors import ConfigError
from fedhpc.site.data.shard import Shard
from fedhpc.util.rng import generator

MRI = MriProtocol(1.5, tr_ms=500, te_ms=20, gadolinium_mmol=0.5, snr=20, psf_fwhm_mm=2.0, bias=0.1)
CT = CtProtocol(40, noise_hu=4.0, kernel_per_mm=0.08, psf_fwhm_mm=2.0, window_hu=80, level_hu=40)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return Cohort(seed=3, images=400)


@pytest.fixture(scope="module")
def arrays(cohort: Cohort) -> dict[str, SiteArrays]:
    return {site: site_arrays(cohort, site) for site in site_names(cohort)}


def test_a_site_alone_has_the_same_bytes(cohort: Cohort, arrays: dict[str, SiteArrays]) -> None:
    again = site_arrays(Cohort(seed=3, images=400), "site4")
    for before, after in zip(arrays["site4"], again, strict=True):
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"difficulty": 0.1}, {"anatomy": AnatomyRange(elastic_mm=4.0)}], ids=lambda c: next(iter(c))
)
def test_another_cohort_has_other_images(cohort: Cohort, arrays: dict[str, SiteArrays], change: dict[str, int]) -> None:
    other = site_arrays(replace(cohort, **change), "site4")
    assert (other.images != arrays["site4"].images).any(axis=(1, 2, 3)).all()


def test_columns(arrays: dict[str, SiteArrays]) -> None:
    for site in arrays.values():
        count = len(site.labels)
        assert site.images.shape == (count, 1, 64, 64)
        assert [column.dtype for column in site] == [np.uint8, np.int64, "S16", np.uint8, "S2", np.uint8]
        assert {len(column) for column in site} == {count}
        assert set(site.labels) == set(range(len(CLASSES)))
        assert all(len(name) == 16 and set(name) <= set(b"0123456789abcdef") for name in site.patient.tolist())


def test_sizes_are_exact_and_unequal(arrays: dict[str, SiteArrays]) -> None:
    assert {name: len(site.labels) for name, site in arrays.items()} == dict(
        zip(("site1", "site2", "site3", "site4"), (160, 120, 70, 50), strict=True)
    )
    assert share_out(8000, [p.images for p in default_sites().values()]) == [3200, 2400, 1400, 1000]


@pytest.mark.parametrize("images", [4, 5, 17, 100_000])
def test_any_size_is_shared_out(images: int) -> None:
    sizes = share_out(images, [3200, 2400, 1400, 1000])
    assert sum(sizes) == images
    assert min(sizes) >= 1
    assert sizes == sorted(sizes, reverse=True)


def test_smallest_cohort_has_every_site() -> None:
    smallest = Cohort(seed=0, images=4, image_size=32)
    assert [site_arrays(smallest, site).images.shape for site in site_names(smallest)] == [(1, 1, 32, 32)] * 4


def test_a_patient_is_in_one_split_of_one_site(arrays: dict[str, SiteArrays]) -> None:
    homes: dict[bytes, set[tuple[str, int, int, int]]] = {}
    for name, site in arrays.items():
        for patient, *rest in zip(site.patient, site.split, site.labels, site.stage, strict=True):
            homes.setdefault(bytes(patient), set()).add((name, *map(int, rest)))
    assert all(len(places) == 1 for places in homes.values())
    counts = np.concatenate([np.unique(site.patient, return_counts=True)[1] for site in arrays.values()])
    assert set(counts) == {1, 2, 3, 4}


def test_every_split_has_both_classes_and_modalities(arrays: dict[str, SiteArrays]) -> None:
    for site in arrays.values():
        for split in (TRAIN, VAL, TEST):
            mine = site.split == split
            assert set(site.labels[mine]) == {0, 1}
            assert set(site.modality[mine]) == {b"MR", b"CT"}


@pytest.mark.parametrize("name", default_sites())
def test_shares_of_a_site(name: str) -> None:
    protocol = default_sites()[name]
    plan = draw_plan(generator(0, name), protocol.images, protocol.prevalence, protocol.ct_share)
    assert plan.pictures.sum() == len(plan.is_ct) == protocol.images
    assert plan.label.mean() == pytest.approx(protocol.prevalence, abs=0.005)
    assert plan.is_ct.mean() == pytest.approx(protocol.ct_share, abs=0.005)
    assert np.bincount(plan.split) / len(plan.split) == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert plan.pictures.mean() == pytest.approx(2.67, abs=0.2)


def test_bad_values_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"images=3 .*image_size=8 .*difficulty=1.5"):
        Cohort(seed=0, images=3, image_size=8, difficulty=1.5)
    with pytest.raises(ConfigError, match="site1, site2, site3, site4"):
        site_arrays(Cohort(seed=0), "site9")


def test_shard_reads_back(tmp_path: Path, cohort: Cohort, arrays: dict[str, SiteArrays]) -> None:
    path = tmp_path / "site4.h5"
    write_site(cohort, "site4", path)
    with Shard.open(path, "site4") as shard:
        assert shard.classes == CLASSES
    assert path.stat().st_size > arrays["site4"].images.nbytes / 10


def test_spin_echo_by_hand() -> None:
    # TR = T1: 1 - 1/e = 0.632121; TE = T2 / 2: exp(-0.5) = 0.606531; times PD 0.8
    scan = replace(MRI, tr_ms=600, te_ms=40)
    signal = spin_echo(np.array([0.8]), np.array([600.0]), np.array([80.0]), scan)
    assert signal == pytest.approx([0.8 * 0.632121 * 0.606531], rel=1e-5)


def test_weighting_follows_the_protocol() -> None:
    def signals(**change: float) -> dict[str, float]:
        return dict(zip(TISSUES, tissue_signals(replace(MRI, **change)), strict=True))

    t1, t2 = signals(tr_ms=500, te_ms=12), signals(tr_ms=4500, te_ms=95)
    assert t1["white"] > t1["grey"] > t1["csf"]
    assert min(t2["csf"], t2["oedema"], t2["necrosis"]) > 1.2 * t2["grey"] > 1.2 * t2["white"]
    assert t1["enhancing"] > 1.3 * t1["solid"]
    assert signals(gadolinium_mmol=0)["enhancing"] == pytest.approx(signals(gadolinium_mmol=0)["solid"])
    assert signals(field_t=3.0)["grey"] < signals(field_t=1.5)["grey"]


def test_noise_in_air_is_rayleigh() -> None:
    air = rician(generator(0, "air"), np.zeros((300, 300), np.float32), 5.0)
    assert air.mean() / air.std() == pytest.approx(1.913, abs=0.02)
    assert air.mean() == pytest.approx(5.0 * np.sqrt(np.pi / 2), rel=0.01)


def test_noise_in_tissue_is_rician() -> None:
    tissue = rician(generator(0, "tissue"), np.full((300, 300), 10.0, np.float32), 5.0)
    assert np.mean(tissue.astype(float) ** 2) == pytest.approx(10.0**2 + 2 * 5.0**2, rel=0.01)


def test_hounsfield_units_without_noise() -> None:
    grid = PixelGrid(32)
    for index, name in enumerate(TISSUES):
        pure = np.zeros((len(TISSUES), grid.fine_size, grid.fine_size), np.float32)
        pure[index] = 1.0
        expected = TISSUE_HU[name] + (CT.iodine_hu if name == "enhancing" else 0.0)
        assert attenuation_hu(pure, grid, CT) == pytest.approx(expected, abs=0.01)
    assert attenuation_hu(np.zeros_like(pure), grid, CT) == pytest.approx(-1000.0)


def test_window_maps_its_ends_to_black_and_white() -> None:
    grid, quiet = PixelGrid(32), replace(CT, noise_hu=0.0)
    water = np.zeros((len(TISSUES), grid.fine_size, grid.fine_size), np.float32)
    water[TISSUES.index("grey")] = 1.0
    assert set(ct_image(generator(0), water, grid, replace(quiet, level_hu=37)).flat) == {128}
    assert set(ct_image(generator(0), water, grid, replace(quiet, level_hu=77)).flat) == {0}
    assert set(ct_image(generator(0), water, grid, replace(quiet, level_hu=-3)).flat) == {255}


def test_ct_noise_has_its_deviation_and_spectrum() -> None:
    grid = PixelGrid(64)
    noise = np.stack([noise_hu(generator(0, n), grid, CT) for n in range(60)])
    assert noise.std() == pytest.approx(CT.noise_hu, rel=0.02)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    assert power[0, 0] < 1e-6 * power.max()
    # f exp(-(f / k)^2) has its maximum at k / sqrt 2; line 13 of 64 pixels of 3.5 mm is 0.058 per mm
    assert abs(int(power[0, :32].argmax()) - 13) <= 3
    lags = [float(np.mean(noise * np.roll(noise, lag, axis=2)) / noise.var()) for lag in (1, 2)]
    assert lags[0] > 0.2
    assert lags[1] < -0.05


def test_point_spread_keeps_the_mean_and_blurs() -> None:
    grid = PixelGrid(32)
    step = np.zeros((grid.fine_size, grid.fine_size), np.float32)
    step[:, grid.fine_size // 2 :] = 1.0
    sharp, broad = detect(step, grid, 1.0), detect(step, grid, 20.0)
    assert sharp.mean() == pytest.approx(0.5, abs=1e-3)
    assert broad.mean() == pytest.approx(0.5, abs=1e-3)
    assert np.abs(np.diff(broad[16])).max() < 0.6 * np.abs(np.diff(sharp[16])).max()


def test_atlas_fractions_sum_to_one_in_the_head() -> None:
    atlas = load_atlas()
    total = atlas.fraction.astype(int).sum(axis=1)
    assert atlas.fraction.shape[:2] == (len(atlas.z_mm), ATLAS_TISSUES)
    assert total.max() <= 258  # rounding of six fractions
    assert (total[:, total.shape[1] // 2, total.shape[2] // 2] > 252).all()
    assert total[:, 0].max() == 0


def test_untouched_head_is_the_atlas() -> None:
    grid = PixelGrid(112)  # fine pixels of 1 mm
    still = replace(AnatomyRange(), rotation_deg=0, scale=0, shear=0, shift_mm=0, elastic_mm=0)
    pose = draw_patient(generator(0, "still"), Cohort(seed=0, anatomy=still), 0).pose
    tissue = section(10.0)
    warped = warp(tissue, template_points(pose, grid))
    areas_mm2 = tissue.sum(axis=(1, 2)) * load_atlas().grid_mm ** 2
    assert warped.sum(axis=(1, 2)) * grid.fine_pixel_mm**2 == pytest.approx(areas_mm2, rel=0.01)


def test_lesion_replaces_tissue_and_adds_none(cohort: Cohort) -> None:
    rng, grid = generator(0, "whole"), PixelGrid(64)
    fractions = patient_fractions(rng, draw_patient(rng, cohort, 1), grid, 0)
    total = fractions.sum(axis=0)
    assert fractions.min() >= -1e-6
    assert total.max() < 1.02
    assert np.quantile(fractions[TISSUES.index("solid") :].sum(axis=0), 0.999) > 0.5


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_difficulty_is_the_overlap_of_the_classes(difficulty: float) -> None:
    rng = generator(0, "overlap")
    benign, malignant = (np.array([draw_aggressiveness(rng, n, difficulty) for _ in range(2000)]) for n in (0, 1))
    auc = float(np.mean(malignant[:, None] > benign[None, :]))
    assert auc == pytest.approx({0.0: 1.0, 0.5: 0.998, 1.0: 0.5}[difficulty], abs=0.02)


def rendered_shape(label: int, number: int) -> tuple[float, float]:
    """Perimeter squared over 4 pi area (1 for a circle) and diameter in mm of one lesion drawn at 1 mm."""
    rng, grid = generator(0, label, number, "shape"), PixelGrid(112)
    aggressiveness = draw_aggressiveness(rng, label, 0.5)
    lesion = draw_lesion(rng, aggressiveness, 30.0, np.zeros((1, 2), np.float32))
    place = grid.fine_positions_mm()
    points = np.stack(np.broadcast_arrays(place[:, None], place[None, :]))
    inside = outline_distance_mm(points, lesion, 0) < 0
    crossings = np.abs(np.diff(inside.astype(int), axis=0)).sum() + np.abs(np.diff(inside.astype(int), axis=1)).sum()
    area = float(inside.sum())
    return (crossings * np.pi / 4) ** 2 / (4 * np.pi * area), 2 * np.sqrt(area / np.pi)


def test_malignant_outlines_are_more_irregular_and_of_the_size_asked_for() -> None:
    benign, malignant = (np.array([rendered_shape(label, n) for n in range(40)]) for label in (0, 1))
    assert malignant[:, 0].mean() > benign[:, 0].mean() + 0.05
    assert np.median(benign[:, 1]) == pytest.approx(30.0, rel=0.05)
    assert np.median(malignant[:, 1]) == pytest.approx(30.0, rel=0.15)


def test_radiologists_outlines_are_real_and_many() -> None:
    benign, suspicious = load_outlines(False), load_outlines(True)
    assert min(len(benign.first), len(suspicious.first)) > 1000
    assert suspicious.log_profile.std(axis=1).mean() > benign.log_profile.std(axis=1).mean()
    assert np.exp(2 * benign.log_profile).mean(axis=1) == pytest.approx(1.0, abs=0.05)


def test_early_means_small(cohort: Cohort, arrays: dict[str, SiteArrays]) -> None:
    site = arrays["site4"]
    _, first = np.unique(site.patient, return_index=True)
    for number, start in enumerate(np.sort(first)):
        rng = generator(cohort.seed, "site4", number, "phantom")
        lesion = draw_patient(rng, cohort, int(site.labels[start])).lesion
        assert site.stage[start] == (lesion.diameter_mm < EARLY_MM)
    stages = np.concatenate([site.stage for site in arrays.values()])
    assert 0.05 < stages.mean() < 0.5


def head_and_air(images: NDArray[np.uint8]) -> tuple[float, float]:
    corners = images[:, 0, :5, :5].astype(float)
    return float(images[:, 0, 22:42, 22:42].mean()), float(corners.mean())


def test_site3_has_the_lowest_signal_to_noise(arrays: dict[str, SiteArrays]) -> None:
    ratio = {}
    for name, site in arrays.items():
        brain, air = head_and_air(site.images[site.modality == b"MR"])
        ratio[name] = brain / air
    assert min(ratio, key=lambda name: ratio[name]) == "site3"
    assert ratio["site3"] < 0.6 * sorted(ratio.values())[1]


def test_each_protocol_makes_its_own_picture(cohort: Cohort) -> None:
    rng = generator(0, "same head")
    fractions = patient_fractions(rng, draw_patient(rng, cohort, 0), PixelGrid(64), 0)
    pictures = [mri_image(generator(1), fractions, PixelGrid(64), p.mri) for p in default_sites().values()]
    pictures += [ct_image(generator(1), fractions, PixelGrid(64), p.ct) for p in default_sites().values()]
    apart = [np.abs(a.astype(int) - b).mean() for n, a in enumerate(pictures) for b in pictures[:n]]
    assert min(apart) > 2.0  # grey levels
