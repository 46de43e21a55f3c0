"""``basicsr export``: a network for other programs, as ONNX, TorchScript or safetensors; checked before it is written.

Every file has BatchNorm folded in and says what it is (``networks.Description``): ONNX in its ``metadata_props``,
TorchScript in its extra files, safetensors in its metadata.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hranet_arch import baselines, memory
from hranet_arch.errors import InputError
from hranet_arch.files import require_writable, whole_file
from hranet_arch.hranet import HRANet
from hranet_arch.networks import LoadedNetwork
from hranet_arch.onnx_network import INSTALL, import_onnxruntime, read_onnx

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
# The exporter's own operators are written in 18: no conversion. ONNX Runtime has had it since 1.14 (2023).
OPSET = 18
IR_VERSION = 8  # the file's, as old as that: newer ones are refused by ONNX Runtime before 1.18
# Batch, height, width: the smallest, a line, less than an attention cell, whole cells, and cells cut on both sides.
CHECKED_SIZES = ((1, 1, 1), (2, 7, 130), (1, 5, 3), (3, 64, 64), (1, 201, 103))
EXAMPLE = (2, 37, 45)  # traced with; a size of 1 would be taken for one that never changes
LARGEST_DIFFERENCE = 1e-4
# ONNX Runtime's arena takes 1.1 times what memory.count_bytes_per_pixel says of HRANet (measured at 600 to 900 pixels
# squared). Without the arena it takes 0.8 times, and up to twice as long.
ARENA = 1.25

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Export:
    """A file for other programs.

    Attributes:
        differences: the largest difference to PyTorch for each of ``CHECKED_SIZES``, in [0, 1].
    """

    path: Path
    format: str
    differences: Mapping[tuple[int, int, int], float]


def export(network: LoadedNetwork, format: str, path: str | Path, *, is_overwriting: bool = False) -> Export:
    """Writes a network for other programs, whole or not at all.

    Args:
        network: from ``load_network``.
        format: a key of ``SUFFIXES``; the file's name must end as it says.
        path: where to write.
        is_overwriting: whether a file that is there is replaced.

    Raises:
        InputError: for another name, a file that is there, a missing extra, or a result that differs from PyTorch's
            by ``LARGEST_DIFFERENCE`` or more, which is then not written.
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise InputError(f"--format {format} is not one of {', '.join(SUFFIXES)}.")
    if path.suffix.lower() != SUFFIXES[format]:
        raise InputError(f"{path}: a file for {format} must end in {SUFFIXES[format]}.")
    if path.exists() and not is_overwriting:
        raise InputError(f"{path}: is there already. Give another name, or --overwrite.")
    if not isinstance(network.module, (HRANet, baselines.DnCNN, baselines.FFDNet, baselines.ADNet)):
        raise InputError(f"{network.name}: is exported already; give the weights that it was made from.")
    require_writable(path.parent)
    content = {"onnx": _make_onnx, "torchscript": _make_torchscript, "safetensors": _make_safetensors}[format](network)
    differences = compare(network, _READERS[format](content, path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return Export(path, format, differences)


def to_onnx(network: LoadedNetwork) -> bytes:
    """An ONNX model, checked, not written to any file.

    Raises:
        InputError: as ``export``.
    """
    content = _make_onnx(network)
    compare(network, _read_onnx(content, network.description.path))
    return content


def compare(network: LoadedNetwork, run: Run) -> dict[tuple[int, int, int], float]:
    """The largest difference between a network and another way to run it, at ``CHECKED_SIZES``.

    Args:
        network: the one that is right.
        run: takes the picture, and, where the network does, the noise level in grey levels.

    Raises:
        InputError: if a size differs by ``LARGEST_DIFFERENCE`` or more, or does not run.
    """
    differences = {}
    generator = torch.Generator().manual_seed(0)
    for number, (count, height, width) in enumerate(CHECKED_SIZES):
        x = torch.rand(count, network.channels, height, width, generator=generator)
        inputs = (x, 10.0 * number) if network.takes_sigma else (x,)
        size = f"{count} x {height} x {width} (pictures, height, width)"
        with torch.inference_mode():
            expected = network.module(*inputs)
            try:
                difference = (run(*inputs) - expected).abs().max().item()
            except Exception as error:  # whatever the other program raises
                raise InputError(f"{network.name}: not exported. The result fails at {size}: {error}") from error
        if not difference < LARGEST_DIFFERENCE:
            raise InputError(
                f"{network.name}: not exported. At {size} the result differs from PyTorch's by {difference:.2g}; less "
                f"than {LARGEST_DIFFERENCE:g} is allowed."
            )
        differences[count, height, width] = difference
    return differences


def describe(network: LoadedNetwork) -> dict[str, str]:
    """The entries of a file's metadata, as ``networks.Description`` has them; empty ones are left out."""
    module, description = network.module, network.description
    kind, inferred = baselines.recognize(module.state_dict())
    network_g = {"type": kind.__name__, **inferred, **(description.network_g or {})}
    if "bn" in inferred:
        network_g["bn"] = inferred["bn"]  # folded
    if isinstance(module, HRANet):
        network_g["attention_pool"] = module.attention_pool
        network_g["attention_gate"] = module.coarse_denoising.blocks[0].eca.attention_gate
    texts = {
        "network_g": json.dumps(network_g),
        "color": description.color or {1: "gray", 3: "rgb"}.get(network.channels, ""),
    }
    if network.task:
        texts["task"] = network.task
    for name in ("sigma", "quality"):
        if (value := getattr(description, name)) is not None:
            texts[name] = json.dumps(value)
    if description.card is not None:
        texts["card"] = json.dumps(dict(description.card))
    return texts


# --- the three formats ------------------------------------------------------------------------------------------------


def _make_onnx(network: LoadedNetwork) -> bytes:
    """With torch's own exporter; the one before it, from TorchScript, is quicker and marked for removal."""
    import_onnxruntime()
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--format onnx needs onnx and onnxscript, which are not installed. {INSTALL}") from error
    names = ["noisy", "sigma"] if network.takes_sigma else ["noisy"]
    free = {0: "batch", 2: "height", 3: "width"}
    with _quiet():
        program = torch.onnx.export(
            network.module, _make_example(network), input_names=names, output_names=["clean"], opset_version=OPSET,
            dynamic_shapes=(free, None) if network.takes_sigma else (free,), dynamo=True, verbose=False,
        )  # fmt: skip
    model = program.model_proto
    for node in model.graph.node:  # where in our sources it came from, with this machine's paths
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    texts = describe(network) | {
        "halo": json.dumps(network.module.halo),
        "tile_multiple": str(getattr(network.module, "tile_multiple", 1)),
        "bytes_per_pixel": f"{ARENA * memory.count_bytes_per_pixel(network.module, network.channels):.0f}",
    }
    onnx.helper.set_model_props(model, texts)
    model.ir_version = min(model.ir_version, IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _make_torchscript(network: LoadedNetwork) -> bytes:
    file = io.BytesIO()
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(network.module, _make_example(network), check_trace=False)
        torch.jit.save(traced, file, _extra_files=describe(network))
    return file.getvalue()


def _make_safetensors(network: LoadedNetwork) -> bytes:
    from safetensors.torch import save

    params = {name: value.contiguous() for name, value in network.module.state_dict().items()}
    return save(params, describe(network))


def _make_example(network: LoadedNetwork) -> tuple[Tensor, ...]:
    count, height, width = EXAMPLE
    x = torch.rand(count, network.channels, height, width, generator=torch.Generator().manual_seed(0))
    return (x, torch.tensor([25.0])) if network.takes_sigma else (x,)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch's exporters say of their own future, and of code that ``compare`` then shows to be right."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):
            warnings.simplefilter("ignore", category)
        yield


# --- how they are read again, to be checked ---------------------------------------------------------------------------


def _read_onnx(content: bytes, path: Path) -> Run:
    return read_onnx(content, path).module


def _read_torchscript(content: bytes, path: Path) -> Run:
    with _quiet():
        module = torch.jit.load(io.BytesIO(content))
    return lambda x, *sigma: module(x, *(torch.tensor([one]) for one in sigma))


def _read_safetensors(content: bytes, path: Path) -> Run:
    from safetensors.torch import load

    # The header's length and the header, as the format begins.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return baselines.from_state_dict(load(content), json.loads(header["__metadata__"]["network_g"]))


_READERS = {"onnx": _read_onnx, "torchscript": _read_torchscript, "safetensors": _read_safetensors}
