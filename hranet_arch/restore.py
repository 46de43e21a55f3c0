"""A bad picture in, a good one out: ``Denoiser``, ``Upscaler`` and ``Deblocker``, for arrays and tensors of any kind.

``basicsr denoise``, ``upscale`` and ``dejpeg`` and Python users call them. Needs torch and NumPy; files of pictures are
another module's (``pictures.py``).
"""

from __future__ import annotations

import copy
import logging
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hranet_arch import allocator, arithmetic, fusion, memory, tiling
from hranet_arch.errors import InputError
from hranet_arch.networks import Backend, Description, LoadedNetwork, Task, load_network, require_task
from hranet_arch.noise_estimate import estimate_sigma
from hranet_arch.resize import BicubicEnlargement
from hranet_arch.symmetries import IDENTITY, SYMMETRIES

logger = logging.getLogger(__name__)

LARGEST_VALUE = {torch.uint8: 255, torch.uint16: 65535}
FLOATS = (torch.float16, torch.float32, torch.float64)
LOWEST, HIGHEST = -2.0, 3.0  # of float pixels: white Gaussian noise up to sigma 100 around [0, 1]
# On the CPU a picture, its result and a tile stay below this many bytes together, so that the process stays under 4 GB.
CPU_BUDGET = 5 * 2**29
SMALLEST_BUDGET = 256 * 2**20
FREE_PART = 0.5  # of the free memory; the rest is for whoever else is on the machine
LARGEST_TILE = 4096  # larger ones save less than 6 % of the work

Image = np.ndarray | Tensor
Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS = get_args(Precision)


@dataclass(frozen=True)
class Restoration:
    """A restored picture and how it was made.

    Attributes:
        image: of the type, depth and layout of the one that was given.
        sigma: the noise level in grey levels that the network was told; None if it takes none.
        way: in words, how a picture met a network for other colours; empty if it is one for the picture's.
    """

    image: Image
    sigma: float | None
    way: str


