"""What a network costs: parameters, multiply-accumulates, latency, peak memory; of any module, at a stated size.

A size is ``(c, h, w)``; the batch is one picture. A module given here is never changed: what runs is a copy in
evaluation mode. Results are dataclasses whose ``asdict`` goes into a JSON record as it is.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode

Size = tuple[int, int, int]


# --- parameters and multiply-accumulates ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A module's own part: parameters and MACs that belong to it and to no module inside it."""

    name: str
    type: str
    parameters: int
    macs: int
    share: float  # of all MACs


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones too; shared ones once; buffers (BatchNorm's statistics) are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, size: Size) -> int:
    """Multiply-accumulates of one forward pass: those of convolutions and matrix products, attention's included.

    Half of what torch's ``FlopCounterMode`` counts, so element-wise operations, norms, activations, pooling,
    interpolation and biases count nothing, nor do products of a matrix and a vector, and what ``fusion.fuse`` makes of
    convolutions. Nothing is computed where the module runs on meta tensors.
    """
    return sum(macs for _, macs in _count_own_macs(module, size))


def profile_layers(module: nn.Module, size: Size, depth: int | None = None) -> list[Layer]:
    """Parameters and MACs layer by layer, in the order of ``named_modules``; their sums are the whole module's.

    Args:
        module: the network.
        size: ``(c, h, w)`` of its input.
        depth: take together what lies deeper than so many names, e.g. 1 for the parts that the network itself names;
            None lists each layer.
    """
    modules = dict(module.named_modules())
    sums = {}  # name -> parameters, MACs
    seen = set()
    for (name, own), (_, macs) in zip(modules.items(), _count_own_macs(module, size)):
        group = ".".join(name.split(".")[:depth]) if name else ""
        fresh = {id(parameter): parameter.numel() for parameter in own.parameters(recurse=False)}
        parameters = sum(number for key, number in fresh.items() if key not in seen)
        seen |= fresh.keys()
        before = sums.get(group, (0, 0))
        sums[group] = (before[0] + parameters, before[1] + macs)
    total = sum(macs for _, macs in sums.values())
    return [
        Layer(name or "(itself)", type(modules[name]).__name__, parameters, macs, macs / total if total else 0.0)
        for name, (parameters, macs) in sums.items()
        if parameters or macs
    ]


def format_layers(rows: Sequence[Layer]) -> str:
    """The table that ``basicsr profile`` prints."""
    total = Layer("total", "", sum(r.parameters for r in rows), sum(r.macs for r in rows), sum(r.share for r in rows))
    lines = [("layer", "type", "parameters", "MACs", "share")]
    lines += [(r.name, r.type, f"{r.parameters:,}", f"{r.macs:,}", f"{r.share:.1%}") for r in [*rows, total]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<>>>", widths))
    texts = [form.format(*line) for line in lines]
    rule = "-" * len(texts[0])
    return "\n".join([texts[0], rule, *texts[1:-1], rule, texts[-1]])


def _count_own_macs(module: nn.Module, size: Size) -> list[tuple[str, int]]:
    """Name and own MACs of each of ``named_modules``: counted inside its forward, but not inside another module's."""
    try:
        return _run_counted(_copy(module, "meta"), torch.empty(1, *size, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):  # it wants values or arrays, or holds other tensors
        return _run_counted(_copy(module, "cpu"), torch.zeros(1, *size))


def _run_counted(module: nn.Module, x: Tensor) -> list[tuple[str, int]]:
    names = {submodule: name for name, submodule in module.named_modules()}
    own = dict.fromkeys(names.values(), 0)
    running = []  # for each module entered: FLOPs when it began, FLOPs of modules inside it

    def enter(*_) -> None:
        running.append([counter.get_total_flops(), 0])

    def leave(submodule, *_) -> None:
        begin, inside = running.pop()
        flops = counter.get_total_flops() - begin
        own[names[submodule]] += flops - inside
        if running:
            running[-1][1] += flops

    for submodule in names:
        submodule.register_forward_pre_hook(enter)
        submodule.register_forward_hook(leave)
    counter = FlopCounterMode(display=False)
    with contextlib.ExitStack() as stack:
        # Attention: fused kernels are counted as nothing, the plain one as its two matrix products.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for context in (torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter):
            stack.enter_context(context)
        module(x)
    return [(name, flops // 2) for name, flops in own.items()]


def _copy(module: nn.Module, device: str | torch.device) -> nn.Module:
    """A copy in evaluation mode on a device; parameters and buffers go there directly, with no copy in between."""
    memo = {id(p): nn.Parameter(p.detach().to(device, copy=True), p.requires_grad) for p in module.parameters()}
    memo |= {id(buffer): buffer.detach().to(device, copy=True) for buffer in module.buffers()}
    return copy.deepcopy(module, memo).eval().to(device)


# --- latency ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass: median and quartiles over blocks of runs; ``runs`` is the runs in all blocks."""

    model: str
    size: Size
    median: float
    lower_quartile: float
    upper_quartile: float
    blocks: int
    runs: int
    rounds: int
    threads: int
    device: str


def measure_latency(
    modules: Mapping[str, Callable[[Tensor], object]],
    sizes: Sequence[Size],
    device: str | torch.device = "cpu",
    *,
    rounds: int = 6,
    block_time: float = 0.2,
    threads: int | None = None,
    on_failure: Callable[[str, Size, Exception], None] | None = None,
) -> list[Latency]:
    """Times networks against each other, in turn, so that a drift of the machine's speed hits all alike.

    At each size, after three warm-up runs of each network, every round asks each for ``blocked_autorange`` of
    ``torch.utils.benchmark.Timer``: an unmeasured run, then blocks of runs, as many in a block as make the clock's and
    the synchronisation's cost vanish, for at least ``block_time`` seconds. Every second round goes backwards.

    Args:
        modules: networks by name; modules are copied to the device, other callables are called as they are.
        sizes: ``(c, h, w)`` of the inputs, uniform noise in [0, 1].
        device: where to run.
        rounds: how often each network has its turn.
        block_time: seconds of a turn; a network slower than that runs twice a turn, once measured.
        threads: torch's threads on the CPU; as many as torch is set to by default.
        on_failure: called with name, size and exception where a network fails (out of memory, say), which is then
            left out at that size; None raises the exception.
    """
    device = torch.device(device)
    threads = threads or torch.get_num_threads()
    networks = {n: _copy(m, device) if isinstance(m, nn.Module) else m for n, m in modules.items()}
    results = []
    with torch.inference_mode(), _current(device):
        for size in sizes:
            x = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(device)
            timers = {
                name: benchmark.Timer("network(x)", globals={"network": network, "x": x}, num_threads=threads)
                for name, network in networks.items()
            }
            for name, measurements in _take_turns(timers, rounds, block_time, size, on_failure).items():
                seconds = torch.tensor([time for m in measurements for time in m.times], dtype=torch.float64)
                lower, median, upper = seconds.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
                runs = sum(m.number_per_run * len(m.times) for m in measurements)
                results.append(
                    Latency(name, tuple(size), median, lower, upper, len(seconds), runs, rounds, threads, str(device))
                )
    return results


def _take_turns(
    timers: dict[str, benchmark.Timer],
    rounds: int,
    block_time: float,
    size: Size,
    on_failure: Callable[[str, Size, Exception], None] | None,
) -> dict[str, list[benchmark.Measurement]]:
    """The measurements of the networks that failed in no turn."""
    measurements = {name: [] for name in timers}
    for turn in range(rounds + 1):
        for name in list(measurements)[:: -1 if turn % 2 else 1]:
            try:
                if turn == 0:
                    timers[name].timeit(1)  # runs it twice more before
                else:
                    measurements[name].append(timers[name].blocked_autorange(min_run_time=block_time))
            except Exception as error:
                if on_failure is None:
                    raise
                del measurements[name]
                on_failure(name, size, error)
    return measurements


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes a CUDA device the current one: the one that the timer waits for."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


# --- peak memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the height of a forward pass. ``peak`` holds weights, input and ``growth``: all else the pass takes."""

    size: Size
    peak: int
    weights: int
    growth: int
    device: str
    method: str


def measure_peak_memory(module: nn.Module, size: Size, device: str | torch.device = "cpu") -> PeakMemory:
    """Measures how much memory a forward pass takes at most, in inference mode.

    Growth is measured in a second pass, when kernels have been chosen and compiled. On CUDA, it is what torch's
    allocator handed out at most, over what it had handed out before: activations and cuDNN's work space, no CUDA
    context, no cached blocks. On the CPU (Linux with glibc), it is by how much the resident memory of a fresh child
    process rose at most, over what stayed after the first pass: activations and oneDNN's work space, no code. Linux
    (from 6.2 on) counts pages for each processor apart and adds them up late: a growth of few MB may be off.

    Raises:
        RuntimeError: if the child process fails: the module cannot be pickled, or does not run.
        NotImplementedError: for other devices, and for the CPU of other systems than Linux.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _measure_cuda(module, size, device)
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        raise NotImplementedError(f"Peak memory on {device} cannot be measured here: CUDA, or the CPU under Linux.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "module.pth")
        torch.save(_copy(module, "cpu"), file)
        imported = []
        if {type(part).__module__.partition(".")[0] for part in module.modules()} - {"torch", "hranet_arch"}:
            # It may be BasicSR's, to be unpickled only after hranet_arch.compat has repaired BasicSR, as here.
            imported = [name for name in sys.modules if name.startswith("hranet_arch.") and "__main__" not in name]
        code = "import sys; from hranet_arch import complexity; complexity._serve(*sys.argv[1:])"
        arguments = [str(file), json.dumps(size), json.dumps(imported), str(torch.get_num_threads())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc gives each larger block back when it is freed
        command = [sys.executable, "-c", code, *arguments]
        child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}, out of memory perhaps"]
        raise RuntimeError(f"Peak memory of {type(module).__name__} at {size}: its process failed: {reason[0]}")
    growth = json.loads(child.stdout.splitlines()[-1])
    return _peak(module, size, growth, device, "rise of a child process's resident memory in its second pass")


def _measure_cuda(module: nn.Module, size: Size, device: torch.device) -> PeakMemory:
    with torch.inference_mode(), _current(device):
        network, x = _copy(module, device), torch.rand(1, *size, device=device)
        network(x)  # cuDNN chooses its algorithms
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        network(x)
        torch.cuda.synchronize()
        growth = torch.cuda.max_memory_allocated() - before
    return _peak(module, size, growth, device, "rise of torch.cuda.max_memory_allocated in the second pass")


def _peak(module: nn.Module, size: Size, growth: int, device: torch.device, method: str) -> PeakMemory:
    weights = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    picture = torch.Size(size).numel() * torch.float32.itemsize
    return PeakMemory(tuple(size), weights + picture + growth, weights, growth, str(device), method)


def _serve(file: str, size: str, imported: str, threads: str) -> None:
    """In the child process: runs the module twice, writes by how many bytes resident memory rose at most."""
    for name in json.loads(imported):
        importlib.import_module(name)
    torch.set_num_threads(int(threads))
    network = torch.load(file, weights_only=False)  # a whole module; the parent has just written it
    with torch.inference_mode():
        x = torch.rand(1, *json.loads(size))
        network(x)  # starts threads, reads code from disk, compiles oneDNN's kernels
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
        before = _read_status("VmRSS")
        network(x)
        growth = max(_read_status("VmHWM") - before, 0)  # the kernel's counters lag
    sys.stdout.write(f"\n{growth}\n")


def _read_status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024
