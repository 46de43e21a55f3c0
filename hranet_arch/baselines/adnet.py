"""ADNet, a small denoiser with dilated convolutions and an attention between the input and the noise.

Source: C. Tian, Y. Xu, Z. Li, W. Zuo, L. Fei, H. Liu, «Attention-guided CNN for image denoising», Neural Networks 124,
2020, section 3, and where the text is short, its authors' code (hellloxiaotian/ADNet). This file needs torch and
nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SPARSE_BLOCK = range(1, 13)
ENHANCEMENT_BLOCK = range(13, 16)  # and the last convolution, the 16th
DILATED = (2, 5, 9, 12)


class ADNet(nn.Module):
    """Four blocks in a row (section 3)::

        s = SB(x)                       12 layers, those at 2, 5, 9 and 12 dilated by 2         (n, C, h, w)
        r = conv(FEB(s))                3 layers, then a convolution: a first residual          (n, c, h, w)
        a = conv1x1(tanh([x, r]))       the rest of FEB, which joins the input; AB's weights    (n, c, h, w)
        y = x - a * r                   AB's product; RB

    A layer is a convolution of 3x3, BatchNorm, ReLU. Input and output are ``(n, c, h, w)`` in [0, 1], any
    ``h, w >= 1``. The names in the state dict are those of the authors' files, less DataParallel's ``module.``.

    Args:
        num_in_ch: channels of the noisy image: 1 (grey) or 3 (RGB).
        num_out_ch: channels of the clean image; equals ``num_in_ch``, since the noise is subtracted from the input.
        num_feat: width ``C`` of every layer; the paper's is 64.

    Raises:
        ValueError: for a value outside of the ranges above.
    """

    def __init__(self, *, num_in_ch: int = 1, num_out_ch: int = 1, num_feat: int = 64) -> None:
        super().__init__()
        _require(num_in_ch >= 1, "num_in_ch", num_in_ch, "at least 1")
        _require(num_out_ch == num_in_ch, "num_out_ch", num_out_ch, f"equal to num_in_ch ({num_in_ch})")
        _require(num_feat >= 1, "num_feat", num_feat, "at least 1")

        for i in (*SPARSE_BLOCK, *ENHANCEMENT_BLOCK):
            self.add_module(f"conv1_{i}", _layer(num_in_ch if i == 1 else num_feat, num_feat, 2 if i in DILATED else 1))
        self.conv1_16 = nn.Conv2d(num_feat, num_out_ch, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(2 * num_out_ch, num_out_ch, 1)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        s = self._run(SPARSE_BLOCK, x)
        r = self.conv1_16(self._run(ENHANCEMENT_BLOCK, s))
        a = self.conv3(torch.tanh(torch.cat([x, r], dim=1)))
        return x - a * r

    def _run(self, block: range, z: Tensor) -> Tensor:
        for i in block:
            z = self.get_submodule(f"conv1_{i}")(z)
        return z

    def fold_batchnorm(self) -> ADNet:
        """Folds the BatchNorms into their convolutions, exactly, for inference; in place, returns the network.

        The folded network computes what the unfolded one computes in evaluation mode, has fewer layers and other
        state-dict keys, and can no longer be trained as the method says: fold a copy, after loading the weights.
        """
        self.eval()
        for layer in self.children():
            if isinstance(layer, nn.Sequential) and isinstance(layer[1], nn.BatchNorm2d):
                layer[0], layer[1] = fuse_conv_bn_eval(layer[0], layer[1]), nn.Identity()
        return self.eval()

    @property
    def halo(self) -> int:
        """Pixels around a tile that its result depends on: one for each convolution of 3x3, one more if dilated."""
        return 16 + len(DILATED)


def _layer(num_in_ch: int, num_feat: int, dilation: int) -> nn.Sequential:
    conv = nn.Conv2d(num_in_ch, num_feat, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_feat), nn.ReLU())


def _initialize(module: nn.Module) -> None:
    """The authors' first weights: small normal ones, BatchNorm's scale too, and that kept away from zero."""
    deviation = (2 / (9 * 64)) ** 0.5  # whatever the width
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=deviation)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, std=deviation)
        with torch.no_grad():
            module.weight.copy_(torch.where(module.weight < 0, -1.0, 1.0) * module.weight.abs().clamp(min=0.025))
        module.running_var.fill_(0.01)


def _require(is_met: bool, name: str, value: object, rule: str) -> None:
    if not is_met:
        raise ValueError(f"ADNet: {name}={value!r} is not allowed: it must be {rule}.")
