"""Gives the dead channels of an HRANet new weights, with its function nearly kept, to train it on from there.

    python scripts/revive_weights.py --weights hranet_gray_s25 --pictures datasets/BSD400 --sigma 25 \\
        --output experiments/revived.safetensors

A channel is dead where the ReLU behind its 5x5 or 3x3 convolution lets next to no pixel through: it gets no gradient,
and never comes back. It gets random weights instead, active at half of the pixels. Where both convolutions of a channel
are dead, what reads it begins at zero; where one lives, the other's new weights are small. "ReDo" (Sokar et al., ICML
2023) does so while training. ``path.pretrain_network_g`` takes the file; what came of it stands in ``docs/recipes.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from widen_weights import read_hranet, write_hranet

from hranet_arch.errors import InputError
from hranet_arch.hranet import ConvReLU, HRANet, LightweightBlock
from hranet_arch.images import decode_image, list_pictures, to_float, to_tensor

DEAD = 0.001  # the share of pixels that a dead channel lets through, at most
SMALL = 0.05  # a revived channel beside a living one, in living channels' standard deviations
PICTURES, SIDE = 24, 180  # evenly from the folder; pixels


@torch.no_grad()
def revive(network: HRANet, noisy: Tensor) -> int:
    """Gives dead channels new weights, block after block, by what they see in ``noisy``; returns how many.

    Args:
        network: in evaluation mode; changed in place.
        noisy: ``(n, c, h, w)`` in [0, 1], as in training.
    """
    blocks = [module for module in network.modules() if isinstance(module, LightweightBlock)]
    return sum(_revive_block(network, block, noisy) for block in blocks)


def _revive_block(network: HRANet, block: LightweightBlock, noisy: Tensor) -> int:
    seen: list[Tensor] = []
    with block.conv5x5.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0])):
        network(noisy)
    convs = (block.conv5x5, block.conv3x3)
    outputs = [conv(seen[0]) for conv in convs]
    dead = [(output > 0).float().mean((0, 2, 3)) < DEAD for output in outputs]
    both = dead[0] & dead[1]
    block.conv1x1.weight[:, both] = 0
    for conv, output, which in zip(convs, outputs, dead):
        if which.any():
            alike = seen[0] if which.all() else output[:, ~which]
            spread = alike.std((0, 2, 3)).median()
            _draw(conv, seen[0], which, torch.where(both, spread, SMALL * spread))
    return sum(int(which.sum()) for which in dead)


def _draw(conv: ConvReLU, seen: Tensor, which: Tensor, spread: Tensor) -> None:
    """New weights of mean 0 and this spread before the ReLU, for some channels."""
    weight = torch.empty_like(conv.weight)
    nn.init.kaiming_uniform_(weight, a=5**0.5)  # as PyTorch begins
    weight -= weight.mean((2, 3), keepdim=True) / 2  # sees more of edges, less of even areas
    before = F.conv2d(seen, weight, padding=conv.padding)
    scale = spread / before.std((0, 2, 3))
    conv.weight[which] = (weight * scale[:, None, None, None])[which]
    conv.bias[which] = (-before.mean((0, 2, 3)) * scale)[which]


def load_noisy(folder: Path, color: str, sigma: float) -> Tensor:
    """Cuts of pictures of the folder with white noise, ``(n, c, h, w)``.

    Raises:
        InputError: if the cuts differ in size, as those of small pictures do, or there are none.
    """
    paths = list_pictures(folder)
    paths = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]
    generator = torch.Generator().manual_seed(1)
    cuts = []
    for path in paths:
        picture = decode_image(path.read_bytes(), str(path), color)[:SIDE, :SIDE]
        pixels = to_tensor(to_float(picture, str(path)))[None]
        cuts.append(pixels + torch.randn(pixels.shape, generator=generator) * sigma / 255)
    if len({cut.shape for cut in cuts}) != 1:
        raise InputError(f"{folder}: give a folder of pictures of at least {SIDE}x{SIDE} pixels.")
    return torch.cat(cuts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="NAME", help="a released HRANet, or a file")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="clean pictures, of its training")
    parser.add_argument("--sigma", type=float, required=True, help="of the noise it was trained for, in grey levels")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors to write")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights")
    arguments = parser.parse_args(argv)
    torch.manual_seed(arguments.seed)
    try:
        network, options = read_hranet(arguments.weights)
        color = "gray" if network.feature_extraction[0].in_channels == 1 else "rgb"
        count = revive(network.eval(), load_noisy(arguments.pictures, color, arguments.sigma))
        write_hranet(arguments.output, network, options)
    except (InputError, ValueError, OSError) as error:
        print(f"revive_weights: {error}", file=sys.stderr)
        return 1
    print(f"{count} channels revived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
