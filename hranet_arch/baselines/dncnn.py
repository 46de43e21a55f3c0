"""DnCNN, the denoiser that every later one is compared with.

Source: K. Zhang, W. Zuo, Y. Chen, D. Meng, L. Zhang, «Beyond a Gaussian denoiser: residual learning of deep CNN for
image denoising», IEEE Transactions on Image Processing 26(7), 2017, section III. This file needs torch and nothing
else.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class DnCNN(nn.Module):
    """Convolutions of 3x3 in a row; they estimate the noise, which is subtracted (section III-B)::

        R = conv(relu(bn(conv( ... relu(conv(x)) ... ))))    num_conv convolutions
        y = x - R

    Input and output are ``(n, c, h, w)`` in [0, 1], any ``h, w >= 1``.

    The paper's networks, all of width 64: DnCNN-S has 17 convolutions and knows one noise level; DnCNN-B (blind),
    the published colour networks and DnCNN-3 have 20. DnCNN-3 takes one channel, the Y of YCbCr, for denoising,
    super-resolution and JPEG alike; a low-resolution picture is enlarged bicubically to its final size first.

    There are two forms of one network. With ``bn`` there is a BatchNorm behind each convolution but the first and the
    last: train this one. Without, each convolution has a bias, and the state dict is that of the published files
    (``model.0``, ``model.2``, ``model.4``, ...), in whose weights the BatchNorms were folded. ``fold_batchnorm`` leads
    from the first form to the second.

    Args:
        num_in_ch: channels of the noisy image: 1 (grey or Y) or 3 (RGB).
        num_out_ch: channels of the clean image; equals ``num_in_ch``, since the noise is subtracted from the input.
        num_feat: width of every layer.
        num_conv: number of convolutions, the paper's depth D; at least 2.
        bn: whether there are BatchNorms.

    Raises:
        ValueError: for a value outside of the ranges above.
    """

    def __init__(
        self, *, num_in_ch: int = 1, num_out_ch: int = 1, num_feat: int = 64, num_conv: int = 17, bn: bool = True
    ) -> None:
        super().__init__()
        _require(num_in_ch >= 1, "num_in_ch", num_in_ch, "at least 1")
        _require(num_out_ch == num_in_ch, "num_out_ch", num_out_ch, f"equal to num_in_ch ({num_in_ch})")
        _require(num_feat >= 1, "num_feat", num_feat, "at least 1")
        _require(num_conv >= 2, "num_conv", num_conv, "at least 2")
        _require(isinstance(bn, bool), "bn", bn, "true or false")

        self.num_conv = num_conv
        layers: list[nn.Module] = [nn.Conv2d(num_in_ch, num_feat, 3, padding=1), nn.ReLU()]
        for _ in range(num_conv - 2):
            # The BatchNorm behind it has a bias of its own.
            layers.append(nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=not bn))
            layers += [nn.BatchNorm2d(num_feat), nn.ReLU()] if bn else [nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(num_feat, num_out_ch, 3, padding=1))
        if not bn:
            # Nothing else keeps the scale: of torch's first weights, 17 ReLUs leave no difference between pixels.
            for layer in self.model[:-1:2]:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x - self.model(x)

    def fold_batchnorm(self) -> DnCNN:
        """Folds the BatchNorms into their convolutions, exactly, for inference; in place, returns the network.

        The folded network is the one with ``bn=False``, layer names included: its state dict has the layout of the
        published files.
        """
        self.eval()
        layers: list[nn.Module] = []
        for layer in self.model:
            if isinstance(layer, nn.BatchNorm2d):
                layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
            else:
                layers.append(layer)
        self.model = nn.Sequential(*layers)
        return self.eval()

    @property
    def halo(self) -> int:
        """Pixels around a tile that its result depends on: one for each convolution."""
        return self.num_conv


def _require(is_met: bool, name: str, value: object, rule: str) -> None:
    if not is_met:
        raise ValueError(f"DnCNN: {name}={value!r} is not allowed: it must be {rule}.")
