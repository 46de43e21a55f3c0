"""Large pictures in pieces: pad, cut, run, put together, crop. Pure functions on ``(n, c, h, w)`` tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pads right and bottom to multiples of ``multiple``, by reflection where the picture is large enough for it."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode)


def run_tiled(network: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, halo: int, multiple: int = 1) -> Tensor:
    """Runs a network tile by tile; each tile sees ``halo`` more pixels on every side that the picture has.

    Equal to ``network(x)`` where the network is local, ``halo`` covers its reach, and tiles start at multiples of
    its grid (``multiple``).

    Args:
        network: maps ``(n, c, h, w)`` to ``(n, c', h * scale, w * scale)`` with one integer scale.
        x: the picture.
        tile: side of a tile's own area in pixels; rounded up to ``multiple``.
        halo: rounded up to ``multiple``.
    """
    tile, halo = (-(-size // multiple) * multiple for size in (tile, halo))
    height, width = x.shape[-2:]
    output = None
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            y0, x0 = max(top - halo, 0), max(left - halo, 0)
            part = network(x[..., y0 : bottom + halo, x0 : right + halo])
            if output is None:
                scale = part.shape[-2] // (min(bottom + halo, height) - y0)
                output = part.new_empty(*part.shape[:2], height * scale, width * scale)
            core = part[..., (top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
            output[..., top * scale : bottom * scale, left * scale : right * scale] = core
    return output


def _spans(size: int, tile: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, tile):
        yield start, min(start + tile, size)
