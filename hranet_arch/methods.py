"""The methods that ``basicsr compare`` sets beside each other: networks by their weights, and the classical ones.

Each is a function of one picture. What it is made from is an entry of the option file (``schema.ComparedMethod``).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hranet_arch import arithmetic, baselines, complexity, fusion, networks, preflight, tiling
from hranet_arch.checkpoints import hash_params, load_checkpoint
from hranet_arch.compat import make_importable
from hranet_arch.errors import InputError, first_line
from hranet_arch.hranet import HRANet
from hranet_arch.images import to_planes
from hranet_arch.journal import make_key
from hranet_arch.resize import resize_bicubic
from hranet_arch.schema import LEVEL_KEYS, suggest
from hranet_arch.symmetries import IDENTITY, SYMMETRIES, Symmetry

make_importable()

from basicsr.utils.color_util import rgb2ycbcr, ycbcr2rgb

# What computes a classical method: the package it needs, and others that do a part of it where they are installed.
PACKAGES = {
    "bm3d": ("bm3d", ("bm4d",)),
    "non_local_means": ("scikit-image", ()),
    "wavelet": ("PyWavelets", ("scikit-image",)),
}

# What tables call the pictures that the methods are given.
INPUT_NAMES = {"denoise": "Noisy", "sr": "Bicubic", "jpeg": "JPEG"}


@dataclass(frozen=True)
class Task:
    """What all methods of a comparison are asked to do at one level."""

    name: str  # 'denoise', 'sr' or 'jpeg'
    color: str  # 'gray' or 'rgb'
    level: float  # sigma in grey levels, the scale or the quality
    device: torch.device
    precision: str
    tile: int

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def scale(self) -> int:
        return int(self.level) if self.name == "sr" else 1


@dataclass(frozen=True)
class Method:
    """A method at one level. ``fingerprint`` changes with anything that may change its results."""

    kind: str  # 'network', 'classical', 'input'
    type: str
    arguments: dict[str, Any]
    weights: Path | None
    weights_sha256: str | None
    parameters: int | None  # before BatchNorms are folded
    network: nn.Module | None
    task: Task
    enlarge_first: bool = False
    channel: str = "all"
    ensemble: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    code: str | None = None  # hash of a plug-in's module, which Plan.context does not cover

    @property
    def fingerprint(self) -> str:
        described = [self.kind, self.type, self.arguments, self.weights_sha256, self.enlarge_first, self.channel]
        described += [self.ensemble, self.versions, self.code, vars(self.task) | {"device": self.task.device.type}]
        return make_key(*described)

    @functools.cached_property
    def costed(self) -> nn.Module | None:
        """What costs are measured of: all that the network does for one picture."""
        window = tiling.find_window(self.arguments)
        is_bare = self.network is None or (window == 1 and not self.ensemble)
        return self.network if is_bare else _Whole(self.network, window, self.symmetries)

    @property
    def symmetries(self) -> Sequence[Symmetry]:
        return SYMMETRIES if self.ensemble else (IDENTITY,)

    @functools.cached_property
    def runner(self) -> nn.Module | None:
        """What restores pictures: the network; of ours, on the CPU, with its ReLUs fused. (Costs are without that.)"""
        is_ours = isinstance(self.network, (HRANet, baselines.DnCNN, baselines.FFDNet, baselines.ADNet))
        return fusion.fuse(self.network) if is_ours and self.task.device.type == "cpu" else self.network

    def input_size(self, height: int, width: int) -> tuple[int, int, int]:
        """``(c, h, w)`` of what the network itself is given for a restored picture of this size."""
        scale = 1 if self.enlarge_first else self.task.scale
        return 1 if self.channel == "y" else self.task.channels, height // scale, width // scale

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Restores a picture.

        Args:
            picture: float32 ``(h, w)`` or RGB ``(h, w, 3)`` in [0, 1]; noise may go beyond. A network on the luma takes
                a grey one as it is, one for RGB as three equal channels.

        Returns:
            float32 of the same layout, ``scale`` times as large, neither clipped nor rounded.
        """
        if self.network is None:
            return self.run_classical(picture)
        if self.enlarge_first:
            picture = enlarge(picture, self.task.scale)
        if picture.ndim == 2 and self.channel == "all" and self.task.channels == 3:
            output = self._run_network(np.stack([picture] * 3, axis=-1))
            return output @ np.array([65.481, 128.553, 24.966], np.float32) / np.float32(219)  # BT.601, full range
        if picture.ndim == 2 or self.channel == "all":
            return self._run_network(picture)
        y = self._run_network(np.ascontiguousarray(rgb2ycbcr(picture.astype(np.float32), y_only=True)))
        rest = picture if self.enlarge_first else enlarge(picture, self.task.scale)
        ycbcr = rgb2ycbcr(rest.astype(np.float32))
        ycbcr[..., 0] = y
        return ycbcr2rgb(ycbcr)

    def run_classical(self, picture: np.ndarray) -> np.ndarray:
        if self.kind == "input":
            return enlarge(picture, self.task.scale) if self.task.scale > 1 else picture
        return CLASSICAL[self.type](picture.astype(np.float64), self.task.level / 255).astype(np.float32)

    def _run_network(self, picture: np.ndarray) -> np.ndarray:
        x = to_planes(picture)
        with torch.inference_mode():
            output = tiling.restore(
                self.runner, x[None].to(self.task.device), tile=self.task.tile or None,
                window=tiling.find_window(self.arguments), symmetries=self.symmetries,
            )[0]  # fmt: skip
        array = output.float().cpu().numpy().transpose(1, 2, 0)
        # A network for three channels may take one and give three: the probe sees it.
        return array[..., 0] if picture.ndim == 2 and array.shape[2] == 1 else array


def enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's bicubic enlargement, float32 in and out."""
    array = resize_bicubic(to_planes(picture).float(), scale).numpy().transpose(1, 2, 0)
    return array[..., 0] if picture.ndim == 2 else np.ascontiguousarray(array)


# --- making them ------------------------------------------------------------------------------------------------------


def make_method(entry: dict, task: Task, weights_root: Path) -> Method:
    """Makes a method ready to run.

    Args:
        entry: checked options (``schema.ComparedMethod``).
        task: what it is to do.
        weights_root: where ``weights`` lie, unless they say it themselves.

    Raises:
        InputError: if its weights are missing or not its own, a package is missing, or it does not take such pictures.
    """
    if entry.get("method"):
        if entry.get("ensemble"):
            raise InputError(f"{entry['method']} cannot have ensemble: true; networks can. Leave it out.")
        return _make_classical(entry["method"], task)
    path = _find_weights(entry.get("weights"), task, weights_root)
    network, name, arguments = _build_network(entry.get("network_g"), path)
    parameters = complexity.count_parameters(network)
    if hasattr(network, "fold_batchnorm"):
        network.fold_batchnorm()
    if "sigma" in inspect.signature(network.forward).parameters and getattr(network, "has_noise_map", True):
        if task.name != "denoise":
            raise InputError(f"{name} must be told a noise level; this comparison's task, {task.name}, has none.")
        network.sigma = task.level  # FFDNet's and DRUNet's noise map
    method = Method(
        "network", name, arguments, path, hash_params(networks.read_weights(path)[0]) if path else None, parameters,
        _cast(network.eval().to(task.device), task.precision), task,
        entry.get("enlarge_first", False), entry.get("channel", "all"), entry.get("ensemble", False),
        code=_hash_code(network),
    )  # fmt: skip
    _probe(method)
    return method


def _hash_code(network: nn.Module) -> str | None:
    """Of the module that a network is from: a plug-in's or a checkout's changes without its version. Ours is hashed
    as a whole (``Plan.context``)."""
    if type(network).__module__.split(".")[0] in ("hranet_arch", "torch"):
        return None
    with contextlib.suppress(OSError, TypeError):  # of a class made at a prompt
        return make_key(Path(inspect.getsourcefile(type(network))).read_text("utf-8"))
    return None


