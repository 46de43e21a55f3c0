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
        whole = _shrink(picture)
        scale = whole.shape[1] / picture.shape[1]
        corners = [(round(x * scale), round(y * scale)) for x, y in ((left, top), (left + side, top + side))]
        cv2.rectangle(whole, *corners, MARK, 1)
        detail = _to_bytes(picture[top : top + side, left : left + side])
        width = whole.shape[1]
        detail = cv2.resize(detail, (width, width), interpolation=cv2.INTER_NEAREST)
        panels.append(np.vstack([whole, np.full((GAP, width, 3), WHITE, np.uint8), detail]))
    between = np.full((panels[0].shape[0], GAP, 3), WHITE, np.uint8)
    return np.hstack([panels[0], between, panels[1]])


def _shrink(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = min(LARGEST_PANEL / max(height, width), 1)
    if scale < 1:
        picture = picture.astype(np.float32) if picture.dtype == np.float16 else picture  # which OpenCV does not take
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return _to_bytes(picture)


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    """As uint8 RGB, a copy."""
    white = np.iinfo(picture.dtype).max if picture.dtype.kind == "u" else 1.0
    scaled = (picture.astype(np.float32) * (255 / white)).clip(0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.dstack([scaled] * 3) if scaled.ndim == 2 else scaled)


def _find_detail(picture: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of the square, on a grid of half its side, in which brightness varies most."""
    side = min(DETAIL, *picture.shape[:2])
    step = max(side // 2, 1)
    height, width = picture.shape[:2]
    tops, lefts = (range(0, size - side + 1, step) for size in (height, width))
    squares = ((top, left) for top in tops for left in lefts)
    return *max(squares, key=lambda corner: _vary(picture, *corner, side)), side


def _vary(picture: np.ndarray, top: int, left: int, side: int) -> float:
    return float(picture[top : top + side, left : left + side].std(dtype=np.float32))
