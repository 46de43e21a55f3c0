"""A picture before and after, side by side, over the same detail enlarged: what ``--compare`` writes."""

from __future__ import annotations

import cv2
import numpy as np

LARGEST_PANEL = 960  # pixels, the longer side of either picture
DETAIL = 64  # side of the detail in pixels, at most
GAP = 8
WHITE, MARK = 255, (255, 64, 64)


def compose(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Puts two pictures of one size beside each other.

    Above, both whole, made smaller where they are large, with the detail's place marked; below, the detail, which is
    the square where the clean picture has the most structure, enlarged to the width of the panels without smoothing.

    Args:
        before: ``(h, w)`` or ``(h, w, 3)`` RGB; uint8, uint16, or float in [0, 1].
        after: the same.

    Returns:
        uint8 ``(h', w', 3)`` in RGB order.
    """
    top, left, side = _find_detail(after)
    panels = []
    for picture in (before, after):
        whole = _to_rgb(shrink(picture, LARGEST_PANEL / max(picture.shape[:2])))
        scale = whole.shape[1] / picture.shape[1]
        corners = [(round(x * scale), round(y * scale)) for x, y in ((left, top), (left + side, top + side))]
        cv2.rectangle(whole, *corners, MARK, 1)
        detail = _to_rgb(_to_bytes(picture[top : top + side, left : left + side]))
        width = whole.shape[1]
        detail = cv2.resize(detail, (width, width), interpolation=cv2.INTER_NEAREST)
        panels.append(np.vstack([whole, np.full((GAP, width, 3), WHITE, np.uint8), detail]))
    between = np.full((panels[0].shape[0], GAP, 3), WHITE, np.uint8)
    return np.hstack([panels[0], between, panels[1]])


def shrink(picture: np.ndarray, scale: float) -> np.ndarray:
    """A picture as ``compose`` takes it as uint8; ``scale`` times as large where that is less than 1."""
    if scale < 1:
        picture = picture.astype(np.float32) if picture.dtype == np.float16 else picture  # which OpenCV does not take
        height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return _to_bytes(picture)


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    white = np.iinfo(picture.dtype).max if picture.dtype.kind == "u" else 1.0
    return (picture.astype(np.float32) * (255 / white)).clip(0, 255).round().astype(np.uint8)


def _to_rgb(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.dstack([picture] * 3) if picture.ndim == 2 else picture)


def _find_detail(picture: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of the square, on a grid of half its side, in which brightness varies most."""
    side = min(DETAIL, *picture.shape[:2])
    step = max(side // 2, 1)
    height, width = picture.shape[:2]
    tops, lefts = (range(0, size - side + 1, step) for size in (height, width))
    squares = ((top, left) for top in tops for left in lefts)
    return *max(squares, key=lambda corner: _vary(picture, *corner, side)), side


def _vary(picture: np.ndarray, top: int, left: int, side: int) -> float:
    part = picture[top : top + side, left : left + side].astype(np.float32)
    return float((part.mean(axis=2) if part.ndim == 3 else part).std())  # of colours as such nothing is to be seen