def _find_weights(weights: str | None, task: Task, root: Path) -> Path | None:
    if weights is None:
        return None
    text = weights.replace(f"{{{LEVEL_KEYS[task.name]}}}", f"{task.level:g}")
    released = networks.list_released()
    if text in released:
        return released[text].path
    path = root / os.path.expanduser(text)
    if not path.is_file():
        path = Path(os.path.normpath(path))  # ".." needs no folder to come out of
    if not path.is_file():
        known = suggest(text, released) if not path.suffix else ""
        raise InputError(f"{path}: there are no such weights. Put them there, or set weights_root.{known}")
    return path


def _build_network(options: dict | None, path: Path | None) -> tuple[nn.Module, str, dict]:
    """The network, its architecture's name and its arguments: as the options say, else as the weights say."""
    if options is None:
        params, description = networks.read_weights(path)
        found = baselines.recognize(params)
        if found is None and not description.network_g:
            return _build_with_spandrel(params, path)
        named = dict(description.network_g or {"type": found[0].__name__, **found[1]})
        if not isinstance(named.get("type"), str):
            raise InputError(f"{path}: its entry 'network_g' names no type.")
        if hasattr(baselines, named["type"]):
            return baselines.from_state_dict(params, description.network_g), named.pop("type"), named
        options = named  # one of BasicSR's or a plug-in's, trained here: the file says which
    network = preflight.build_network("network_g", options)
    if path is not None:
        preflight.load_strictly(network, path)
        if difference := preflight.find_difference(options, path, load_checkpoint(path)):
            raise InputError(f"{difference} Write in network_g what the file has, or leave it out.")
    elif any(True for _ in network.parameters()):
        raise InputError("has no weights: a comparison of random ones says nothing. Give 'weights'.")
    return network, options["type"], {key: value for key, value in options.items() if key != "type"}


def _build_with_spandrel(params: dict[str, Tensor], path: Path) -> tuple[nn.Module, str, dict]:
    try:
        import spandrel
    except ImportError as error:
        raise InputError(
            f"{path}: not the weights of HRANet, DnCNN, FFDNet or ADNet. Name 'network_g' and its arguments, or "
            "install spandrel, which recognises many others: pip install 'hranet-arch[compare]'."
        ) from error
    try:
        described = spandrel.ModelLoader().load_from_state_dict(params)
    except Exception as error:  # UnsupportedModelError, and whatever a half-matching state dict leads to
        raise InputError(f"{path}: spandrel does not recognise these weights. Name 'network_g'.") from error
    if not isinstance(described, spandrel.ImageModelDescriptor):
        raise InputError(f"{path}: a {described.architecture.name} takes more than a picture; it cannot be compared.")
    name = described.architecture.name
    return SpandrelNetwork(described), name, {"built_by": f"spandrel {metadata.version('spandrel')}"}


class SpandrelNetwork(nn.Module):
    """A network that spandrel has built: padded as it asks, and, unlike spandrel's own call, not clipped to [0, 1].

    ``sigma`` (grey levels) fills the noise map of a network that has one more channel for it, as DRUNet has.
    """

    def __init__(self, described: Any) -> None:
        super().__init__()
        self.network = described.model
        self.scale = described.scale
        self.multiple = described.size_requirements.multiple_of
        self.minimum = described.size_requirements.minimum
        self.has_noise_map = described.architecture.id in ("DRUNet",)
        self.sigma: float = 25
        if described.size_requirements.square:
            raise InputError(f"{described.architecture.name} takes square pictures only; it cannot be compared.")

    def forward(self, x: Tensor, sigma: float | None = None) -> Tensor:
        height, width = x.shape[-2:]
        short = [max(self.minimum - side, 0) for side in (width, height)]
        x = tiling.pad_to_multiple(F.pad(x, (0, short[0], 0, short[1]), "replicate"), self.multiple)
        if self.has_noise_map:
            level = (self.sigma if sigma is None else sigma) / 255
            x = torch.cat([x, torch.full_like(x[:, :1], level)], dim=1)
        output = self.network(x)
        output = output[0] if isinstance(output, tuple) else output  # FBCNN gives its estimate of the quality too
        return output[..., : height * self.scale, : width * self.scale]


