"""HRANet and its plug-in for BasicSR. What is named here needs torch alone; BasicSR comes with ``registration``."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hranet_arch.hranet import HRANet
    from hranet_arch.restore import Deblocker, Denoiser, Upscaler

__version__ = "0.1.0"
__all__ = ["Deblocker", "Denoiser", "HRANet", "Upscaler", "__version__"]

MODULES = {"HRANet": "hranet", "Deblocker": "restore", "Denoiser": "restore", "Upscaler": "restore"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    """Each on its first use: the command's help needs no torch, and who wants the network does not need the peers."""
    if name in MODULES:
        return getattr(import_module(f"hranet_arch.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
