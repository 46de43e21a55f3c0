"""For inference on the CPU: each convolution and the ReLU behind it in one pass of oneDNN, PyTorch's library for it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hranet_arch import arithmetic
from hranet_arch.hranet import ConvReLU


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
    are laid out channels-last.

    Args:
        network: in evaluation mode, on the CPU, BatchNorms folded. Fused are ``ConvReLU`` and, inside an
            ``nn.Sequential``, an ``nn.Conv2d`` that an ``nn.ReLU`` follows, where they pad by zeros.
        precision: of the fused convolutions, ``'fp32'`` or ``'bf16'``; the rest is left to autocast.
    """
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
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


def _has_plain_padding(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class FusedConvReLU(nn.Module):
    """A convolution and the ReLU behind it, by one operator; its weights are constants."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, "relu", [], "")
