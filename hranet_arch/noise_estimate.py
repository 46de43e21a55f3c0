"""The noise level of a picture, from the picture alone."""

from __future__ import annotations

import numpy as np

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
    full of black and white pixels, where noise was cut off, are passed over, and so are borders of one colour, which
    were put around a picture. Its error on BSD68 beside the usual wavelet estimator's: ``docs/denoise.md``.

    Args:
        image: ``(h, w)`` or ``(h, w, c)`` without alpha; uint8, uint16, or float in [0, 1].

    Returns:
        None for a picture of less than 16 x 16 pixels with their neighbours: 18 on one side.
    """
    if min(image.shape[:2]) < BLOCK + 2:
        return None
    white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0
    planes = np.moveaxis(_cut_borders(image if image.ndim == 3 else image[..., None]), 2, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # floats far outside [0, 1]
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


def _cut_borders(image: np.ndarray) -> np.ndarray:
    """``(h, w, c)`` without the rows at top and bottom, then the columns at the sides, that are of one colour each.

    All of it where too little would be left: that is a drawing.
    """
    inner = image
    for axis in (0, 1):
        lines = np.moveaxis(inner, axis, 0)
        varied = np.flatnonzero((lines != lines[:, :1]).any((1, 2)))
        if len(varied) == 0 or varied[-1] + 1 - varied[0] < BLOCK + 2:
            return image
        inner = np.moveaxis(lines[varied[0] : varied[-1] + 1], 0, axis)
    return inner


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
