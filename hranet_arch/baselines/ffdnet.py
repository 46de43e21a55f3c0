"""FFDNet, one network for all noise levels: it is told which one.

Source: K. Zhang, W. Zuo, L. Zhang, «FFDNet: toward a fast and flexible solution for CNN-based image denoising», IEEE
Transactions on Image Processing 27(9), 2018, section III. This file needs torch and nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FFDNet(nn.Module):
    """Convolutions on the picture's four half-size sub-images, beside a map of the noise level (section III)::

        z = pixel_unshuffle(x, 2)                        (n, 4c, h/2, w/2)
        M = sigma / 255, everywhere                      (n, 1, h/2, w/2)
        y = pixel_shuffle(F([z, M]), 2)                  (n, c, h, w)

    ``F`` is ``num_conv`` convolutions of 3x3 with ReLUs between them; it gives the clean picture, not the noise. Input
    and output are ``(n, c, h, w)`` in [0, 1], any ``h, w >= 1``; of an odd size the last row or column is repeated,
    and cut off again.

    **The noise level.** The network must know it. ``forward(x, sigma)`` takes it, in grey levels, one for all samples
    or one for each; ``DenoisingModel`` gives it, from the dataset. Who calls ``forward(x)``, as BasicSR's own models
    do, gets ``self.sigma``, which the argument ``sigma`` sets and which may be changed at any time. It is no weight
    and not in the state dict: a network loaded from a file expects noise of 25 until it is told otherwise. Noise of
    another level than the network was told is removed badly, and nothing warns of it.

    The paper's networks: grey 15 convolutions of width 64, colour 12 of width 96; trained for levels from 0 to 75.

    Args:
        num_in_ch: channels of the noisy image: 1 (grey) or 3 (RGB).
        num_out_ch: channels of the clean image; equals ``num_in_ch``.
        num_feat: width of every layer.
        num_conv: number of convolutions, at least 2.
        sigma: the noise level in grey levels (0 or more) where ``forward`` is not given one.

    Raises:
        ValueError: for a value outside of the ranges above.
    """

    tile_multiple = 2  # tiles start where sub-images have a pixel

    def __init__(
        self, *, num_in_ch: int = 1, num_out_ch: int = 1, num_feat: int = 64, num_conv: int = 15, sigma: float = 25
    ) -> None:
        super().__init__()
        _require(num_in_ch >= 1, "num_in_ch", num_in_ch, "at least 1")
        _require(num_out_ch == num_in_ch, "num_out_ch", num_out_ch, f"equal to num_in_ch ({num_in_ch})")
        _require(num_feat >= 1, "num_feat", num_feat, "at least 1")
        _require(num_conv >= 2, "num_conv", num_conv, "at least 2")
        is_number = isinstance(sigma, (int, float)) and not isinstance(sigma, bool)
        _require(is_number and 0 <= sigma < math.inf, "sigma", sigma, "a noise level in grey levels, 0 or more")

        self.num_conv = num_conv
        self.sigma = sigma
        layers: list[nn.Module] = [nn.Conv2d(4 * num_in_ch + 1, num_feat, 3, padding=1), nn.ReLU()]
        for _ in range(num_conv - 2):
            layers += [nn.Conv2d(num_feat, num_feat, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(num_feat, 4 * num_out_ch, 3, padding=1))
        for layer in self.model:
            if isinstance(layer, nn.Conv2d):  # orthogonal, as in the paper; the gain makes up for what a ReLU cuts off
                nn.init.orthogonal_(layer.weight, gain=2**0.5)

    def forward(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """Denoises; see the class.

        Args:
            x: ``(n, c, h, w)`` in [0, 1].
            sigma: the noise level in grey levels, a number or a tensor with one value or ``n``; None: ``self.sigma``.
        """
        height, width = x.shape[-2:]
        z = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), "replicate"), 2)  # (n, 4c, h/2, w/2)
        m = self.noise_level_map(z, self.sigma if sigma is None else sigma)  # (n, 1, h/2, w/2)
        y = self.model(torch.cat([z, m], dim=1))  # (n, 4c, h/2, w/2)
        return F.pixel_shuffle(y, 2)[..., :height, :width]

    def noise_level_map(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """The map M: ``(n, 1, h, w)`` for sub-images ``z`` of ``(n, 4c, h, w)``.

        Raises:
            ValueError: if there are neither one nor ``n`` noise levels.
        """
        levels = torch.as_tensor(sigma, dtype=z.dtype, device=z.device).reshape(-1, 1, 1, 1)
        if levels.shape[0] not in (1, z.shape[0]):
            raise ValueError(
                f"FFDNet: {levels.shape[0]} noise levels for {z.shape[0]} pictures; give one, or one for each."
            )
        return (levels / 255).expand(z.shape[0], 1, *z.shape[-2:])

    @property
    def halo(self) -> int:
        """Pixels around a tile that its result depends on: two for each convolution, since it sees half-size images."""
        return 2 * self.num_conv


def _require(is_met: bool, name: str, value: object, rule: str) -> None:
    if not is_met:
        raise ValueError(f"FFDNet: {name}={value!r} is not allowed: it must be {rule}.")
