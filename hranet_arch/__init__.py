"""HRANet and its plug-in for BasicSR. Importing this package needs torch alone; BasicSR comes with ``registration``."""

from hranet_arch.hranet import HRANet

__version__ = "0.1.0"
__all__ = ["Deblocker", "Denoiser", "HRANet", "Upscaler", "__version__"]


def __getattr__(name: str) -> object:
    """The restorers on first use: they bring the peers, which who wants the network does not need."""
    if name in ("Deblocker", "Denoiser", "Upscaler"):
        from hranet_arch import restore

        return getattr(restore, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
