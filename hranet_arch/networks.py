"""Networks ready to run, from weights: released ones by name, and files of every layout that BasicSR writes."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from hranet_arch import baselines
from hranet_arch.checkpoints import load_checkpoint, select_params
from hranet_arch.errors import InputError

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).resolve().parent / "weights"

Sigma = float | tuple[float, float] | None
Backend = Literal["torch", "onnxruntime"]


@dataclass(frozen=True)
class Description:
    """What a weight file says of itself.

    A ``.safetensors`` file has it as metadata, a dictionary of strings: ``network_g`` (JSON, as in an option file),
    ``color`` (``gray`` or ``rgb``), ``sigma`` (JSON: a number in grey levels, or ``[lowest, highest]``), ``task``
    (``denoise``), and ``card`` (JSON, all else). A ``.pth`` file of ours has ``network_g`` beside the weights.
    """

    name: str
    path: Path
    network_g: Mapping[str, object] | None = None
    color: Literal["gray", "rgb"] | None = None
    sigma: Sigma = None
    task: str = "denoise"
    card: Mapping[str, object] | None = None

    @classmethod
    def read(cls, path: str | Path, texts: Mapping[str, str] | None = None) -> Description:
        """From ``texts``, or from the header of a ``.safetensors`` file.

        Raises:
            InputError: if an entry is not JSON, or not of the kind above.
        """
        path = Path(path)
        texts = _read_header(path) if texts is None else texts
        values = {}
        for key in ("network_g", "sigma", "card"):
            try:
                values[key] = json.loads(texts.get(key) or "null")
            except ValueError as error:
                raise InputError(f"{path}: its entry {key!r} is not JSON: {error}.") from error
        sigma = values["sigma"]
        values["sigma"] = tuple(sigma) if isinstance(sigma, list) else sigma
        color, task = texts.get("color") or None, texts.get("task") or "denoise"
        _check(path, "network_g", values["network_g"], isinstance(values["network_g"], dict | None), "a dictionary")
        _check(path, "sigma", sigma, _is_sigma(values["sigma"]), "a noise level in grey levels, or the least and most")
        _check(path, "color", color, color in (None, "gray", "rgb"), "'gray' or 'rgb'")
        return cls(path.stem, path, color=color, task=task, **values)

    @property
    def is_blind(self) -> bool:
        return isinstance(self.sigma, tuple)

    @property
    def takes_sigma(self) -> bool:
        return (self.network_g or {}).get("type") == "FFDNet"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network ready to run.

    Attributes:
        module: in evaluation mode, BatchNorms folded, on the CPU; has ``halo`` and ``tile_multiple``.
        channels: of its pictures: 1 (grey) or 3 (RGB).
        takes_sigma: whether ``forward`` takes the noise level, in grey levels, as second argument.
        description: what its file says.
        backend: what runs it; for ``'onnxruntime'`` the module is an ``OnnxNetwork``.
    """

    module: nn.Module
    channels: int
    takes_sigma: bool
    description: Description
    backend: Backend = "torch"

    @property
    def name(self) -> str:
        return self.description.name


