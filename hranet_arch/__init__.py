"""HRANet and its plug-in for BasicSR. Importing this package needs torch alone; BasicSR comes with ``registration``."""

from hranet_arch.hranet import HRANet

__version__ = "0.1.0"
__all__ = ["HRANet", "__version__"]
