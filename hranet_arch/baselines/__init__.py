"""The peers that BasicSR lacks, and networks built from weights alone.

``recognize`` says which network a state dict belongs to, with which arguments; ``from_state_dict`` builds and loads it.
Both take the tensors by name, as ``checkpoints.select_params`` gives them. Importing this package needs torch alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hranet_arch.baselines.adnet import ADNet
from hranet_arch.baselines.dncnn import DnCNN
from hranet_arch.baselines.ffdnet import FFDNet
from hranet_arch.errors import InputError
from hranet_arch.hranet import HRANet

__all__ = ["ADNet", "DnCNN", "FFDNet", "from_state_dict", "recognize"]

Arguments = dict[str, int | bool]


def recognize(params: Mapping[str, Tensor]) -> tuple[type[nn.Module], Arguments] | None:
    """Finds the network that a state dict belongs to: DnCNN, FFDNet, ADNet or HRANet, BatchNorms folded or not.

    Names and shapes must be the network's, all of them. What leaves no trace in them is not among the arguments and
    keeps its default: HRANet's ``attention_pool`` and ``attention_gate``, FFDNet's ``sigma``. Nor can it be seen
    which noise a network was trained for, or whether a DnCNN of 20 layers is the blind one or DnCNN-3.

    Args:
        params: the tensors by name, without a leading ``module.``.

    Returns:
        The class and its arguments; None if it is none of these.
    """
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    for network, guess in _GUESSES.items():
        arguments = guess(shapes)
        if arguments is not None and _fits(network, arguments, params):
            return network, arguments
    return None


def from_state_dict(params: Mapping[str, Tensor], network_g: Mapping[str, object] | None = None) -> nn.Module:
    """Builds the network that a state dict belongs to and loads it, strictly; in evaluation mode, on the CPU.

    Args:
        params: as for ``recognize``, which also says what cannot be inferred.
        network_g: the network's ``type`` and arguments, as in an option file; inferred if None.

    Raises:
        InputError: if it is none of the networks that ``recognize`` knows, or not the one that ``network_g`` says.
    """
    found = recognize(params) if network_g is None else _read_options(network_g)
    if found is None:
        some = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(params.items())[:4])
        raise InputError(
            f"These weights ({len(params)} tensors: {some or 'none'}, ...) are not those of a DnCNN, FFDNet, ADNet or "
            "HRANet. Name the architecture and its arguments."
        )
    try:
        network = _build(*found, params)
        network.load_state_dict(dict(params))
    except (TypeError, ValueError, RuntimeError) as error:
        # torch's message lists every tensor that does not fit
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"These weights do not fit {dict(network_g or {})}: {reason}") from error
    return network.eval()


def _read_options(network_g: Mapping[str, object]) -> tuple[type[nn.Module], Arguments]:
    networks = {network.__name__: network for network in _GUESSES}
    arguments = dict(network_g)
    name = arguments.pop("type", None)
    if name not in networks:
        raise InputError(
            f"network_g: type={name!r} is not one of {', '.join(networks)}: only these are built here. "
            "`basicsr test` and `basicsr compare` run every network that is registered."
        )
    return networks[name], arguments


def _build(network: type[nn.Module], arguments: Arguments, params: Mapping[str, Tensor]) -> nn.Module:
    built = network(**arguments)
    # FFDNet has no BatchNorms, and a DnCNN's argument says whether there are any.
    if network in (ADNet, HRANet) and not _has_batchnorm(params):
        built.fold_batchnorm()
    return built


def _fits(network: type[nn.Module], arguments: Arguments, params: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"):
            own = _build(network, arguments, params).state_dict()
    except ValueError:  # arguments that the network refuses
        return False
    return _shapes(own) == _shapes(params)


def _has_batchnorm(names: Mapping[str, object]) -> bool:
    return any(name.endswith("running_var") for name in names)


def _shapes(params: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without BatchNorm's counters: files of PyTorch before 0.4.1 have none, and ``load_state_dict`` does not mind."""
    return {name: tuple(value.shape) for name, value in params.items() if not name.endswith("num_batches_tracked")}


# --- what the shapes of a state dict say, if it is one of this kind ---------------------------------------------------


def _guess_dncnn(shapes: dict[str, tuple[int, ...]]) -> Arguments | None:
    ends = _find_ends(shapes)
    if ends is None:
        return None
    (num_feat, num_in_ch), num_out_ch, num_conv = ends
    bn = _has_batchnorm(shapes)
    # KAIR's IRCNN has 7 convolutions under the same names, and dilations that leave no trace.
    if num_conv == 7 and not bn:
        return None
    return {"num_in_ch": num_in_ch, "num_out_ch": num_out_ch, "num_feat": num_feat, "num_conv": num_conv, "bn": bn}


def _guess_ffdnet(shapes: dict[str, tuple[int, ...]]) -> Arguments | None:
    ends = _find_ends(shapes)
    if ends is None:
        return None
    (num_feat, num_in), num_out, num_conv = ends
    # Four sub-images of each channel, and the map; KAIR's FDnCNN has the map, but no sub-images.
    if num_in != num_out + 1:
        return None
    return {"num_in_ch": num_out // 4, "num_out_ch": num_out // 4, "num_feat": num_feat, "num_conv": num_conv}


def _find_ends(shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[int, int], int, int] | None:
    """Of the convolutions ``model.N``: the first one's output and input, the last one's output, how many."""
    named = [(re.fullmatch(r"model\.(\d+)\.weight", name), shape) for name, shape in shapes.items() if len(shape) == 4]
    convs = {int(name[1]): shape for name, shape in named if name}
    if not convs:
        return None
    return convs[min(convs)][:2], convs[max(convs)][0], len(convs)


def _guess_adnet(shapes: dict[str, tuple[int, ...]]) -> Arguments | None:
    first = shapes.get("conv1_1.0.weight", ())
    if len(first) != 4:
        return None
    return {"num_in_ch": first[1], "num_out_ch": first[1], "num_feat": first[0]}


def _guess_hranet(shapes: dict[str, tuple[int, ...]]) -> Arguments | None:
    first = shapes.get("feature_extraction.0.weight", ())
    squeezed = shapes.get("coarse_denoising.blocks.0.eca.squeeze.weight", ())
    num_block = sum(name.endswith(".eca.squeeze.weight") for name in shapes)
    last = shapes.get("detail_enhancement.15.weight", first[1:2])
    if len(first) != 4 or len(squeezed) != 4 or squeezed[0] < 1 or not last:
        return None
    num_feat, num_in_ch = first[:2]
    return {
        "num_in_ch": num_in_ch,
        "num_out_ch": num_in_ch,
        "num_feat": num_feat,
        "num_block": num_block,
        "squeeze_factor": num_feat // squeezed[0],  # the largest of those that give this inner width
        "upscale": math.isqrt(last[0] // max(num_in_ch, 1)),
    }


_GUESSES = {DnCNN: _guess_dncnn, FFDNet: _guess_ffdnet, ADNet: _guess_adnet, HRANet: _guess_hranet}
