"""For inference on the CPU: each convolution and the ReLU behind it in one pass of oneDNN, PyTorch's library for it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hranet_arch import arithmetic, eight_bits
from hranet_arch.hranet import ConvReLU, LightweightBlock

COLORS = 3  # of a picture at most


def is_available(precision: str = "fp32") -> bool:
    """Whether this build of PyTorch has the operator, and this processor computes in ``precision`` by it.

    The operator is what ``torch.compile`` makes of a convolution and a ReLU; PyTorch documents it nowhere, so nothing
    may rest on its being there.
    """
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return has_operator and precision in ("fp32", "bf16") and arithmetic.is_fast(precision, torch.device("cpu"))


def fuse(network: nn.Module, precision: str = "fp32") -> nn.Module:
    """A copy of a network that computes the same, up to rounding, faster: for inference on the CPU.

    A ReLU that reads a picture again after the convolution has written it takes as long as the memory does: 8 to 16 %
    of HRANet-S's time in bf16 with AMX, and nothing without (``docs/performance.md``, *without fuse*). Weights
    are laid out channels-last. Where the network gives NaN, oneDNN's ReLUs give 0: check weights before.

    Args:
        network: in evaluation mode, on the CPU, BatchNorms folded. Fused are ``ConvReLU`` and, inside an
            ``nn.Sequential``, an ``nn.Conv2d`` that an ``nn.ReLU`` follows, where they pad by zeros.
        precision: of the fused convolutions, ``'fp32'`` or ``'bf16'``; the rest is left to autocast. ``'int8'``: of the
            large convolutions of HRANet's lightweight blocks; the others as ``arithmetic.without_8_bits`` says.
    """
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    if precision == "int8":
        _quantize_blocks(network)
    precision = arithmetic.without_8_bits(precision, torch.device("cpu"))
    if not is_available(precision):
        return network
    dtype = arithmetic.DTYPES[precision]
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fuse_sequence(module, dtype)
        for name, child in module.named_children():
            if isinstance(child, ConvReLU) and _has_plain_padding(child):
                setattr(module, name, FusedConvReLU(child, dtype))
    return network


def _fuse_sequence(sequence: nn.Sequential, dtype: torch.dtype) -> None:
    kept = [i for i, layer in enumerate(sequence) if not isinstance(layer, nn.Identity)]
    for i, following in zip(kept, kept[1:]):
        conv, relu = sequence[i], sequence[following]
        if type(conv) is nn.Conv2d and type(relu) is nn.ReLU and _has_plain_padding(conv):
            sequence[i], sequence[following] = FusedConvReLU(conv, dtype), nn.Identity()


def _quantize_blocks(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, LightweightBlock):
                setattr(module, name, EightBitBlock(child))


def _has_plain_padding(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class FusedConvReLU(nn.Module):
    """A convolution and the ReLU behind it, by one operator; its weights are constants.

    The result is of ``dtype``, and so is what is multiplied, but where the picture comes in: its rounding is a large
    part of what 16 bits cost (``docs/performance.md``), and there is little to multiply.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        own = torch.float32 if conv.in_channels <= COLORS else dtype
        self.weight = conv.weight.detach().to(own, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(own)
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        y = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, "relu", [], "")
        return y.to(self.dtype)


class EightBitBlock(nn.Module):
    """A lightweight block whose convolutions of 5x5 and 3x3, 34 of 37 multiplications, are in 8 bits.

    In these it costs nothing that can be measured; in others it does (``docs/performance.md``). The steps are those of
    what is computed at once: a picture, a tile or a batch.
    """

    def __init__(self, block: LightweightBlock) -> None:
        super().__init__()
        self.norm, self.separable1, self.separable2 = block.norm, block.separable1, block.separable2
        levels = eight_bits.count_weight_levels()
        self.conv5x5 = eight_bits.QuantizedConvReLU(block.conv5x5, levels)
        self.conv3x3 = eight_bits.QuantizedConvReLU(block.conv3x3, levels)
        self.conv1x1 = block.conv1x1

    def forward(self, z: Tensor) -> Tensor:
        u = self.norm(z)
        s = self.separable1(u) + self.separable2(u)
        levels, step = eight_bits.quantize(s)
        return self.conv1x1(self.conv5x5(levels, step, s.dtype) + self.conv3x3(levels, step, s.dtype))