def list_released() -> dict[str, Description]:
    """The released networks for denoising by name, from the headers of the package's weight files."""
    found = [Description.read(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]
    return {one.name: one for one in found if one.task == "denoise"}


def load_network(
    weights: str | Path, network_g: Mapping[str, object] | None = None, *, backend: Backend | None = None
) -> LoadedNetwork:
    """Loads a released network by name, or any ``.pth`` or ``.safetensors`` file of HRANet, DnCNN, FFDNet or ADNet.

    ``.onnx`` files that ``basicsr export`` wrote can be loaded too.

    Args:
        weights: a name, or a file: ``params_ema`` is taken before ``params``, before tensors without a key;
            a leading ``module.`` is removed. Nothing in the file is executed.
        network_g: ``type`` and arguments, for a file that does not say them and whose weights' shapes do not either
            (HRANet's ``attention_pool`` and ``attention_gate`` where they are not the defaults).
        backend: what shall run it; None: ONNX Runtime for an ``.onnx`` file, else torch. For ``'onnxruntime'`` other
            files are converted first, which takes about ten seconds.

    Raises:
        InputError: if there is no such name or file, or the file holds another network.
    """
    path = _find(weights)
    if path.suffix == ".onnx":
        return _load_onnx(path, backend)
    params, description = read_weights(path)
    network_g = network_g or description.network_g
    try:
        module = baselines.from_state_dict(params, network_g)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if hasattr(module, "fold_batchnorm"):
        module.fold_batchnorm()
    channels = (network_g or baselines.recognize(params)[1]).get("num_in_ch", 1)
    is_told = isinstance(module, baselines.FFDNet)
    network = LoadedNetwork(module.requires_grad_(False), channels, is_told, description)
    if backend == "onnxruntime":
        from hranet_arch import onnx_network

        logger.info("%s is converted for ONNX Runtime; `basicsr export` keeps the result.", network.name)
        return onnx_network.convert(network)
    return network


def _load_onnx(path: Path, backend: Backend | None) -> LoadedNetwork:
    from hranet_arch import onnx_network

    if backend == "torch":
        raise InputError(f"{path}: an ONNX model is run by ONNX Runtime; for torch give the weights it was made from.")
    return onnx_network.load_onnx(path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors of a weight file by name, and what the file says of itself.

    Raises:
        InputError: if it is no whole weight file.
    """
    checkpoint = load_checkpoint(path)
    is_safetensors = path.suffix == ".safetensors"
    texts = None if is_safetensors else {k: v for k, v in checkpoint.items() if isinstance(v, str)}
    description = Description.read(path, texts)
    params, _ = select_params({key: value for key, value in checkpoint.items() if not isinstance(value, str)})
    return params, description


def _find(weights: str | Path) -> Path:
    path = Path(weights)
    if path.suffix in (".pth", ".pt", ".safetensors", ".onnx") or path.is_file():
        return path
    released = list_released()
    if str(weights) in released:
        return released[str(weights)].path
    close = difflib.get_close_matches(str(weights), released, n=1)
    known = f"Released: {', '.join(released)}." if released else "None are released yet."
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{weights}: no network of this name, and no such file.{hint} {known} Or give a weight file.")


def _read_header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a whole weight file: {error}") from error


def _is_sigma(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    are_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) and one >= 0 for one in values)
    return value is None or (are_numbers and len(values) <= 2 and list(values) == sorted(values) and len(values) > 0)


def _check(path: Path, name: str, value: object, is_met: bool, rule: str) -> None:
    if not is_met:
        raise InputError(f"{path}: its entry {name!r} is {value!r}; it must be {rule}.")


# --- which of the released -------------------------------------------------------------------------------------------


CLOSE = 1.25  # a network for one noise level does well up to this ratio of the levels; beyond, a blind one does better


def choose_released(
    released: Mapping[str, Description], color: Literal["gray", "rgb"], sigma: float | Literal["blind"] | None
) -> Description:
    """Picks the network for a picture.

    For colour, one for colour, or, where none is released, one for grey (to be run channel by channel). Of these, for
    ``'blind'`` and for None (a noise level that is not known) a blind one; for a noise level the network trained for
    the nearest one if that is within ``CLOSE``, else one that is told the level or a blind one whose range holds it,
    else the nearest.

    Args:
        released: by name, as ``list_released`` gives them.
        color: of the picture.
        sigma: noise level in grey levels.

    Raises:
        InputError: if none fits.
    """
    if not released:
        raise InputError("No trained networks are released yet. Give the weights yourself: --model FILE.")
    fitting = [one for one in released.values() if one.color == color]
    if not fitting and color == "rgb":
        fitting = [one for one in released.values() if one.color == "gray"]
    flexible = [one for one in fitting if one.is_blind and not (one.takes_sigma and not isinstance(sigma, float | int))]
    fixed = [one for one in fitting if one.sigma is not None and not one.is_blind]
    if isinstance(sigma, (int, float)):
        ranked = sorted(fixed, key=lambda one: _distance(one, sigma))
        if ranked and _distance(ranked[0], sigma) <= CLOSE:
            return ranked[0]
        covering = [one for one in flexible if one.sigma[0] <= sigma <= one.sigma[1]]
        chosen = [*covering, *sorted([*fixed, *flexible], key=lambda one: _distance(one, sigma))]
    else:
        chosen = flexible
    if not chosen:
        wanted = "a blind network" if sigma is None or sigma == "blind" else f"sigma {sigma:g}"
        raise InputError(
            f"No released network for {wanted}, {'grey' if color == 'gray' else 'colour'}. "
            f"Released: {', '.join(released)}. Choose one with --model."
        )
    return chosen[0]


def _distance(one: Description, sigma: float) -> float:
    """The ratio of the picture's noise level to the nearest that the network was trained for, 1 or more."""
    lowest, highest = one.sigma if one.is_blind else (one.sigma, one.sigma)
    nearest = min(max(sigma, lowest), highest)
    low, high = sorted((max(sigma, 1.0), max(nearest, 1.0)))  # below one grey level all is clean
    return high / low
