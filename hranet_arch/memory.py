"""How much memory there is, and how much a network takes for each pixel: what the size of a tile follows from."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

UNKNOWN = 2 * 2**30  # bytes taken to be free on a system that says nothing
PROBE = 64  # side in pixels of the picture that a network's bytes are counted on
OVERHEAD = 1.5  # what convolutions take beside the tensors: DnCNN's most, measured with complexity.measure_peak_memory
# On the CPU; of CUDA and of its libraries, where other programs have the GPU's memory.
MEMORY_TEXTS = (
    "can't allocate memory", "not enough memory", "could not create a memory",
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # PyTorch, of a convolution that found no workspace
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch's or its libraries', on a GPU or on the CPU, or Python's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_TEXTS)


def measure_free(device: str | torch.device = "cpu") -> int:
    """Bytes that can still be taken: on a GPU what CUDA says; on the CPU the least of the system's and the cgroup's."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_measure_limits(), default=UNKNOWN)


def _measure_limits() -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        yield int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _measure_cgroup(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes"
                yield from _measure_cgroup(Path("/sys/fs/cgroup/memory"), path, *names)


def _measure_cgroup(root: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    """The limits of a group and of those it lies in; the file cache, which the kernel gives back, counts as free."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError, KeyError):  # `max` is no number: no limit
            limit, usage = (int((folder / name).read_text()) for name in (limit_name, usage_name))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(limit - usage + int(stat["inactive_file"]), 0)
        if folder == root:
            return


def count_bytes_per_pixel(network: nn.Module, channels: int) -> float:
    """Bytes that a forward pass in fp32 takes at most for each pixel of a picture, weights aside.

    Counted on a small picture: the most bytes of tensors alive at one time, times ``OVERHEAD``. A network that other
    programs run says itself (``bytes_per_pixel``): its tensors are not torch's.
    """
    if (known := getattr(network, "bytes_per_pixel", None)) is not None:
        return known
    device = next((parameter.device for parameter in network.parameters()), None)
    with torch.inference_mode(), _LiveBytes() as live:
        network(torch.zeros(1, channels, PROBE, PROBE, device=device))
    return OVERHEAD * live.peak / PROBE**2


class _LiveBytes(TorchFunctionMode):
    """Adds up the bytes of the tensors made inside it, takes off those that are gone, and keeps the highest sum.

    A ``TorchDispatchMode`` would see a little more, and imports ``torch._dynamo``: two seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and (storage := result.untyped_storage()) not in self.seen:
            self.seen.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, nbytes: int) -> None:
        self.now -= nbytes
