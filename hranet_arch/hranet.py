"""HRANet, the heterogeneous residual attention network for image denoising, and for super-resolution.

Source: «An image denoising method and system based on a heterogeneous residual attention neural network model»
(Chinese patent text); claim numbers below are its claims. ``docs/method.md`` says, claim by claim, which class holds
it and what was chosen where the source is silent. This file needs torch and ``resize.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hranet_arch.resize import BicubicEnlargement, enlarge_bilinear


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of an ``(n, c, h, w)`` tensor.

    In channels-last memory, where a pixel's channels lie side by side, nothing is copied; in contiguous memory the
    input is.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvReLU(nn.Conv2d):
    """A convolution and the ReLU behind it, which ``fusion.py`` computes in one go."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class LightweightBlock(nn.Module):
    """LWB, the lightweight block (claim 4): layer norm, two depthwise-separable branches, a 5x5 and a 3x3 branch.

    The source leaves open how two branches are "fused"; they are added here: concatenation would double the cost of
    the 5x5 convolution.

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the output and of everything inside.
    """

    def __init__(self, *, num_in_ch: int, num_feat: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(num_in_ch)
        self.separable1 = _depthwise_separable(num_in_ch, num_feat)
        self.separable2 = _depthwise_separable(num_in_ch, num_feat)
        self.conv5x5 = ConvReLU(num_feat, num_feat, 5, padding=2)
        self.conv3x3 = ConvReLU(num_feat, num_feat, 3, padding=1)
        self.conv1x1 = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, z: Tensor) -> Tensor:
        u = self.norm(z)
        s = self.run_dense(u) if u.is_cuda and self.training else self.separable1(u) + self.separable2(u)
        t = self.conv5x5(s) + self.conv3x3(s)
        return self.conv1x1(t)

    def run_dense(self, u: Tensor) -> Tensor:
        """The two branches as the one 3x3 convolution that they are equal to.

        That is four times their arithmetic, but a third of what four small convolutions read and write, which is what
        a GPU waits for: ``docs/performance.md`` has what it gains there. Hooks on the four are not called.
        """
        pairs = [tuple(branch) for branch in (self.separable1, self.separable2)]
        weight = sum(depthwise.weight * pointwise.weight for pointwise, depthwise in pairs)  # (out, in, 3, 3)
        # The pointwise biases reach the depthwise taps inside of the picture alone, not in the zeros around it.
        taps = sum(depthwise.weight * pointwise.bias[:, None, None, None] for pointwise, depthwise in pairs)
        bias = sum(depthwise.bias for _, depthwise in pairs)
        inside = F.conv2d(torch.ones_like(u[:1, :1]), taps, bias, padding=1)  # (1, out, h, w)
        return F.conv2d(u, weight, padding=1) + inside


def _depthwise_separable(num_in_ch: int, num_feat: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in_ch, num_feat, 1),
        nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=num_feat),
    )


class EnhancedChannelAttention(nn.Module):
    """ECA, enhanced channel attention (claim 5): pool, 1x1, dilated 3x3, ReLU, 1x1, and the product with the input.

    What is pooled over is open in the source. With ``attention_pool='global'`` the pooled map is one pixel, the
    dilated convolution sees only its centre tap, and the result depends on the size of the picture. With a stride the
    map keeps a grid of one value per ``stride x stride`` pixels, is enlarged back bilinearly, and the network stays
    local: a picture cut into tiles gives the whole picture's result (``HRANet.halo``).

    Args:
        num_feat: channels of input and output.
        squeeze_factor: the two inner convolutions have ``num_feat // squeeze_factor`` channels.
        attention_pool: ``'global'``, or the stride in pixels of the average pooling.
        attention_gate: ``'none'`` multiplies by the raw attention value, as the source writes; ``'sigmoid'`` by its
            sigmoid.
    """

    dilation = 2

    def __init__(
        self,
        *,
        num_feat: int,
        squeeze_factor: int,
        attention_pool: Literal["global"] | int,
        attention_gate: Literal["none", "sigmoid"],
    ) -> None:
        super().__init__()
        squeezed = num_feat // squeeze_factor
        self.attention_pool = attention_pool
        self.attention_gate = attention_gate
        self.mean: Tensor | None = None
        self.squeeze = nn.Conv2d(num_feat, squeezed, 1)
        self.dilated = nn.Conv2d(squeezed, squeezed, 3, padding=self.dilation, dilation=self.dilation)
        self.expand = nn.Conv2d(squeezed, num_feat, 1)

    def forward(self, z: Tensor) -> Tensor:
        a = self.expand(F.relu(self.dilated(self.squeeze(self.pool(z)))))
        if self.attention_gate == "sigmoid":
            a = torch.sigmoid(a)
        return self.unpool(a, z) * z

    def pool(self, z: Tensor) -> Tensor:
        if self.attention_pool == "global":
            return F.adaptive_avg_pool2d(z, 1) if self.mean is None else self.mean.to(z)  # (n, c, 1, 1)
        # A cell that the border cuts is the mean of the pixels it has: any h, w >= 1 will do.
        return F.avg_pool2d(z, self.attention_pool, ceil_mode=True)  # (n, c, ceil(h / stride), ceil(w / stride))

    def unpool(self, a: Tensor, z: Tensor) -> Tensor:
        if self.attention_pool == "global":
            return a
        # By the exact stride, then cropped: scaling to (h, w) would move the grid with the size of the picture.
        return enlarge_bilinear(a, self.attention_pool)[:, :, : z.shape[2], : z.shape[3]]

    @contextlib.contextmanager
    def given(self, mean: Tensor) -> Iterator[None]:
        """Inside, global attention takes ``mean`` of ``(n, c, 1, 1)``, a whole picture's, in the place of its own."""
        self.mean = mean
        try:
            yield
        finally:
            self.mean = None


