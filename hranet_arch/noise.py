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