def _cast(network: nn.Module, precision: str) -> nn.Module:
    return network if precision == "fp32" else _Autocast(network, precision)


class _Autocast(nn.Module):
    """A network in another precision; the result is float32."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        for name in ("halo", "local_halo", "tile_multiple", "global_attentions"):  # what tiles are cut by
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:  # counted, not computed
            return self.network(x)
        with arithmetic.autocast(self.precision, x.device):
            return self.network(x).float()


class _Whole(nn.Module):
    """A network with its padding to whole windows and its symmetries, as a module whose costs can be measured."""

    def __init__(self, network: nn.Module, window: int, symmetries: Sequence[Symmetry]) -> None:
        super().__init__()
        self.network = network
        self.window = window
        self.symmetries = symmetries

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for symmetry in self.symmetries:  # not by ``tiling.restore``, which goes on in tiles where memory runs out
            total = total + symmetry.undo(tiling.run_padded(self.network, symmetry.apply(x), self.window))
        return total / len(self.symmetries)


def _probe(method: Method) -> None:
    """A small picture through the network: other channels and scales than the task's show before time is spent."""
    task = method.task
    shape = (48, 48, 3) if task.channels == 3 else (48, 48)
    given = f"{'grey' if task.channels == 1 else 'RGB'} pictures"
    try:
        output = method(np.zeros(shape, np.float32))
    except Exception as error:  # networks say it in every way there is
        reason = first_line(error)
        raise InputError(f"{method.type} does not take {given}: {reason}") from error
    expected = (48 * task.scale, 48 * task.scale, *shape[2:])
    if output.shape != expected:
        raise InputError(
            f"{method.type} makes {output.shape} of {shape}; {expected} is due. Are 'scale' and channels right?"
        )


# --- classical methods ------------------------------------------------------------------------------------------------


def _make_classical(name: str, task: Task) -> Method:
    if name == "input":
        return Method("input", "input", {}, None, None, None, None, task)
    if name not in CLASSICAL:
        raise InputError(f"there is no method '{name}'. Known: input, {', '.join(CLASSICAL)}.")
    if task.name != "denoise":
        raise InputError(f"{name} denoises; this comparison's task is {task.name}.")
    return Method("classical", name, {}, None, None, None, None, task, versions=_require(name))


def _require(name: str) -> dict[str, str]:
    """The versions of what computes it."""
    needed, beside = PACKAGES[name]
    extra = "bm3d" if name == "bm3d" else "compare"
    try:
        versions = {needed: metadata.version(needed)}
    except metadata.PackageNotFoundError as error:
        raise InputError(f"{name} needs the package {needed}: pip install 'hranet-arch[{extra}]'.") from error
    with contextlib.suppress(metadata.PackageNotFoundError):  # bm3d has bm4d since its version 4
        versions |= {package: metadata.version(package) for package in beside}
    return versions


def _bm3d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Its authors' own package (non-commercial licence), normal profile."""
    from bm3d import bm3d, bm3d_rgb

    return bm3d(noisy, sigma_psd=sigma) if noisy.ndim == 2 else bm3d_rgb(noisy, sigma_psd=sigma)


def _non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Buades et al., with the patches and the strength of scikit-image's own example: 5x5, distance 6, 0.8 sigma."""
    from skimage.restoration import denoise_nl_means

    axis = None if noisy.ndim == 2 else -1
    return denoise_nl_means(noisy, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, channel_axis=axis)


def _wavelet(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """BayesShrink, soft; colour in YCbCr, as scikit-image recommends."""
    from skimage.restoration import denoise_wavelet

    if noisy.ndim == 2:
        return denoise_wavelet(noisy, sigma=sigma, method="BayesShrink", rescale_sigma=True)
    return denoise_wavelet(
        noisy, sigma=sigma, method="BayesShrink", rescale_sigma=True, convert2ycbcr=True, channel_axis=-1
    )


CLASSICAL = {"bm3d": _bm3d, "non_local_means": _non_local_means, "wavelet": _wavelet}