class HRAB(nn.Module):
    """Heterogeneous residual attention block (claim 3): LWB, ECA, LWB, and the block's input added back.

    Where the input has more channels than the output (the block behind the long skip), a 1x1 convolution projects
    the shortcut, as residual networks do where widths differ.
    """

    def __init__(
        self,
        *,
        num_in_ch: int,
        num_feat: int,
        squeeze_factor: int,
        attention_pool: Literal["global"] | int,
        attention_gate: Literal["none", "sigmoid"],
    ) -> None:
        super().__init__()
        self.lwb1 = LightweightBlock(num_in_ch=num_in_ch, num_feat=num_feat)
        self.eca = EnhancedChannelAttention(
            num_feat=num_feat,
            squeeze_factor=squeeze_factor,
            attention_pool=attention_pool,
            attention_gate=attention_gate,
        )
        self.lwb2 = LightweightBlock(num_in_ch=num_feat, num_feat=num_feat)
        self.shortcut = nn.Identity() if num_in_ch == num_feat else nn.Conv2d(num_in_ch, num_feat, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.shortcut(z) + self.lwb2(self.eca(self.lwb1(z)))


class CoarseDenoising(nn.Module):
    """Part 2 (claims 1 and 3): the blocks in a row; the last also takes the shallow features.

    Returns the output of the first and of the last block: both go on to the CNN denoiser.
    """

    def __init__(
        self,
        *,
        num_feat: int,
        num_block: int,
        squeeze_factor: int,
        attention_pool: Literal["global"] | int,
        attention_gate: Literal["none", "sigmoid"],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            HRAB(
                num_in_ch=width,
                num_feat=num_feat,
                squeeze_factor=squeeze_factor,
                attention_pool=attention_pool,
                attention_gate=attention_gate,
            )
            for width in [num_feat] * (num_block - 1) + [2 * num_feat]
        )

    def forward(self, f0: Tensor) -> tuple[Tensor, Tensor]:
        f1 = f = self.blocks[0](f0)
        for block in self.blocks[1:-1]:
            f = block(f)
        return f1, self.blocks[-1](torch.cat([f0, f], dim=1))


class CNNDenoiser(nn.Sequential):
    """CD, the CNN denoiser (claim 6): five times convolution, BatchNorm, ReLU, then one convolution; the residual."""

    def __init__(self, *, num_in_ch: int, num_feat: int, num_out_ch: int) -> None:
        layers: list[nn.Module] = []
        for width in [num_in_ch, *[num_feat] * 4]:
            # The BatchNorm behind it has a bias of its own.
            conv = nn.Conv2d(width, num_feat, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(num_feat), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Conv2d(num_feat, num_out_ch, 3, padding=1))

    def fold_batchnorm(self) -> None:
        """Puts each BatchNorm's running statistics into the convolution before it (evaluation mode, in place)."""
        for i, module in enumerate(self):
            if isinstance(module, nn.BatchNorm2d):
                self[i - 1] = fuse_conv_bn_eval(self[i - 1], module)
                self[i] = nn.Identity()


class ResidualOperation(nn.Module):
    """Part 3's last step (claim 1): the noisy image minus the estimated residual."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x - residual


class HRANet(nn.Module):
    """Heterogeneous residual attention network (claim 1, the best embodiment).

    The four named modules are the four sub-modules of the source's system claim 8::

        F0     = feature_extraction(x)                     "CR", convolution and ReLU      (n, C, h, w)
        F1, F3 = coarse_denoising(F0)                      three blocks; F0 joins the last
        R      = detail_enhancement(cat[F1, F3])           "CD", the CNN denoiser          (n, c, h, w)
        y      = residual_operation(x, R) = x - R

    Input and output are ``(n, c, h, w)`` in [0, 1], any ``h, w >= 1``.

    With ``upscale`` s the same parts work on the small picture, the last convolution gives ``c * s * s`` channels, and
    pixels are shuffled out of them (Shi et al., CVPR 2016)::

        y      = residual_operation(enlargement(x), shuffle(R))                                   (n, c, s * h, s * w)

    All layers but that last one have the shapes of the denoising network's, whose weights they can start from.

    Args:
        num_in_ch: channels of the noisy image: 1 (grey) or 3 (RGB).
        num_out_ch: channels of the clean image; equals ``num_in_ch``, since the noise is subtracted from the input.
        num_feat: width ``C`` of every layer.
        num_block: number of blocks, at least 3; more of them make a larger network.
        squeeze_factor: the attention's inner width is ``num_feat // squeeze_factor``.
        attention_pool: ``'global'``, or a stride in pixels; see ``EnhancedChannelAttention`` and
            ``docs/attention_pool.md`` for the measurement behind the default.
        attention_gate: ``'none'`` (the source) or ``'sigmoid'``.
        upscale: 1 to restore a picture in its size; 2, 3 or 4 to enlarge it, by bicubic interpolation minus a residual.

    Raises:
        ValueError: for a value outside of the ranges above.
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 1,
        num_out_ch: int = 1,
        num_feat: int = 64,
        num_block: int = 3,
        squeeze_factor: int = 4,
        attention_pool: Literal["global"] | int = 8,
        attention_gate: Literal["none", "sigmoid"] = "none",
        upscale: Literal[1, 2, 3, 4] = 1,
    ) -> None:
        super().__init__()
        _require(_is_whole(num_in_ch, 1), "num_in_ch", num_in_ch, "a whole number, at least 1")
        is_same = _is_whole(num_out_ch, 1) and num_out_ch == num_in_ch
        _require(is_same, "num_out_ch", num_out_ch, f"equal to num_in_ch ({num_in_ch})")
        _require(_is_whole(num_block, 3), "num_block", num_block, "a whole number, at least 3")
        _require(_is_whole(squeeze_factor, 1), "squeeze_factor", squeeze_factor, "a whole number, at least 1")
        rule = f"a whole number, at least squeeze_factor ({squeeze_factor})"
        _require(_is_whole(num_feat, squeeze_factor), "num_feat", num_feat, rule)
        is_pool = attention_pool == "global" or _is_whole(attention_pool, 1)
        _require(is_pool, "attention_pool", attention_pool, "'global' or a stride >= 1")
        _require(attention_gate in ("none", "sigmoid"), "attention_gate", attention_gate, "'none' or 'sigmoid'")
        _require(_is_whole(upscale, 1) and upscale <= 4, "upscale", upscale, "1, 2, 3 or 4")

        self.upscale = upscale
        self.num_block = num_block
        self.attention_pool = attention_pool
        self.feature_extraction = nn.Sequential(nn.Conv2d(num_in_ch, num_feat, 3, padding=1), nn.ReLU(inplace=True))
        self.coarse_denoising = CoarseDenoising(
            num_feat=num_feat,
            num_block=num_block,
            squeeze_factor=squeeze_factor,
            attention_pool=attention_pool,
            attention_gate=attention_gate,
        )
        self.detail_enhancement = CNNDenoiser(
            num_in_ch=2 * num_feat, num_feat=num_feat, num_out_ch=num_out_ch * upscale**2
        )
        self.enlargement = BicubicEnlargement(upscale) if upscale > 1 else nn.Identity()
        self.shuffle = nn.PixelShuffle(upscale) if upscale > 1 else nn.Identity()
        self.residual_operation = ResidualOperation()

    def forward(self, x: Tensor) -> Tensor:
        f0 = self.feature_extraction(x)
        f1, f3 = self.coarse_denoising(f0)
        residual = self.detail_enhancement(torch.cat([f1, f3], dim=1))
        return self.residual_operation(self.enlargement(x), self.shuffle(residual))

    def fold_batchnorm(self) -> HRANet:
        """Folds the BatchNorms into their convolutions, exactly, for inference; in place, returns the network.

        The folded network computes what the unfolded one computes in evaluation mode, has fewer layers and other
        state-dict keys, and can no longer be trained as the method says: fold a copy, after loading the weights.
        """
        self.eval()
        self.detail_enhancement.fold_batchnorm()
        return self

    @property
    def tile_multiple(self) -> int:
        """Tiles start at multiples of this many pixels, so that each sees the attention grid of the whole picture."""
        return 1 if self.attention_pool == "global" else self.attention_pool

    @property
    def halo(self) -> int | None:
        """Pixels around a tile that its result depends on; None where the attention is global and all of them do."""
        return None if self.attention_pool == "global" else self.local_halo

    @property
    def local_halo(self) -> int:
        """``halo`` with the averages of ``global_attentions`` given."""
        stride = self.tile_multiple
        lightweight = 1 + 2  # depthwise 3x3, then 5x5
        # Of the cell a pixel lies in: 1 cell by the bilinear map, `dilation` by the convolution, and the cell's width.
        attention = (1 + EnhancedChannelAttention.dilation + 1) * stride - 1
        if self.attention_pool == "global":
            attention = 0
        reach = 1 + self.num_block * (2 * lightweight + attention) + 6  # CR, blocks, CD
        return -(-reach // stride) * stride

    @property
    def global_attentions(self) -> list[EnhancedChannelAttention]:
        """The attentions that average over the whole picture, in the order in which they run."""
        blocks = self.coarse_denoising.blocks if self.attention_pool == "global" else ()
        return [block.eca for block in blocks]


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(is_met: bool, name: str, value: object, rule: str) -> None:
    if not is_met:
        raise ValueError(f"HRANet: {name}={value!r} is not allowed: it must be {rule}.")
