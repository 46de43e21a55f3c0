"""The device that networks run on, and its arithmetic: fp32, 16 or 8 bits where it has them; on a GPU, TF32 or not."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

import torch
from torch import nn

from hranet_arch import eight_bits
from hranet_arch.errors import InputError, first_line

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(device: str | torch.device) -> torch.device:
    """A device by its name; ``'auto'`` is a GPU if there is one that this torch can use.

    Raises:
        InputError: if it is not there, or does not compute.
    """
    if device == "auto" and torch.cuda.is_available():
        try:
            return find_device("cuda")
        except InputError as error:
            logger.warning("%s The CPU is used.", error)
    if device == "auto":
        return torch.device("cpu")
    here = "'auto', 'cpu' and 'cuda'" if torch.cuda.is_available() else "'auto' and 'cpu'"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r} is no device's name. Here {here} can be used.") from error
    try:
        ones = torch.ones(1, 1, 3, 3, device=found)
        torch.nn.functional.conv2d(ones, ones)  # a GPU that this torch has no kernels for has memory none the less
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
        raise InputError(f"device={str(device)!r} cannot be used: {reason}. Here {here} can be.") from error
    return found


def is_fast(precision: str, device: torch.device) -> bool:
    """Whether a device has arithmetic for this precision, ``'fp32'``, ``'bf16'``, ``'fp16'`` or ``'int8'``.

    NVIDIA's GPUs have fp16, and bf16 from Ampere on; before, PyTorch emulates it.

    On a CPU convolutions of 16 bits are oneDNN's where it knows instructions for them, and else plain loops of
    PyTorch's, many times as slow as fp32 (``docs/performance.md``). Those of 8 bits are for CPUs alone.
    """
    if precision == "int8":
        return device.type == "cpu" and eight_bits.count_weight_levels() > 0
    if precision == "bf16" and device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "fp32" or device.type != "cpu":
        return True
    is_supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)  # absent without oneDNN
    return is_supported is not None and is_supported()


def choose(precision: str, device: torch.device, warn: Callable[[str], None]) -> str:
    """The precision that was asked for; another, with a warning, where it is slower and less exact than that."""
    if is_fast(precision, device):
        return precision
    if precision == "int8":
        instead = without_8_bits(precision, device)
        warn(f"precision int8: only on x86 processors, by PyTorch's oneDNN; {instead} is used.")
        return instead
    warn(f"precision {precision}: this processor has no instructions for it and would be far slower; fp32 is used.")
    return "fp32"


def without_8_bits(precision: str, device: torch.device) -> str:
    """The precision of what is not in 8 bits: with ``'int8'`` bf16, or fp32 where that is faster; else the same."""
    if precision == "int8":
        return "bf16" if is_fast("bf16", device) else "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which networks compute in this precision, whatever the one around it says."""
    precision = without_8_bits(precision, device)
    is_reduced = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if is_reduced else None, enabled=is_reduced)


def norm_in_fp32(net: nn.Module, precision: str, device: torch.device) -> None:
    """Has a network's ``nn.LayerNorm`` compute in fp32 where a CPU trains in 16 bits; autocast does so on a GPU.

    In 16 bits PyTorch's kernel for CPUs adds the pixels' shares of the gradients of weight and bias in 16 bits, too: of
    sums of many pixels most is lost (``docs/performance.md``). Behind it the type is the input's again, so that what
    reads it rounds it once.
    """
    if precision == "fp32" or device.type != "cpu":
        return
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_to_fp32)
            module.register_forward_hook(_to_its_dtype)


def _to_fp32(module: nn.Module, inputs: tuple) -> tuple:
    module.dtype_outside = inputs[0].dtype
    return (inputs[0].float(), *inputs[1:])


def _to_its_dtype(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.to(module.dtype_outside)


# --- TF32: CUDA's fp32 may be rounded to 10 bits ----------------------------------------------------------------------

_switching = threading.Lock()
_inside: list[list] = []  # of each thread in there, what the switches were before all of them


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside, CUDA multiplies in fp32 what is fp32, and does not round to TF32's 10 bits.

    The switches are the process's: the first thread inside turns them, the last one turns them back.
    """
    if device.type != "cuda":
        yield
        return
    switches = _list_switches().values()
    with _switching:
        _inside.append(_inside[0] if _inside else [getattr(*switch) for switch in switches])
        for (backend, name), value in zip(switches, _inside[0]):
            setattr(backend, name, False if isinstance(value, bool) else "ieee")
    try:
        yield
    finally:
        with _switching:
            before = _inside.pop()
            for switch, value in zip(switches, [] if _inside else before):
                setattr(*switch, value)


def describe() -> dict:
    """What a record says of it: by ``dtype`` tensors, by the others what CUDA makes of their fp32."""
    values = {key: getattr(*switch) for key, switch in _list_switches().items()}
    return {
        "dtype": "float32",
        **{key: {True: "tf32", False: "ieee"}.get(value, value) for key, value in values.items()},
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _list_switches() -> dict[str, tuple[object, str]]:
    """Where PyTorch keeps what decides on TF32. Since 2.9 the older names raise where somebody used the newer ones."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):
        return {"cuda_matmul": (matmul, "fp32_precision"), "cudnn_conv": (cudnn.conv, "fp32_precision")}
    return {"cuda_matmul": (matmul, "allow_tf32"), "cudnn_conv": (cudnn, "allow_tf32")}
