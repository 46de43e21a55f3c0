"""Metric functions that BasicSR lacks; ``registration`` puts them into its registry."""

from __future__ import annotations

import numpy as np


def calculate_psnr_float(img: np.ndarray, img2: np.ndarray, crop_border: int = 0) -> float:
    """PSNR in dB of the network's own output: float, neither clipped nor rounded to 8 bits.

    Args:
        img, img2: ``(h, w)`` or ``(h, w, c)`` arrays with range [0, 1].
        crop_border: pixels left out at each edge.

    Returns:
        ``10 log10(1 / mse)``; ``inf`` for equal images.

    Raises:
        ValueError: for different shapes, which NumPy might broadcast, or a border that leaves no pixel.
    """
    height, width = img.shape[:2]
    if img.shape != img2.shape or min(height, width) <= 2 * crop_border:
        raise ValueError(
            f"crop_border={crop_border}, img={img.shape}, img2={img2.shape}: the shapes must be equal, "
            "and the border must leave a pixel."
        )
    inner = np.s_[crop_border : height - crop_border, crop_border : width - crop_border]
    mse = np.mean((img[inner].astype(np.float64) - img2[inner].astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


# What validation hands to a metric: the default is BasicSR's uint8 [0, 255]; this one takes floats in [0, 1].
calculate_psnr_float.takes_float = True
