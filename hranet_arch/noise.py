"""Noise models: additive white Gaussian noise for training, and the fixed noise of test sets. Pure functions.

Images are float in [0, 1]; ``sigma`` is in grey levels (0-255), as in every table of the field.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TEST_SEED = 0


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


def add_test_noise(clean: np.ndarray, sigma: float) -> np.ndarray:
    """Adds the field's fixed test noise: NumPy's legacy generator, seeded 0 for each picture; unclipped, unrounded.

    This is the convention of KAIR, SwinIR and Restormer (`np.random.seed(0)` per image, then
    `np.random.normal(0, sigma / 255, shape)` in float64 on the HWC array in RGB order).

    Args:
        clean: ``(h, w)`` or ``(h, w, 3)`` in RGB order, [0, 1].
        sigma: standard deviation in grey levels.

    Returns:
        float32 array of the same shape.
    """
    noise = np.random.RandomState(TEST_SEED).normal(0, sigma / 255, clean.shape)
    return (clean + noise).astype(np.float32)


def quantize(noisy: Tensor) -> Tensor:
    """Rounds to the 256 grey levels of an 8-bit file, in [0, 1] still. Values outside of [0, 1] stay outside."""
    return (noisy * 255).round() / 255
