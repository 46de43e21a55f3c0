"""What a record says of how it was made: the machine, the versions, the commit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from hranet_arch import __version__, arithmetic


def describe_machine(device: str | torch.device = "cpu") -> dict:
    """What a record says of the machine that made it: versions, device, threads, precision. No name, no path."""
    device = torch.device(device)
    versions = {"hranet-arch": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("basicsr", "torchvision", "numpy", "scikit-image", "opencv-python", "opencv-python-headless"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "device": str(device),
        "device_name": _name_cpu() if device.type == "cpu" else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": _name_instructions(),
        "precision": arithmetic.describe(),
    }
    if device.type == "cuda":
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        machine["device_name"] = torch.cuda.get_device_name(device)
    machine["device_name"] = machine["device_name"] or str(device)
    return machine


def describe_commit(*folders: str) -> str:
    """The commit of this package's repository, with ``+changes`` if its files differ from it; else its version.

    Released weights do not count: who measures them names them by their own hash.

    Args:
        folders: beside the package's own, whose changes count as well.
    """
    folder = Path(__file__).parent
    try:
        tracked = _git(folder, "ls-files", "--", Path(__file__).name)
        commit, changes = (
            _git(folder, "rev-parse", "HEAD"),
            _git(folder, "status", "--porcelain", "--", ".", ":!weights", *(f"../{one}" for one in folders)),
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        tracked = ""
    if not tracked:  # installed, perhaps inside somebody else's repository
        return f"no repository; version {__version__}"
    return f"{commit}+changes" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _name_instructions() -> str:
    """PyTorch's, and those that oneDNN, which computes the convolutions, is kept from going beyond."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability}, oneDNN {limit}" if limit else capability


def _name_cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
