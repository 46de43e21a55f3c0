"""What BasicSR 1.4.2 (2022) needs to be imported and to run soundly on today's stack, applied from outside.

``make_importable`` repairs the import itself, and acts only where an import has failed. ``apply_fixes`` then replaces
what is wrong inside BasicSR: ``fixes`` has one function for each fault.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import sys
import types

import torch

logger = logging.getLogger(__name__)


class _Run:
    """What the running training has done so far; shared by the fixes, ``pipeline``, ``model`` and ``validation``."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.is_started = False  # an iteration is done, or a picture validated: there is something to keep
        self.iteration = self.saved = 0  # the last that has begun, and the last with a training state
        self.stop_requested = False  # set by a signal handler
        self.archived: list[tuple[str, str]] = []  # folders made, and where an older one of that name was moved to
        self.resume_state: dict | None = None
        self.val_loaders: list = []
        self.tb_logger = None


RUN = _Run()


# --- the import -------------------------------------------------------------------------------------------------------


@functools.cache
def make_importable() -> tuple[str, ...]:
    """Makes ``import basicsr`` work; returns the names of the repairs that were needed.

    Call it before any import of BasicSR, in every process: worker processes started by spawn import afresh.
    """
    repairs = []
    for repair in (_repair_torchvision, _alias_functional_tensor, _alias_scipy_filters):
        if repair():
            repairs.append(repair.__name__.strip("_"))
    return tuple(repairs)


_operators: list[torch.library.Library] = []  # torch forgets the operators when the library object goes


def _repair_torchvision() -> bool:
    """torchvision built for another torch: ``RuntimeError: operator torchvision::nms does not exist``.

    Its Python side works once the names of the missing operators are defined; BasicSR uses none of them, and calling
    one still raises. Defining them where they exist aborts the process, so this acts only after the import failed.
    Needed as long as people mix builds of torch and torchvision.
    """
    missing: list[str] = []
    while True:
        try:
            torchvision = importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            operator = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if operator is None or operator[1] in missing:
                raise
        missing.append(operator[1])
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{operator[1]}(Tensor[] arguments) -> Tensor")
        _operators.append(library)
    if missing:
        logger.info(
            "torchvision %s was built for another torch than %s; its Python part is used without its operators.",
            torchvision.__version__, torch.__version__,
        )  # fmt: skip
    return bool(missing)


def _alias_functional_tensor() -> bool:
    """``data/degradations.py:8`` imports a module that torchvision 0.17 removed (issues 533, 663, 681).

    Delete once a release of BasicSR imports ``torchvision.transforms.functional``.
    """
    return _alias("torchvision.transforms.functional_tensor", "torchvision.transforms.functional", "rgb_to_grayscale")


def _alias_scipy_filters() -> bool:
    """``metrics/niqe.py:5`` imports ``scipy.ndimage.filters``, which SciPy 2 removes.

    Delete once a release of BasicSR imports from ``scipy.ndimage``.
    """
    return _alias("scipy.ndimage.filters", "scipy.ndimage", "convolve", "gaussian_filter")


def _alias(gone: str, source: str, *functions: str) -> bool:
    """Where a module is gone, puts one in its place that has the functions of another; returns whether it did."""
    try:
        importlib.import_module(gone)
        return False
    except ModuleNotFoundError:
        module = types.ModuleType(gone)
        for name in functions:
            setattr(module, name, getattr(importlib.import_module(source), name))
        sys.modules[gone] = module
        return True


# --- the rest ---------------------------------------------------------------------------------------------------------


@functools.cache
def apply_fixes() -> None:
    """Makes BasicSR importable and applies every fix, once in a process."""
    make_importable()
    from hranet_arch import fixes

    for fix in fixes.FIXES:
        fix()


def _find_first_sentence(text: str) -> str:
    return re.split(r"\.\s", " ".join(text.split()))[0].removesuffix(".")


def describe_fixes() -> list[tuple[str, str]]:
    """``(name, first sentence)`` of every fix, for ``basicsr doctor``."""
    from hranet_arch import fixes

    return [(fix.__name__, _find_first_sentence(fix.__doc__ or "")) for fix in fixes.FIXES]
