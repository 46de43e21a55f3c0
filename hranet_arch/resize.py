"""Bicubic interpolation as MATLAB's ``imresize`` has it, which made the low-resolution pictures of the benchmarks.

The kernel is Keys' with a = -0.5 (R. Keys, «Cubic convolution interpolation for digital image processing», IEEE TASSP
29(6), 1981), widened by the scale where a picture becomes smaller; torch's own bicubic has a = -0.75. Beside it torch's
bilinear enlargement, for a network's inside, with a faster gradient. Torch alone.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel, 0 beyond 2."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def resize_bicubic(picture: Tensor, scale: float, *, is_8bit: bool = False) -> Tensor:
    """Resizes as MATLAB's ``imresize(picture, scale)`` does: bit for bit the small pictures of Set5 and Set14.

    Args:
        picture: float ``(..., h, w)`` in [0, 1].
        scale: below 1 with antialiasing, which is MATLAB's default.
        is_8bit: as for MATLAB's pictures of whole numbers: clipped and rounded to 8 bits, also after the columns, and
            again after the rows.

    Returns:
        ``(..., ceil(h * scale), ceil(w * scale))``, of the picture's type.
    """
    rows, columns = (_make_matrix(length, scale) for length in picture.shape[-2:])
    if not is_8bit:
        return rows.to(picture) @ picture @ columns.to(picture).mT
    levels = _round_to_8bit(rows.to(picture.device) @ _round_to_8bit(picture.double() * 255))
    return (_round_to_8bit(levels @ columns.to(picture.device).mT) / 255).to(picture.dtype)


def _round_to_8bit(levels: Tensor) -> Tensor:
    return (levels.clamp(0, 255) + 0.5).floor()  # halves upwards; torch's own rounding takes them to even numbers


@functools.lru_cache(maxsize=8)  # training needs six at most, and of large pictures each takes 100 MB
def _make_matrix(length: int, scale: float) -> Tensor:
    """``(ceil(length * scale), length)``: what each old pixel gives to each new one.

    Beyond the border the outermost pixel is repeated, as in the MATLAB that made the test sets; BasicSR's mirrors.
    """
    shrink = min(scale, 1)
    centers = (torch.arange(math.ceil(length * scale), dtype=torch.float64)[:, None] + 0.5) / scale - 0.5
    taps = torch.floor(centers - 2 / shrink) + torch.arange(math.ceil(4 / shrink) + 2)
    weights = cubic((centers - taps) * shrink)
    weights /= weights.sum(1, keepdim=True)
    places = taps.long().clamp(0, length - 1)
    return torch.zeros(len(centers), length, dtype=torch.float64).scatter_add(1, places, weights)


class BicubicEnlargement(nn.Module):
    """``resize_bicubic`` by a whole number as one convolution: fast, differentiable, exported as such.

    ``(n, c, h, w)`` to ``(n, c, h * scale, w * scale)``; in float32 under autocast too.
    """

    halo = 2  # input pixels around a pixel that its result depends on

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.upscale = scale
        centers = (torch.arange(scale)[:, None] + 0.5) / scale - 0.5  # of the new pixels in one old pixel
        line = cubic(centers - torch.arange(-self.halo, self.halo + 1))  # (scale, 5)
        kernels = torch.einsum("iy,jx->ijyx", line, line).flatten(0, 1)[:, None]  # (scale^2, 1, 5, 5)
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernels = self.kernels.to(x.dtype).repeat(channels, 1, 1, 1)
        with torch.autocast(x.device.type, enabled=False):  # 8 bits of bfloat16 would be the picture's whole precision
            phases = F.conv2d(F.pad(x, (self.halo,) * 4, mode="replicate"), kernels, groups=channels)
        return F.pixel_shuffle(phases, self.upscale)


def enlarge_bilinear(x: Tensor, scale: int) -> Tensor:
    """``F.interpolate``'s bilinear enlargement: ``(n, c, h, w)`` to ``(n, c, h * scale, w * scale)``."""
    if x.is_cuda and x.requires_grad:
        return BilinearEnlargement.apply(x, scale)
    return _interpolate(x, scale, "bilinear")


def _interpolate(x: Tensor, scale: int, mode: str) -> Tensor:
    return F.interpolate(x, scale_factor=float(scale), mode=mode, align_corners=False)


class BilinearEnlargement(torch.autograd.Function):
    """With the gradient as two products with small matrices.

    On a GPU ``torch.compile`` makes atomic additions of torch's own: a sixth of the time of a step of HRANet.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: int) -> Tensor:
        ctx.size, ctx.dtype, ctx.scale = x.shape[2:], x.dtype, scale
        return _interpolate(x, scale, "bilinear")

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (height, width), scale = ctx.size, ctx.scale
        # Each (old, new): what each old pixel gives to each new one.
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        rows, columns = (
            _interpolate(torch.eye(n, device=gradient.device, dtype=dtype)[None], scale, "linear")[0].to(gradient.dtype)
            for n in ctx.size
        )
        count, channels = gradient.shape[:2]
        lines = gradient.permute(0, 2, 3, 1).reshape(count, height * scale, -1)  # a view of channels-last memory
        lines = (rows @ lines).reshape(count * height, width * scale, channels)
        small = (columns @ lines).reshape(count, height, width, channels)
        return small.permute(0, 3, 1, 2).to(ctx.dtype), None
