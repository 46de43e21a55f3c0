"""Makes the weights of a wider HRANet that computes what a narrower one computes, to train it on from there.

    python scripts/widen_weights.py --weights hranet_s_gray_s25 --num-feat 64 --output experiments/widened.safetensors

Every channel becomes several equal ones, and each weight that reads it is divided among them by chance: unequal parts
of one sum, so that the copies learn different things ("Net2Net", Chen, Goodfellow and Shlens, ICLR 2016). Layer norm
computes what it did, since all channels are repeated alike. ``path.pretrain_network_g`` takes the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from hranet_arch import baselines
from hranet_arch.errors import InputError
from hranet_arch.files import whole_file
from hranet_arch.hranet import HRANet
from hranet_arch.networks import find_weights, read_weights

SPREAD = 0.25  # standard deviation of a part's share, of which the mean is one over their number


def widen(narrow: HRANet, wide: HRANet) -> None:
    """Gives ``wide`` the function of ``narrow``, a whole number of times as wide and alike in all else.

    Raises:
        InputError: if the two differ in more than the width.
    """
    state, shapes = narrow.state_dict(), {name: value.shape for name, value in wide.state_dict().items()}
    if state.keys() != shapes.keys():
        raise InputError("the two networks differ in more than their width.")
    wide.load_state_dict({name: _widen(name, value, shapes[name]) for name, value in state.items()})


def _widen(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    if value.ndim == 0:  # BatchNorm's count of batches
        return value
    outputs, rest = divmod(shape[0], value.shape[0])
    inputs, rest_of_inputs = divmod(shape[1], value.shape[1]) if value.ndim > 1 else (1, 0)
    if rest or rest_of_inputs or value.shape[2:] != shape[2:]:
        raise InputError(f"{name}: {tuple(value.shape)} cannot be widened to {tuple(shape)}.")
    value = value.repeat_interleave(outputs, 0)
    if inputs == 1:
        return value
    shares = SPREAD * torch.randn(*value.shape[:2], inputs, *value.shape[2:])
    shares += 1 / inputs - shares.mean(2, keepdim=True)  # they add up to one
    return (value.unsqueeze(2) * shares).flatten(1, 2)


def read_hranet(weights: str) -> tuple[HRANet, dict]:
    """The network, and its ``network_g``.

    Raises:
        InputError: if there is no such weight file, or it is another network's.
    """
    path = find_weights(weights)
    params, description = read_weights(path)
    options = description.network_g
    if options is None or options.get("type") != "HRANet":
        raise InputError(f"{path}: is not said to be an HRANet's; released files and checkpoints of ours are.")
    return baselines.from_state_dict(params, options), options


def write_hranet(path: Path, network: HRANet, options: dict) -> None:
    """A file that says of which network it is.

    Raises:
        InputError: if its name is not one of safetensors, by which it would be read as another kind of file.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"--output {path}: give a name that ends in .safetensors.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(save(network.state_dict(), {"network_g": json.dumps(options)}))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="NAME", help="a released HRANet, or a file")
    parser.add_argument("--num-feat", type=int, required=True, help="the wider network's; a multiple of the other's")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors to write")
    parser.add_argument("--seed", type=int, default=0, help="of the shares")
    arguments = parser.parse_args(argv)
    torch.manual_seed(arguments.seed)
    try:
        narrow, options = read_hranet(arguments.weights)
        wider = {**options, "num_feat": arguments.num_feat}
        wide = HRANet(**{key: value for key, value in wider.items() if key != "type"})
        widen(narrow, wide)
        write_hranet(arguments.output, wide, wider)
    except (InputError, ValueError, OSError) as error:
        print(f"widen_weights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
