"""HRANet and its plug-in for BasicSR. Importing this package needs torch alone; BasicSR comes with ``registration``."""

from hranet_arch.hranet import HRANet

__version__ = "0.1.0"
__all__ = ["Denoiser", "HRANet", "__version__"]


def __getattr__(name: str) -> object:
    """``Denoiser`` on first use: it brings the peers and safetensors, which who wants the network does not need."""
    if name == "Denoiser":
        from hranet_arch.restore import Denoiser

        return Denoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
