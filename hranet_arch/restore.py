"""A noisy picture in, a clean one out: ``Denoiser``, for arrays and tensors of any size, depth and layout.

``basicsr denoise`` and Python users call it. Needs torch and NumPy; files of pictures are another module's
(``pictures.py``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hranet_arch import memory, tiling
from hranet_arch.errors import InputError
from hranet_arch.networks import Backend, LoadedNetwork, load_network
from hranet_arch.noise import estimate_sigma
from hranet_arch.symmetries import IDENTITY, SYMMETRIES

logger = logging.getLogger(__name__)

LARGEST_VALUE = {torch.uint8: 255, torch.uint16: 65535}
FLOATS = (torch.float16, torch.float32, torch.float64)
LOWEST, HIGHEST = -2.0, 3.0  # of float pixels: white Gaussian noise up to sigma 100 around [0, 1]
# On the CPU a picture, its result and a tile stay below this many bytes together, so that the process stays under 4 GB.
CPU_BUDGET = 3 * 2**30
SMALLEST_BUDGET = 256 * 2**20
FREE_PART = 0.5  # of the free memory; the rest is for whoever else is on the machine
LARGEST_TILE = 4096  # larger ones save less than 6 % of the work

Image = np.ndarray | Tensor


@dataclass(frozen=True)
class Restoration:
    """A clean picture and how it was made.

    Attributes:
        image: of the type, depth and layout of the noisy one.
        sigma: the noise level in grey levels that the network was told; None if it takes none.
        is_by_channel: whether a grey network went through a colour picture channel by channel.
    """

    image: Image
    sigma: float | None
    is_by_channel: bool


class Denoiser:
    """Cleans pictures with a trained network::

        denoiser = Denoiser("hranet_gray_s25")
        clean = denoiser(noisy)

    Args:
        weights: a released network's name, a ``.pth``, ``.safetensors`` or ``.onnx`` file, or a ``LoadedNetwork``.
        device: ``'auto'`` (a GPU if there is one), ``'cpu'``, ``'cuda'``, ``'cuda:1'``.
        precision: ``'fp32'``, or ``'bf16'`` for convolutions in 16 bits: faster on hardware made for it, less exact.
        tile: side in pixels of the tiles that large pictures are cut into; None: as large as the free memory allows.
            The result is the same.
        ensemble: the mean over the picture's eight symmetries: a little better, eight times the work.
        network_g: see ``load_network``.
        backend: see ``load_network``.

    Raises:
        InputError: for a value outside of these, and as ``load_network`` does.
    """

    def __init__(
        self,
        weights: str | Path | LoadedNetwork,
        *,
        device: str | torch.device = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        tile: int | None = None,
        ensemble: bool = False,
        network_g: Mapping[str, object] | None = None,
        backend: Backend | None = None,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise InputError(f"Denoiser: precision={precision!r} is not allowed: it must be 'fp32' or 'bf16'.")
        if tile is not None and (not isinstance(tile, int) or isinstance(tile, bool) or tile < tiling.SMALLEST_TILE):
            raise InputError(
                f"Denoiser: tile={tile!r} is not allowed: it must be at least {tiling.SMALLEST_TILE} pixels, or None."
            )
        is_loaded = isinstance(weights, LoadedNetwork)
        self.network = weights if is_loaded else load_network(weights, network_g, backend=backend)
        self.device = _find_device(device)
        self.precision = precision
        self.tile = tile
        if self.network.backend == "onnxruntime":
            self._check_onnx(device)
        self.module = self.network.module.to(self.device)
        self.symmetries = SYMMETRIES if ensemble else (IDENTITY,)
        self._bytes_per_pixel: float | None = None

    def __call__(self, image: Image, *, sigma: float | Literal["auto"] | None = None) -> Image:
        """Cleans a picture, or a batch of pictures of one size.

        Args:
            image: array ``(h, w)``, ``(h, w, 1)``, ``(h, w, 3)`` (RGB) or ``(n, h, w, c)``, or tensor ``(c, h, w)`` or
                ``(n, c, h, w)``; uint8, uint16, or float in [0, 1] with the noise around it.
            sigma: the noise level in grey levels (0-255 for every depth), for a network that must be told, such as
                FFDNet; ``'auto'``: estimated.

        Returns:
            A new array or tensor of the same type, depth, layout and device. Whole numbers are rounded and clipped,
            floats neither.

        Raises:
            InputError: for other shapes, types and ranges, and for more channels than the network can take. A colour
                picture goes through a grey network channel by channel, with a line in the log.
        """
        restoration = self.restore(image, sigma=sigma)
        if restoration.is_by_channel:
            logger.info("%s is a grey network: the colour picture went channel by channel.", self.network.name)
        return restoration.image

    def restore(
        self,
        image: Image,
        *,
        sigma: float | Literal["auto"] | None = None,
        report: Callable[[float], None] = lambda done: None,
    ) -> Restoration:
        """As calling the denoiser; says what was done, and reports the part that is done, in [0, 1], meanwhile."""
        x, layout = _to_planes(image)
        is_by_channel = self._check_channels(x.shape[1], layout)
        _check_range(x)
        sigma = self._check_sigma(sigma, x)
        output = _make_like(image)
        y, _ = _to_planes(output)
        parts = _divide(x, y, self.network.channels, self._count_pixels(x))
        for i, (source, target) in enumerate(parts):
            self._run(source, target, sigma, lambda done, i=i: report((i + done) / len(parts)))
        return Restoration(output, sigma, is_by_channel)

    def _check_onnx(self, device: str | torch.device) -> None:
        """What an ONNX network cannot do; and a GPU is taken by itself only where its runtime can use it."""
        from hranet_arch.onnx_network import has_cuda

        if self.precision != "fp32":
            raise InputError(f"precision={self.precision!r} is not allowed: ONNX Runtime runs this network in 'fp32'.")
        if self.tile and not self.network.module.is_divisible:
            raise InputError(
                f"tile={self.tile} is not allowed: {self.network.name} averages over the whole picture, and as an ONNX "
                "model cannot go tile by tile."
            )
        if device == "auto" and not has_cuda():
            self.device = torch.device("cpu")

    def _run(self, x: Tensor, y: Tensor, sigma: float | None, report: Callable[[float], None]) -> None:
        run = partial(self.module, sigma=sigma) if self.network.takes_sigma else self.module
        dtype = torch.bfloat16 if self.precision == "bf16" else None
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype, enabled=dtype is not None),
            self._arithmetic(),
        ):
            tiling.restore(
                self.module,
                _Scaled(x, self.device),
                run=lambda part: run(part).float(),
                tile=self.tile or self._fit_tile(x),
                symmetries=self.symmetries,
                output=_Scaled(y, self.device),
                report=report,
            )

    def _arithmetic(self) -> contextlib.AbstractContextManager:
        return full_float32() if self.device.type == "cuda" else contextlib.nullcontext()

    # --- how much at a time ---

    def _count_pixels(self, x: Tensor) -> int:
        """How many pixels may go through the network at once."""
        halo = tiling.Reach.of(self.module).halo
        if self.tile:
            return (self.tile + 2 * halo) ** 2
        if self._bytes_per_pixel is None:
            self._bytes_per_pixel = memory.count_bytes_per_pixel(self.module, self.network.channels)
        budget = FREE_PART * memory.measure_free(self.device)
        if self.device.type == "cpu":
            budget = min(budget, max(CPU_BUDGET - 2 * x.nbytes, SMALLEST_BUDGET))
        return int(budget / self._bytes_per_pixel)

    def _fit_tile(self, x: Tensor) -> int | None:
        if not getattr(self.module, "is_divisible", True):
            self._check_whole(x)
            return None
        halo = tiling.Reach.of(self.module).halo
        side = int(self._count_pixels(x) ** 0.5) - 2 * halo
        return min(max(side // 8 * 8, tiling.SMALLEST_TILE), LARGEST_TILE)

    def _check_whole(self, x: Tensor) -> None:
        from hranet_arch.onnx_network import explain_whole

        if x.shape[-2] * x.shape[-1] > self._count_pixels(x):
            raise InputError(explain_whole(x.shape[-2:]))

    # --- what may come in ---

    def _check_channels(self, given: int, layout: str) -> bool:
        """Whether a colour picture meets a grey network."""
        own = self.network.channels
        if given not in (1, 3):
            raise InputError(
                f"A picture with {given} channels ({layout}) was given; 1 (grey) and 3 (RGB) are allowed. "
                "Take alpha off first, and put it back afterwards."
            )
        if own != given and own != 1:
            raise InputError(
                f"A picture with {given} channel ({layout}) was given; {self.network.name} takes {own}. "
                "Take a network for grey pictures."
            )
        return own != given

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
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 <= sigma <= 255:
            raise InputError(f"sigma={sigma!r} is not allowed: it must be grey levels from 0 to 255, or 'auto'.")
        return float(sigma)


class _Scaled:
    """Planes of any depth seen as float: areas come out in [0, 1] on a device, and go in scaled to the depth again."""

    def __init__(self, planes: Tensor, device: torch.device) -> None:
        self.planes = planes
        self.device = device
        self.shape = planes.shape
        self.largest = LARGEST_VALUE.get(planes.dtype)

    def __getitem__(self, area: tuple) -> Tensor:
        part = self.planes[area].to(self.device).to(torch.float32, memory_format=torch.contiguous_format)
        return part / self.largest if self.largest else part

    def __setitem__(self, area: tuple, part: Tensor) -> None:
        if self.largest:
            part = (part.clamp(0, 1) * self.largest).round()
        self.planes[area].copy_(part)


def _find_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={str(device)!r} cannot be used: {reason} Give 'auto', 'cpu' or 'cuda'.") from error
    return found


def _to_planes(image: Image) -> tuple[Tensor, str]:
    """A view as ``(n, c, h, w)``, and the layout in words. Arrays that torch cannot look at are copied.

    Raises:
        InputError: for a shape or a type that is no picture's.
    """
    given = f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))} {getattr(image, 'dtype', '')}"
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


def _make_like(image: Image) -> Image:
    if isinstance(image, np.ndarray):
        return np.empty(image.shape, image.dtype.newbyteorder("="))
    return torch.empty_like(image, memory_format=torch.contiguous_format, requires_grad=False)


def _view(image: np.ndarray, given: str) -> Tensor:
    is_viewable = image.flags.writeable and image.dtype.isnative and all(stride >= 0 for stride in image.strides)
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


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Inside, CUDA multiplies in fp32 what is fp32, and does not round to TF32's 10 bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    is_new = hasattr(cudnn, "conv")  # since torch 2.9; there the older names raise where somebody used the newer ones
    places = [(cudnn.conv, "fp32_precision"), (matmul, "fp32_precision")] if is_new else None
    places = places or [(cudnn, "allow_tf32"), (matmul, "allow_tf32")]
    before = [getattr(*place) for place in places]
    try:
        for place in places:
            setattr(*place, "ieee" if is_new else False)
        yield
    finally:
        for place, value in zip(places, before):
            setattr(*place, value)
