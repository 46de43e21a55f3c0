"""Everything this package adds to BasicSR's registries, on one page; and other packages' plug-ins.

Importing this module registers it all: ``import hranet_arch.registration`` is enough to use ``HRANet`` from a program
of one's own that calls BasicSR's ``build_network`` or ``train_pipeline``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from hranet_arch.compat import apply_fixes

apply_fixes()  # before BasicSR's import

import basicsr.archs  # noqa: F401
import basicsr.data  # noqa: F401
import basicsr.losses  # noqa: F401
import basicsr.metrics  # noqa: F401
import basicsr.models  # noqa: F401
from basicsr.models import lr_scheduler
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)

from hranet_arch.baselines import ADNet, DnCNN, FFDNet
from hranet_arch.datasets import DegradationDataset, GaussianDenoisingDataset, PairedDenoisingDataset
from hranet_arch.degradations import (
    DEGRADATION_REGISTRY,
    BicubicDownsampling,
    GaussianNoise,
    JPEGCompression,
    OneOf,
    PoissonGaussianNoise,
    Quantization,
)
from hranet_arch.hranet import HRANet
from hranet_arch.metrics import calculate_psnr_float, calculate_psnrb
from hranet_arch.model import DenoisingModel, RestorationModel
from hranet_arch.optimizers import list_optimizers

logger = logging.getLogger(__name__)

PLUGIN_GROUP = "basicsr.plugins"

for network in (HRANet, DnCNN, FFDNet, ADNet):
    ARCH_REGISTRY.register(network)
for model in (RestorationModel, DenoisingModel):
    MODEL_REGISTRY.register(model)
for dataset in (GaussianDenoisingDataset, PairedDenoisingDataset, DegradationDataset):
    DATASET_REGISTRY.register(dataset)
for step in (GaussianNoise, PoissonGaussianNoise, JPEGCompression, BicubicDownsampling, Quantization, OneOf):
    DEGRADATION_REGISTRY.register(step)
for metric in (calculate_psnr_float, calculate_psnrb):
    METRIC_REGISTRY.register(metric)


@functools.cache
def load_plugins() -> dict[str, str]:
    """Imports every entry point of the group ``basicsr.plugins``; each may register what it likes, as above.

    Returns:
        For each plug-in ``'loaded'``, or what went wrong: a broken one is named and passed over.
    """
    states = {}
    for entry_point in entry_points(group=PLUGIN_GROUP):
        try:
            entry_point.load()
            states[entry_point.name] = "loaded"
        except (Exception, SystemExit) as error:  # whatever a foreign package raises, the others and we go on
            states[entry_point.name] = f"{type(error).__name__}: {error}"
            logger.warning("Plug-in '%s' (%s) is skipped: %s", entry_point.name, entry_point.value, error)
    return states


def registries() -> Mapping[str, Mapping[str, Any]]:
    """What an option file may name, by kind: BasicSR's registries, plug-ins included, and the optimisers.

    Left out is what cannot work here: metrics of tensors (``_pt``; validation gives arrays).
    """
    load_plugins()
    return {
        "arch": dict(iter(ARCH_REGISTRY)),
        "model": dict(iter(MODEL_REGISTRY)),
        "dataset": dict(iter(DATASET_REGISTRY)),
        "degradation": dict(iter(DEGRADATION_REGISTRY)),
        "loss": dict(iter(LOSS_REGISTRY)),
        "metric": {name: metric for name, metric in METRIC_REGISTRY if not name.endswith("_pt")},
        "optimizer": list_optimizers(),
        "scheduler": {
            "MultiStepLR": lr_scheduler.MultiStepRestartLR,
            "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
            "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
        },
    }
