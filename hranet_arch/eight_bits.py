"""For inference on the CPU: convolutions that multiply in 8 bits, by oneDNN, PyTorch's library for it."""

from __future__ import annotations

import functools
import platform

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 127  # on each side of zero
ZERO = 128  # the level that stands for 0.0: oneDNN's operator takes levels without a sign
SMALLEST = torch.finfo(torch.float32).tiny


@functools.cache
def count_weight_levels() -> int:
    """How many levels on each side of zero weights may have, for right sums on this processor; 0: no 8 bits here.

    The operators are what ``torch.compile`` makes of quantised networks. PyTorch documents them nowhere, so nothing may
    rest on their being there. x86 processors without VNNI, the instructions for it, add two products in 16 bits, where
    those of weights of 127 levels do not fit, and those of 63 do: a sum of the largest ones shows it.
    """
    has_operators = hasattr(torch.ops.onednn, "qconv_prepack") and hasattr(torch.ops.onednn, "qconv2d_pointwise")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")  # elsewhere nobody has measured it
    if not (has_operators and is_x86 and torch.backends.mkldnn.is_available()):
        return 0
    conv, x = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False), torch.ones(1, 16, 4, 4)
    nn.init.ones_(conv.weight)
    with torch.autocast("cpu", enabled=False):
        expected = F.relu(conv(x))
    for levels in (LEVELS, 63):
        try:
            result = QuantizedConvReLU(conv, levels)(*quantize(x), torch.float32)
        except RuntimeError:  # another version's operators
            return 0
        if torch.allclose(result, expected, rtol=1e-3):
            return levels
    return 0


def quantize(x: Tensor) -> tuple[Tensor, float]:
    """A tensor in levels of equal steps, from minus its largest absolute value to that; and the size of a step.

    Returns:
        uint8, in the memory format of ``x``, so that ``x`` is ``(levels - ZERO) * step`` to half a step; of bfloat16,
        which has no more digits, to three quarters.
    """
    step = max(float(x.abs().amax()) / LEVELS, SMALLEST)
    # By way of int8: PyTorch turns numbers to uint8 several times as slowly. Turning the first bit adds 128.
    return x.mul(1 / step).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(ZERO), step


class QuantizedConvReLU(nn.Module):
    """A convolution and the ReLU behind it, by one operator, of what ``quantize`` returns.

    Args:
        conv: with padding by zeros. Its weights become constants, in steps of their own for each output channel.
        weight_levels: on each side of zero.
    """

    def __init__(self, conv: nn.Conv2d, weight_levels: int) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        self.steps = (weight.abs().amax((1, 2, 3)) / weight_levels).clamp(min=SMALLEST)
        levels = (weight / self.steps[:, None, None, None]).round().to(torch.int8)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.geometry = conv.stride, conv.padding, conv.dilation, conv.groups
        self.packed = torch.ops.onednn.qconv_prepack(levels, self.steps, 1.0, ZERO, *self.geometry)

    def forward(self, levels: Tensor, step: float, dtype: torch.dtype) -> Tensor:
        """The result is of ``dtype``, float32 or bfloat16."""
        return torch.ops.onednn.qconv2d_pointwise(
            levels, step, ZERO, self.packed, self.steps, self.zeros, self.bias, *self.geometry,
            1.0, 0, dtype, "relu", [], "",
        )  # fmt: skip