class Restorer:
    """Restores pictures with a trained network; ``Denoiser``, ``Upscaler`` and ``Deblocker`` say for which task.

    An object works on one call at a time: with global attention the network holds a picture's averages meanwhile.
    Threads that restore side by side need one each; it can be copied, and pickled for another process.

    Args:
        weights: a released network's name, a ``.pth``, ``.safetensors`` or ``.onnx`` file, or a ``LoadedNetwork``.
        device: ``'auto'`` (a GPU if there is one), ``'cpu'``, ``'cuda'``, ``'cuda:1'``.
        precision: ``'fp32'``, or ``'bf16'`` for convolutions in 16 bits: faster on hardware made for it, less exact;
            or, on a CPU, ``'int8'`` for HRANet's large convolutions in 8 bits, and the rest in 16 where it has those.
            On hardware that is not made for it the next best is used, with a warning; ``self.precision`` says which.
        tile: side in pixels of the tiles that large pictures are cut into; None: as large as the free memory allows.
            The result is the same; in 8 bits, which each tile has its own steps for, nearly.
        ensemble: the mean over the picture's eight symmetries: a little better, eight times the work.
        network_g: see ``load_network``.
        backend: see ``load_network``.

    Raises:
        InputError: for a value outside of these, for a network of another task, and as ``load_network`` does.
    """

    task: Task
    takes_gray_as_rgb = True  # whether a grey picture may go through a colour network, its value three times

    def __init__(
        self,
        weights: str | Path | LoadedNetwork,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        tile: int | None = None,
        ensemble: bool = False,
        network_g: Mapping[str, object] | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.device = check_arguments(device, precision, tile, backend)
        is_loaded = isinstance(weights, LoadedNetwork)
        self.network = weights if is_loaded else load_network(weights, network_g, backend=backend)
        require_task(self.network, self.task)
        self.tile = None if tile is None else int(tile)
        if self.network.backend == "onnxruntime":
            self._check_onnx(device, precision)
        self.precision = arithmetic.choose(precision, self.device, logger.warning)
        self.module = self._prepare()
        self.symmetries = SYMMETRIES if ensemble else (IDENTITY,)
        self._bytes_per_pixel: float | None = None

    def __call__(self, image: Image, *, sigma: float | Literal["auto"] | None = None) -> Image:
        """Restores a picture, or a batch of pictures of one size.

        Args:
            image: array ``(h, w)``, ``(h, w, 1)``, ``(h, w, 3)`` (RGB) or ``(n, h, w, c)``, or tensor ``(c, h, w)`` or
                ``(n, c, h, w)``; uint8, uint16, or float in [0, 1] with the noise around it.
            sigma: the noise level in grey levels (0-255 for every depth), for a network that must be told, such as
                FFDNet; ``'auto'``: estimated.

        Returns:
            A new array or tensor of the same type, depth, layout and device, as many times larger as the network
            enlarges. Whole numbers are rounded and clipped, floats neither.

        Raises:
            InputError: for other shapes, types and ranges, and for more channels than the network can take. A colour
                picture goes through a grey network channel by channel, with a line in the log; and a grey one through
                a colour network in the place of red, green and blue, whose mean is its result. Not in denoising: there
                the three would have the same noise, as no picture has that the network was trained on.
        """
        restoration = self.restore(image, sigma=sigma)
        if restoration.way:
            logger.info("%s: the picture went %s.", self.network.name, restoration.way)
        return restoration.image

    def __getstate__(self) -> dict:
        """For copies, and for other processes: without the network as it runs here, whose 8 bits cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "module"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.precision = arithmetic.choose(self.precision, self.device, logger.warning)
        self.module = self._prepare()

    def restore(
        self,
        image: Image,
        *,
        sigma: float | Literal["auto"] | None = None,
        report: Callable[[float], None] = lambda done: None,
    ) -> Restoration:
        """As calling the restorer; says what was done, and reports the part that is done, in [0, 1], meanwhile."""
        x, layout = _to_planes(image)
        way = self._check_channels(x.shape[1], layout)
        _check_range(x)
        sigma = self._check_sigma(sigma, x)
        output = _make_like(image, self.network.scale)
        y, _ = _to_planes(output)
        pixels = self._count_pixels(x)
        parts = _divide(x, y, self.network.channels, pixels)
        for i, (source, target) in enumerate(parts):
            tile = self.tile or self._fit_tile(source, pixels)
            self._run(source, target, sigma, tile, lambda done, i=i: report((i + done) / len(parts)))
        return Restoration(output, sigma, way)

    def _prepare(self) -> torch.nn.Module:
        """The network where it runs, as it runs fastest there."""
        if self.device.type == "cpu" and self.network.backend == "torch":
            return fusion.fuse(self.network.module, self.precision)
        is_torch = self.network.backend == "torch"
        module = copy.deepcopy(self.network.module) if is_torch else self.network.module  # which stays where it is
        try:
            return module.to(self.device)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            raise InputError(
                f"device={str(self.device)!r} has no memory left for {self.network.name}. Close other programs, or "
                "give device 'cpu'."
            ) from error

    def _check_onnx(self, device: str | torch.device, precision: str) -> None:
        """What an ONNX network cannot do; and a GPU is taken by itself only where its runtime can use it."""
        from hranet_arch.onnx_network import has_cuda

        _require_fp32(precision)
        if self.tile and not self.network.module.is_divisible:
            raise InputError(
                f"tile={self.tile} is not allowed: {self.network.name} averages over the whole picture, and as an ONNX "
                "model cannot go tile by tile."
            )
        if device == "auto" and not has_cuda():
            self.device = torch.device("cpu")

    def _run(
        self, x: Tensor, y: Tensor, sigma: float | None, tile: int | None, report: Callable[[float], None]
    ) -> None:
        run = partial(self.module, sigma=sigma) if self.network.takes_sigma else self.module
        with (
            torch.inference_mode(),
            arithmetic.autocast(self.precision, self.device),
            arithmetic.full_float32(self.device),
        ):
            tiling.restore(
                self.module,
                _Scaled(x, self.device, self.network.channels),
                run=lambda part: self._check_finite(run(part).float()),
                tile=tile,
                symmetries=self.symmetries,
                output=_Scaled(y, self.device, self.network.channels),
                report=report,
            )

    def _check_finite(self, result: Tensor) -> Tensor:
        if not torch.isfinite(result.sum()):
            raise InputError(
                f"{self.network.name} gives values that are not finite for this picture: its training went astray, or "
                "its file is damaged. Take another, or an earlier checkpoint."
            )
        return result

    # --- how much at a time ---

    def _count_pixels(self, x: Tensor) -> int:
        """How many pixels may go through the network at once, where the whole of what was given is ``x``."""
        halo = tiling.Reach.of(self.module).halo
        if self.tile:
            return (self.tile + 2 * halo) ** 2
        if self._bytes_per_pixel is None:
            # As it was made: fused operators are not seen.
            counted = self.network.module if self.device.type == "cpu" else self.module
            self._bytes_per_pixel = memory.count_bytes_per_pixel(counted, self.network.channels)
        budget = FREE_PART * memory.measure_free(self.device)
        if self.device.type == "cpu":
            held = x.nbytes * (1 + self.network.scale**2)  # the picture and its result
            budget = min(budget, max(CPU_BUDGET - held, SMALLEST_BUDGET))
        return int(budget / self._bytes_per_pixel)

    def _fit_tile(self, x: Tensor, pixels: int) -> int | None:
        if not getattr(self.module, "is_divisible", True):
            self._check_whole(x, pixels)
            return None
        side = int(pixels**0.5) - 2 * tiling.Reach.of(self.module).halo
        return min(max(side // 8 * 8, tiling.SMALLEST_TILE), LARGEST_TILE)

    def _check_whole(self, x: Tensor, pixels: int) -> None:
        from hranet_arch.onnx_network import explain_whole

        if x.shape[-2] * x.shape[-1] > pixels:
            raise InputError(explain_whole(x.shape[-2:]))

    # --- what may come in ---

    def _check_channels(self, given: int, layout: str) -> str:
        """How a picture goes through a network for other colours, in words."""
        own = self.network.channels
        if given not in (1, 3):
            raise InputError(
                f"A picture with {given} channels ({layout}) was given; 1 (grey) and 3 (RGB) are allowed. "
                "Take alpha off first, and put it back afterwards."
            )
        if own == given:
            return ""
        if own == 3 and self.takes_gray_as_rgb:
            return "as grey in red, green and blue (a colour network)"
        if own != 1:
            raise InputError(
                f"A picture with {given} channel ({layout}) was given; {self.network.name} takes {own}. "
                "Take a network for grey pictures."
            )
        return "channel by channel (a grey network)"

    def _check_sigma(self, sigma: float | str | None, x: Tensor) -> float | None:
        name = self.network.name
        if not self.network.takes_sigma:
            if sigma is not None:
                raise InputError(f"sigma={sigma!r} was given, but {name} is not told the noise level: leave it out.")
            return None
        if sigma == "auto":
            sigma = estimate_sigma(np.concatenate([_to_array(one) for one in x], axis=-1))
        if sigma is None:
            raise InputError(f"{name} must be told the noise level: give sigma in grey levels, or 'auto'.")
        if isinstance(sigma, bool) or not isinstance(sigma, numbers.Real) or not 0 <= sigma <= 255:
            raise InputError(f"sigma={sigma!r} is not allowed: it must be grey levels from 0 to 255, or 'auto'.")
        return float(sigma)


class Denoiser(Restorer):
    """Takes noise out of pictures::

        denoiser = Denoiser("hranet_s_gray_s25")
        clean = denoiser(noisy)

    What it is made from is said at ``Restorer``.
    """

    task = "denoise"
    takes_gray_as_rgb = False


class Upscaler(Restorer):
    """Enlarges pictures, as many times as its network does: ``large = Upscaler("net_x2.safetensors")(small)``."""

    task = "sr"


class Deblocker(Restorer):
    """Takes blocks and ringing out of pictures that were JPEGs: ``clean = Deblocker("net.safetensors")(picture)``."""

    task = "jpeg"


RESTORERS: Mapping[Task, type[Restorer]] = {one.task: one for one in (Denoiser, Upscaler, Deblocker)}


def enlarge_bicubic(image: Image, scale: int) -> Image:
    """Enlarges a picture of any layout and depth without a network, by bicubic interpolation as MATLAB has it."""
    network = LoadedNetwork(BicubicEnlargement(scale), 1, False, Description("bicubic", Path("bicubic")))
    return Upscaler(network, device="cpu").restore(image).image


def check_arguments(
    device: str | torch.device, precision: str, tile: int | None, backend: Backend | None
) -> torch.device:
    """The device; or an InputError for what no restorer can use, before any network is loaded."""
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r} is not allowed: it must be 'fp32', 'bf16' or 'int8'.")
    is_whole = isinstance(tile, numbers.Integral) and not isinstance(tile, bool)  # NumPy's too
    if tile is not None and not (is_whole and tile >= tiling.SMALLEST_TILE):
        raise InputError(
            f"tile={tile!r} is not allowed: it must be at least {tiling.SMALLEST_TILE} pixels; "
            "without it the free memory decides."
        )
    if backend not in (None, "torch", "onnxruntime"):
        raise InputError(f"backend={backend!r} is not allowed: it must be 'torch' or 'onnxruntime'.")
    if backend == "onnxruntime":
        from hranet_arch.onnx_network import import_onnxruntime

        import_onnxruntime()
        _require_fp32(precision)
    return arithmetic.find_device(device)


def _require_fp32(precision: str) -> None:
    if precision != "fp32":
        raise InputError(f"precision={precision!r} is not allowed: ONNX Runtime runs networks in 'fp32'.")


class _Scaled:
    """Planes of any depth seen as float: areas come out in [0, 1] on a device, and go in scaled to the depth again.

    Grey planes come out once for each of the network's channels, and the mean of these goes in.
    """

    def __init__(self, planes: Tensor, device: torch.device, channels: int) -> None:
        self.planes = planes
        self.device = device
        self.channels = channels
        self.shape = planes.shape
        self.largest = LARGEST_VALUE.get(planes.dtype)

    def __getitem__(self, area: tuple) -> Tensor:
        allocator.give_back_beyond()
        part = self.planes[area].to(self.device).to(torch.float32, memory_format=torch.contiguous_format)
        part = part / self.largest if self.largest else part
        return part.expand(-1, self.channels, -1, -1)

    def __setitem__(self, area: tuple, part: Tensor) -> None:
        if part.shape[1] > self.planes.shape[1]:
            part = part.mean(1, keepdim=True)
        if self.largest:
            part = (part.clamp(0, 1) * self.largest).round()
        self.planes[area].copy_(part)


def _to_planes(image: Image) -> tuple[Tensor, str]:
    """A view as ``(n, c, h, w)``, and the layout in words. Arrays that torch cannot look at are copied.

    Raises:
        InputError: for a shape or a type that is no picture's.
    """
    given = type(image).__name__
    if isinstance(image, (np.ndarray, Tensor)):
        given += f" {tuple(image.shape)} {image.dtype}"
    if isinstance(image, np.ndarray):
        allowed = "(h, w), (h, w, 1), (h, w, 3) or (n, h, w, c)"
        planes = _view(image, given)
        dims = {2: (None, None, 0, 1), 3: (None, 2, 0, 1), 4: (0, 3, 1, 2)}.get(planes.ndim)
    elif isinstance(image, Tensor):
        allowed = "(c, h, w) or (n, c, h, w)"
        planes = image.detach()
        dims = {3: (None, 0, 1, 2), 4: (0, 1, 2, 3)}.get(planes.ndim)
    else:
        raise InputError(f"{given} was given; a NumPy array or a torch tensor is allowed.")
    if dims is None or not planes.numel():
        raise InputError(f"{given} was given; allowed are pictures of at least one pixel: {allowed}.")
    if planes.dtype not in (*LARGEST_VALUE, *FLOATS):
        raise InputError(f"{given} was given; uint8, uint16, float16, float32 and float64 are allowed.")
    planes = planes.permute(*[dim for dim in dims if dim is not None])
    for place, dim in enumerate(dims):
        planes = planes.unsqueeze(place) if dim is None else planes
    return planes, given


def _make_like(image: Image, scale: int) -> Image:
    if isinstance(image, np.ndarray):
        rows = image.ndim - 3 if image.ndim > 2 else 0
        shape = [length * scale if axis in (rows, rows + 1) else length for axis, length in enumerate(image.shape)]
        return np.empty(shape, image.dtype.newbyteorder("="))
    return image.new_empty(*image.shape[:-2], image.shape[-2] * scale, image.shape[-1] * scale)


def _view(image: np.ndarray, given: str) -> Tensor:
    is_even = all(stride >= 0 and stride % image.itemsize == 0 for stride in image.strides)
    is_viewable = image.flags.writeable and image.dtype.isnative and is_even
    try:
        return torch.from_numpy(image if is_viewable else image.astype(image.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise InputError(f"{given} was given; uint8, uint16, float16, float32 and float64 are allowed.") from error


def _check_range(x: Tensor) -> None:
    if x.dtype not in FLOATS:
        return
    lowest, highest = x.min().item(), x.max().item()  # not a number where a pixel is not
    if not (lowest >= LOWEST and highest <= HIGHEST):
        raise InputError(
            f"Float pixels from {lowest:g} to {highest:g} were given; [0, 1] is allowed, with the noise around it. "
            "Divide by the value of white, or give uint8 or uint16."
        )


def _divide(x: Tensor, y: Tensor, channels: int, pixels: int) -> list[tuple[Tensor, Tensor]]:
    """Source and target in parts that go through the network together: some pictures, one channel if it is grey."""
    count = max(pixels // (x.shape[-2] * x.shape[-1]), 1)
    parts = []
    for start in range(0, x.shape[0], count):
        for channel in range(0, x.shape[1], channels):
            area = slice(start, start + count), slice(channel, channel + channels)
            parts.append((x[area], y[area]))
    return parts


def _to_array(planes: Tensor) -> np.ndarray:
    """``(c, h, w)`` to ``(h, w, c)``, in the depth it has."""
    return planes.permute(1, 2, 0).cpu().numpy()
