"""The eight ways to turn and mirror a picture, and where an area of it goes: for self-ensembles, in tiles too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Box(NamedTuple):
    """An area of a picture in pixels: rows ``[top, bottom)``, columns ``[left, right)``."""

    top: int
    bottom: int
    left: int
    right: int

    def slices(self, scale: int = 1) -> tuple:
        """What indexes the area in an ``(n, c, h, w)`` tensor, of a picture enlarged ``scale`` times."""
        top, bottom, left, right = (edge * scale for edge in self)
        return ..., slice(top, bottom), slice(left, right)

    def divide(self, tile: int) -> Iterator[Box]:
        """Boxes of at most ``tile x tile`` pixels that make up this one."""
        for top in range(self.top, self.bottom, tile):
            for left in range(self.left, self.right, tile):
                yield Box(top, min(top + tile, self.bottom), left, min(left + tile, self.right))

    def enlarge(self, halo: int, multiple: int, height: int, width: int) -> Box:
        """The box with its halo, from and to multiples of ``multiple``, inside a picture of ``height x width``."""
        top, left = (max((start - halo) // multiple * multiple, 0) for start in (self.top, self.left))
        bottom, right = (-(-(end + halo) // multiple) * multiple for end in (self.bottom, self.right))
        return Box(top, min(bottom, height), left, min(right, width))

    def transpose(self) -> Box:
        return Box(self.left, self.right, self.top, self.bottom)


class Symmetry(NamedTuple):
    """One of the eight: rows and columns exchanged or not, then rows (-2), columns (-1) or both reversed."""

    is_transposed: bool
    flips: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        x = x.transpose(-2, -1) if self.is_transposed else x
        return x.flip(self.flips) if self.flips else x

    def undo(self, x: Tensor) -> Tensor:
        x = x.flip(self.flips) if self.flips else x
        return x.transpose(-2, -1) if self.is_transposed else x

    def turn_size(self, height: int, width: int) -> tuple[int, int]:
        return (width, height) if self.is_transposed else (height, width)

    def turn(self, box: Box, height: int, width: int) -> Box:
        """Where an area of a picture of ``height x width`` lies once the picture is turned."""
        return self._flip(box.transpose() if self.is_transposed else box, height, width)

    def turn_back(self, box: Box, height: int, width: int) -> Box:
        """Where an area of the turned picture lies in the picture of ``height x width``."""
        box = self._flip(box, height, width)
        return box.transpose() if self.is_transposed else box

    def _flip(self, box: Box, height: int, width: int) -> Box:
        height, width = self.turn_size(height, width)
        top, bottom, left, right = box
        if -2 in self.flips:
            top, bottom = height - bottom, height - top
        if -1 in self.flips:
            left, right = width - right, width - left
        return Box(top, bottom, left, right)


IDENTITY = Symmetry(False, ())
SYMMETRIES = tuple(Symmetry(turn, flips) for turn in (False, True) for flips in ((), (-1,), (-2,), (-2, -1)))
