"""HRANet for spandrel, and so for the programs that load their networks with it (extra ``[compare]`` brings spandrel).

Importing this module is enough::

    import hranet_arch.spandrel_registration
    import spandrel

    model = spandrel.ModelLoader().load_from_file("hranet_gray_s25.safetensors")
    clean = model(noisy)

spandrel looks at a file's tensors alone. What leaves no trace in them, HRANet's ``attention_pool`` and
``attention_gate``, is taken to be the default; ``load_from_file`` reads it from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from hranet_arch.compat import make_importable

make_importable()

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)

from hranet_arch import baselines
from hranet_arch.errors import InputError
from hranet_arch.hranet import HRANet
from hranet_arch.networks import load_network


class HRANetArch(Architecture[HRANet]):
    """HRANet, grey or colour, BatchNorms folded or not."""

    def __init__(self) -> None:
        super().__init__(id="HRANet", detect=_is_hranet)

    def load(
        self, state_dict: StateDict, network_g: Mapping[str, object] | None = None
    ) -> ImageModelDescriptor[HRANet]:
        """Builds the network of a state dict.

        Args:
            state_dict: without prefixes, as spandrel hands it over.
            network_g: the network's arguments, as in an option file; from the tensors' shapes if None.

        Raises:
            InputError: if the tensors are not those of such a network.
        """
        network = baselines.from_state_dict(_without_constants(state_dict), network_g)
        channels = network.feature_extraction[0].in_channels
        # A tile that does not start at the attention's grid gives another result than the whole picture.
        is_local = network.halo is not None
        return ImageModelDescriptor(
            network,
            network.state_dict(),
            architecture=self,
            purpose="SR" if network.upscale > 1 else "Restoration",
            tags=[f"{network.feature_extraction[0].out_channels}nf", f"{network.num_block}nb"],
            supports_half=False,
            supports_bfloat16=True,
            scale=network.upscale,
            input_channels=channels,
            output_channels=channels,
            size_requirements=SizeRequirements(),
            tiling=ModelTiling.SUPPORTED if is_local else ModelTiling.DISCOURAGED,
        )


def _is_hranet(state_dict: StateDict) -> bool:
    if not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        return False
    found = baselines.recognize(_without_constants(state_dict))
    return found is not None and found[0] is HRANet


def _without_constants(state_dict: StateDict) -> StateDict:
    """TorchScript's has the bicubic enlargement's kernels too, which are no weights."""
    return {name: value for name, value in state_dict.items() if name != "enlargement.kernels"}


def register(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Adds HRANet to a registry of spandrel, once; importing this module does it for spandrel's main one."""
    # Before the others: its test looks at every tensor, theirs at some names.
    first = tuple(support.architecture.id for support in registry)
    registry.add(ArchSupport.from_architecture(HRANetArch(), before=first), ignore_duplicates=True)


def load_from_file(path: str | Path) -> ImageModelDescriptor[HRANet]:
    """As ``spandrel.ModelLoader().load_from_file``, with all arguments that the file says.

    Raises:
        InputError: if the file is no HRANet's.
    """
    network = load_network(path)
    if not isinstance(network.module, HRANet):
        raise InputError(f"{path}: holds a {type(network.module).__name__}, not an HRANet.")
    return HRANetArch().load(network.module.state_dict(), network.description.network_g)


register()
