"""The estimate of a picture's noise level: exact on noise alone, near on photographs, the same at every depth."""

import json

import numpy as np
import pytest
from skimage import data

from hranet_arch import noise_estimate
from hranet_arch.noise import add_test_noise
from hranet_arch.noise_estimate import estimate_sigma
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("sigma", [0, 2, 10, 25, 50])
def test_noise_alone_is_measured(sigma):
    image = (0.5 + sigma / 255 * np.random.default_rng(0).normal(size=(600, 500))).astype(np.float32)
    assert estimate_sigma(image) == pytest.approx(sigma, rel=0.02, abs=1e-4)


def test_the_filter_keeps_the_deviation_of_white_noise_and_takes_away_slopes():
    x = np.random.default_rng(0).normal(size=(1000, 1000))
    assert noise_estimate._filter_noise(x).std() == pytest.approx(1, rel=0.01)
    rows, columns = np.mgrid[:9, :8]
    assert np.abs(noise_estimate._filter_noise(3.0 * rows**2 + 2 * columns - rows)).max() < 1e-9


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_texture_is_not_taken_for_noise(sigma):
    """The estimate on noisy photographs, whose own noise of 1 to 2 grey levels adds to it in squares."""
    for clean in (data.camera(), data.astronaut()[..., 1]):
        noisy = add_test_noise(clean / 255, sigma)
        assert estimate_sigma(noisy) == pytest.approx(sigma, abs=1.2)


def test_depth_and_channels_change_nothing():
    noisy = add_test_noise(data.camera() / 255, 10).clip(0, 1)
    expected = estimate_sigma(noisy)
    assert estimate_sigma((noisy * 255).round().astype(np.uint8)) == pytest.approx(expected, abs=0.1)
    assert estimate_sigma((noisy * 65535).round().astype(np.uint16)) == pytest.approx(expected, abs=0.01)
    assert estimate_sigma(np.dstack([noisy] * 3)) == pytest.approx(expected, abs=1e-6)
    half = np.dstack([noisy, np.zeros_like(noisy)])
    assert estimate_sigma(half) == pytest.approx(expected / 2**0.5, abs=1e-6)  # the root of the mean square


def make_noise(*shape):
    return (128 + 10 * np.random.default_rng(0).normal(size=shape)).astype(np.uint8)


@pytest.mark.parametrize("value", [0, 255])
def test_white_and_black_areas_are_passed_over(value):
    image = make_noise(200, 200)
    image[30:170, 80:140] = value
    assert estimate_sigma(image) == pytest.approx(10, abs=0.5)
    assert estimate_sigma(np.full((200, 200), value, np.uint8)) == 0


def test_borders_of_one_color_are_passed_over():
    """A page's margin, and the bars of a film in a frame: the estimate is that of what they surround."""
    scene = make_noise(90, 120, 3)
    expected = estimate_sigma(scene)
    image = np.full((160, 200, 3), (16, 128, 128), np.uint8)
    image[40:130, 50:170] = scene
    assert estimate_sigma(image) == expected
    image[130:] = 235
    assert estimate_sigma(image) == expected
    assert estimate_sigma(image[..., 1]) == estimate_sigma(scene[..., 1])
    image[45:125] = 235  # a drawing, with little besides
    assert estimate_sigma(image) == 0


def test_floats_far_outside_the_range_warn_of_nothing():
    """A warning would be an error here (pyproject.toml)."""
    image = np.random.default_rng(0).normal(scale=1e37, size=(64, 64)).astype(np.float32)
    assert not np.isfinite(estimate_sigma(image))


@pytest.mark.parametrize(
    ("shape", "is_known"), [((18, 18), True), ((17, 400), False), ((1, 1), False), ((18, 40, 3), True)]
)
def test_small_pictures_are_not_guessed_at(shape, is_known):
    image = np.random.default_rng(0).integers(90, 110, shape, dtype=np.uint8)
    assert (estimate_sigma(image) is not None) == is_known


def test_large_pictures_are_sampled_evenly():
    image = np.zeros((2600, 2100), np.uint8)
    windows = noise_estimate._cut_windows(image)
    assert len(windows) == 16 and all(window.shape == (512, 512) for window in windows)
    long = noise_estimate._cut_windows(np.zeros((20, 10**6), np.uint8))
    assert len(long) == 4 and all(window.shape == (20, 512) for window in long)
    assert len(noise_estimate._cut_windows(image[:2000, :2000])) == 1


def test_windows_of_a_large_picture_reach_its_corners():
    image = np.arange(2600 * 2100, dtype=np.int32).reshape(2600, 2100)
    corners = [int(window[0, 0]) for window in noise_estimate._cut_windows(image)]
    # From 0 to 2600 - 512 and 2100 - 512 in three equal steps.
    assert corners == [top * 2100 + left for top in (0, 696, 1392, 2088) for left in (0, 529, 1058, 1588)]


def test_the_documented_errors_are_the_records():
    record = json.loads((REPOSITORY / "docs/records/noise_estimate.json").read_text())
    text = (REPOSITORY / "docs/denoise.md").read_text()
    names = ("hranet_arch.noise_estimate.estimate_sigma", "skimage.restoration.estimate_sigma")
    found = {(row["estimator"], row["pictures"], row["sigma"]): row for row in record["results"]}
    for sigma in (5, 10, 15, 25, 35, 50, 75):
        rows = [found[name, kind, sigma] for kind in ("float", "uint8") for name in names]
        cells = [f"{row['mean_absolute_error']:.2f} ({row['mean_error']:+.2f})" for row in rows]
        assert f"| {sigma} | {' | '.join(cells)} |" in text
