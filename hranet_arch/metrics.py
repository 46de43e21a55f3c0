"""Metric functions that BasicSR lacks; ``registration`` puts them into its registry."""

from __future__ import annotations

import numpy as np

JPEG_BLOCK = 8


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


def calculate_psnrb(img: np.ndarray, img2: np.ndarray, crop_border: int = 0) -> float:
    """PSNR-B in dB: PSNR less what is left of JPEG's blocks.

    C. Yim, A. C. Bovik, «Quality assessment of deblocked images», IEEE TIP 20(1), 2011: to the mean squared error comes
    the blocking effect factor, by how much the squared steps across the borders of 8x8 blocks exceed those elsewhere.

    Args:
        img: the restored picture, ``(h, w)`` or ``(h, w, c)`` with range [0, 255]; its blocks start at its top left.
        img2: the original, of the same shape.
        crop_border: pixels left out at each edge, a multiple of 8 where blocks are to stay in place.

    Returns:
        ``10 log10(255^2 / (mse + bef))``; ``inf`` for equal pictures. One pixel high or wide they have no blocks: PSNR.

    Raises:
        ValueError: for different shapes, or a border that leaves no pixel.
    """
    if img.shape != img2.shape:
        raise ValueError(f"calculate_psnrb: shapes {img.shape} and {img2.shape} differ; both must be the same.")
    if 2 * crop_border >= min(img.shape[:2]):
        raise ValueError(f"calculate_psnrb: crop_border={crop_border} leaves nothing of {img.shape[:2]} pixels.")
    inner = slice(crop_border, -crop_border or None)
    restored, original = (image[inner, inner].astype(np.float64) for image in (img, img2))
    error = np.mean((restored - original) ** 2) + _measure_blocks(restored)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _measure_blocks(image: np.ndarray) -> float:
    """The blocking effect factor, in squared grey levels; 0 for a picture one pixel high or wide, which has none."""
    if min(image.shape[:2]) < 2:
        return 0.0
    at_borders, elsewhere = [], []
    for axis in (0, 1):
        steps = np.moveaxis(np.diff(image, axis=axis) ** 2, axis, 0)
        is_border = np.arange(1, len(steps) + 1) % JPEG_BLOCK == 0
        at_borders.append(steps[is_border].ravel())
        elsewhere.append(steps[~is_border].ravel())
    at_borders, elsewhere = np.concatenate(at_borders), np.concatenate(elsewhere)
    if not at_borders.size or not elsewhere.size or at_borders.mean() <= elsewhere.mean():
        return 0.0
    weight = np.log2(JPEG_BLOCK) / np.log2(min(image.shape[:2]))
    return float(weight * (at_borders.mean() - elsewhere.mean()))
