"""``basicsr doctor``: versions, devices, repairs, registered names, and a few training steps."""

from __future__ import annotations

import platform
import time
from importlib import metadata

import torch

from hranet_arch import arithmetic, compat
from hranet_arch.errors import InputError, first_line

PACKAGES = ("hranet-arch", "basicsr", "torch", "torchvision", "numpy", "opencv-python", "lmdb", "pydantic")
TENSORBOARDS = ("tensorboard", "tb-nightly")


def examine() -> int:
    """Prints what is found; returns 0 where everything works, else 1."""
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in (*PACKAGES, *TENSORBOARDS):
        print(f"  {name:15} {_version(name) or 'not installed'}")
    _print_devices()
    problems = _examine_tensorboard() + _examine_basicsr() + _train_briefly()
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("Problems were found." if problems else "All is well.")
    return 1 if problems else 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _examine_tensorboard() -> list[str]:
    if all(_version(name) for name in TENSORBOARDS):
        return [
            "tensorboard and tb-nightly (which BasicSR asks for) are both installed; TensorBoard refuses to start. "
            "Run: pip uninstall -y tensorboard tb-nightly && pip install tb-nightly"
        ]
    return []


def _print_devices() -> None:
    fast = [name for name in (*arithmetic.DTYPES, "int8") if arithmetic.is_fast(name, torch.device("cpu"))]
    print(f"devices: CPU with {torch.get_num_threads()} threads, precision {', '.join(fast)}")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        print(f"  cuda:{i} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def _examine_basicsr() -> list[str]:
    try:
        repairs = compat.make_importable()
        from hranet_arch import registration
    except Exception as error:  # whatever is wrong with an installation, say it
        return [f"BasicSR cannot be imported: {type(error).__name__}: {error}"]
    print(f"repairs that BasicSR's import needed: {', '.join(repairs) or 'none'}")
    print("fixes that are active:")
    for name, reason in compat.describe_fixes():
        print(f"  {name}: {reason.replace('``', '')}")
    states = registration.load_plugins()
    for name, state in states.items():
        print(f"plug-in {name}: {state}")
    for kind, entries in registration.registries().items():
        print(f"registered {kind}: {len(entries)}")
    return [f"plug-in {name}: {state}" for name, state in states.items() if state != "loaded"]


def _train_briefly() -> list[str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        arithmetic.find_device(device)
        return _take_steps(device)
    except InputError as error:
        return [str(error)]
    except Exception as error:  # whatever is wrong here is what is asked
        return [f"a training step on {device} failed: {type(error).__name__}: {first_line(error)}"]


def _take_steps(device: str) -> list[str]:
    from hranet_arch.hranet import HRANet

    network = HRANet(num_feat=16).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    clean = torch.rand(2, 1, 48, 48, device=device)
    start = time.perf_counter()
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.mse_loss(network(clean + 0.1 * torch.randn_like(clean)), clean)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    print(f"five training steps on {device}: {seconds:.2f} s, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    return [] if torch.isfinite(loss) else [f"a training step on {device} gave a loss that is not finite"]
