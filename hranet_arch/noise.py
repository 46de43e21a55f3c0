"""Noise models: additive white Gaussian noise for training, and the fixed noise of test sets. Pure functions.

Images are float in [0, 1]; ``sigma`` is in grey levels (0-255), as in every table of the field.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def add_gaussian_noise(clean: Tensor, sigma: float) -> Tensor:
    """Adds white Gaussian noise from torch's generator, neither clipped nor rounded.

    Args:
        clean: any shape, in [0, 1].
        sigma: standard deviation in grey levels.
    """
    return clean + torch.randn_like(clean) * (sigma / 255)


def draw_sigma(sigma: tuple[float, float]) -> float:
    """Draws a noise level in grey levels, uniformly from ``(lowest, highest)``: blind training."""
    lowest, highest = sigma
    return lowest + (highest - lowest) * torch.rand(()).item()


def add_test_noise(clean: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Adds the field's fixed test noise: NumPy's legacy generator, seeded for each picture; unclipped, unrounded.

    This is the convention of KAIR, SwinIR and Restormer (`np.random.seed(0)` per image, then
    `np.random.normal(0, sigma / 255, shape)` in float64 on the HWC array in RGB order).

    Args:
        clean: ``(h, w)`` or ``(h, w, 3)`` in RGB order, [0, 1].
        sigma: standard deviation in grey levels.
        seed: 0 by the convention, so that pictures of one size have one noise field; another for another field.

    Returns:
        float32 array of the same shape.
    """
    noise = np.random.RandomState(seed).normal(0, sigma / 255, clean.shape)
    return (clean + noise).astype(np.float32)


def add_test_noise_clipped(clean: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """``add_test_noise`` as an 8-bit file can hold it: clipped to [0, 1] and rounded to 256 grey levels.

    Scores are not comparable with those of the unclipped noise, which published tables have: clipping alone takes
    noise away at black and white. FFDNet's authors trained other networks for it.
    """
    return (add_test_noise(clean, sigma, seed).clip(0, 1) * 255).round() / np.float32(255)


# By the name that option files and records give it.
TEST_NOISES = {"gaussian": add_test_noise, "gaussian_clipped_8bit": add_test_noise_clipped}
TEST_GENERATOR = "numpy.random.RandomState (MT19937, legacy normal), seeded anew for each picture"
TEST_SEEDS = {"zero": "0 for each picture", "number": "the picture's number in its set, from 0"}


def quantize(noisy: Tensor) -> Tensor:
    """Rounds to the 256 grey levels of an 8-bit file, in [0, 1] still. Values outside of [0, 1] stay outside."""
    return (noisy * 255).round() / 255


# --- the noise level of a picture -------------------------------------------------------------------------------------

BLOCK = 16  # side of the areas that are compared, in pixels
FLAT_PART = 0.1  # the quantile of the areas' deviations that is taken: those with little in them but noise
FLAT_DEVIATION = 0.8917  # that quantile in pure noise of deviation 1; measured, see tests/test_noise_estimate.py
SATURATED_PART = 0.05  # of an area's pixels, black or white: with more of them it says little of the noise
WINDOW, WINDOWS = 512, 4  # large pictures are looked at through 4 x 4 windows


def estimate_sigma(image: np.ndarray) -> float | None:
    """Estimates the deviation of white Gaussian noise in a picture, in grey levels.

    After J. Immerkaer, «Fast noise variance estimation», CVIU 64(2), 1996, whose filter (the difference of two
    Laplacians) leaves little of a picture but its noise, here by areas of 16 x 16 pixels, of which the tenth with the
    least left is taken to have none of the picture: texture is not mistaken for noise unless it is everywhere. Areas
    full of black and white pixels, where noise was cut off, are passed over. Its error on BSD68 beside the usual
    wavelet estimator's: ``docs/denoise.md``.

    Args:
        image: ``(h, w)`` or ``(h, w, c)`` without alpha; uint8, uint16, or float in [0, 1].

    Returns:
        None for a picture of less than 16 x 16 pixels with their neighbours: 18 on one side.
    """
    if min(image.shape[:2]) < BLOCK + 2:
        return None
    white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0
    planes = np.moveaxis(image[..., None] if image.ndim == 2 else image, 2, 0)
    variances = [_estimate_deviation(plane, white) ** 2 for plane in planes]
    return float(np.sqrt(np.mean(variances)))


def _estimate_deviation(plane: np.ndarray, white: float) -> float:
    deviations, saturated = [], []
    for window in _cut_windows(plane):
        values = window.astype(np.float32) * (255 / white)
        deviations.append(np.sqrt(_average_blocks(_filter_noise(values) ** 2)))
        inner = window[1:-1, 1:-1]
        saturated.append(_average_blocks((inner == 0) | (inner == white)))
    deviation, cut_off = np.concatenate(deviations), np.concatenate(saturated)
    is_telling = cut_off <= max(SATURATED_PART, np.quantile(cut_off, FLAT_PART))
    return float(np.quantile(deviation[is_telling], FLAT_PART)) / FLAT_DEVIATION


def _cut_windows(plane: np.ndarray) -> list[np.ndarray]:
    """The picture, or windows spread over it evenly."""
    height, width = plane.shape
    if height * width <= (WINDOW * WINDOWS) ** 2:
        return [plane]
    tops, lefts = (np.linspace(0, max(size - WINDOW, 0), WINDOWS).astype(int) for size in (height, width))
    return [plane[top : top + WINDOW, left : left + WINDOW] for top in np.unique(tops) for left in np.unique(lefts)]


def _filter_noise(x: np.ndarray) -> np.ndarray:
    """The second difference along rows and columns, scaled so that white noise keeps its deviation: 2 smaller."""
    rows = x[:-2] - 2 * x[1:-1] + x[2:]
    return (rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]) / 6


def _average_blocks(x: np.ndarray) -> np.ndarray:
    """The means of blocks of ``BLOCK`` pixels; what is left at the right and bottom is not looked at."""
    height, width = (size // BLOCK for size in x.shape)
    blocks = x[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK)
    return blocks.mean((1, 3), dtype=np.float64).ravel()
