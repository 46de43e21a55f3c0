"""Networks ready to run, from weights: released ones by name, and files of every layout that BasicSR writes."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from hranet_arch import baselines
from hranet_arch.checkpoints import load_checkpoint, select_params
from hranet_arch.errors import InputError

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).resolve().parent / "weights"

Task = Literal["denoise", "sr", "jpeg"]
Range = float | tuple[float, float] | None
Color = Literal["gray", "rgb"]
Backend = Literal["torch", "onnxruntime"]


@dataclass(frozen=True)
class Words:
    """What a task is called: the verb of ``basicsr``, its Python class, and what its networks do."""

    verb: str
    type: str
    purpose: str


WORDS: Mapping[Task, Words] = {
    "denoise": Words("denoise", "Denoiser", "takes noise out of pictures"),
    "sr": Words("upscale", "Upscaler", "enlarges pictures"),
    "jpeg": Words("dejpeg", "Deblocker", "takes JPEG's blocks out of pictures"),
}


@dataclass(frozen=True)
class Description:
    """What a weight file says of itself.

    A ``.safetensors`` file has it as metadata, a dictionary of strings: ``network_g`` (JSON, as in an option file),
    ``color`` (``gray`` or ``rgb``), ``task`` (``denoise``, ``sr`` or ``jpeg``), what the network was trained for,
    ``sigma`` (JSON: a number in grey levels, or ``[lowest, highest]``) or ``quality`` (JSON: JPEG's, in the same way;
    for ``sr`` it is ``upscale`` of ``network_g``), and ``card`` (JSON, all else). A ``.pth`` file of ours has
    ``network_g`` beside the weights, and ``sigma`` if it was trained by a ``GaussianDenoisingDataset``. Where the task
    is not said, it follows from the others; None: from nothing.
    """

    name: str
    path: Path
    network_g: Mapping[str, object] | None = None
    color: Color | None = None
    sigma: Range = None
    quality: Range = None
    task: Task | None = None
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
        for key in ("network_g", "sigma", "quality", "card"):
            try:
                values[key] = json.loads(texts.get(key) or "null")
            except ValueError as error:
                raise InputError(f"{path}: its entry {key!r} is not JSON: {error}.") from error
        _check(path, "network_g", values["network_g"], isinstance(values["network_g"], dict | None), "a dictionary")
        for key, rule in (("sigma", "a noise level in grey levels"), ("quality", "a quality of JPEG, 1 to 100")):
            value = values[key]
            values[key] = tuple(value) if isinstance(value, list) else value
            _check(path, key, value, _is_range(values[key]), f"{rule}, or the least and most")
        color, task = texts.get("color") or None, texts.get("task") or _infer_task(values)
        upscale = (values["network_g"] or {}).get("upscale", 1)
        _check(path, "network_g: upscale", upscale, type(upscale) is int and upscale >= 1, "a whole number")
        _check(path, "color", color, color in (None, "gray", "rgb"), "'gray' or 'rgb'")
        _check(path, "task", task, task in (None, *WORDS), ", ".join(map(repr, WORDS)))
        return cls(path.stem, path, color=color, task=task, **values)

    @property
    def scale(self) -> int:
        """How many times the network enlarges."""
        return (self.network_g or {}).get("upscale", 1)

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
        scale: how many times larger its result is.
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

    @property
    def task(self) -> Task | None:
        """What it is for; None where neither its file nor its size says it."""
        return self.description.task or ("sr" if self.scale > 1 else None)

    @property
    def scale(self) -> int:
        return getattr(self.module, "upscale", 1)


def list_released(task: Task | None = None) -> dict[str, Description]:
    """The released networks, of one task or of all, by name, from the headers of the package's weight files."""
    found = [Description.read(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]
    return {one.name: one for one in found if task in (None, one.task)}


def describe_purpose(card: Mapping) -> str:
    """What a released network was trained for, by its card."""
    colors = {"gray": "grey", "rgb": "colour"}[card["color"]]
    if "scale" in card:
        level = card["scale"]
        return f"enlarges {colors} pictures {level} times that MATLAB's bicubic `imresize` made small"
    if "degradations" in card:
        return f"for {colors} pictures made bad by {_describe_steps(card['degradations'])}"
    level = card["quality"] if "quality" in card else card["sigma"]
    span = f"{level[0]} to {level[1]}" if isinstance(level, list) else level
    if "quality" in card:
        return f"for {colors} pictures out of JPEGs of quality {span}"
    return f"for {colors} pictures with white Gaussian noise of sigma {span} (grey levels)"


def _describe_steps(steps: list[dict]) -> str:
    """``Step(argument=value), then Step(...)``; of branches ``one of (...)``."""
    texts = []
    for step in steps:
        if step["type"] == "OneOf":
            texts.append("one of (" + "; ".join(map(_describe_steps, step["branches"])) + ")")
        else:
            arguments = ", ".join(f"{key}={value}" for key, value in step.items() if key != "type")
            texts.append(f"{step['type']}({arguments})")
    return ", then ".join(texts)


def require_task(network: LoadedNetwork, task: Task) -> None:
    """Refuses a network whose file says another task, or whose result has the wrong size for it.

    Raises:
        InputError: with the verb and the class that take the network.
    """
    own = network.task
    if own not in (None, task):
        right = WORDS[own]
        raise InputError(
            f"{network.name} {right.purpose}: it is for `basicsr {right.verb}`, in Python {right.type}, not for "
            f"`basicsr {WORDS[task].verb}`."
        )
    if task == "sr" and network.scale == 1:
        raise InputError(
            f"{network.name} does not enlarge pictures: its result has the size of its input. `basicsr upscale` takes "
            "networks with upscale 2, 3 or 4."
        )


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
    path = find_weights(weights)
    if path.suffix.lower() == ".onnx":
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
    params, _ = select_params({key: value for key, value in checkpoint.items() if not isinstance(value, str)})
    return params, read_description(path, checkpoint)


def read_description(path: Path, checkpoint: Mapping[str, object]) -> Description:
    """What the file, which holds ``checkpoint``, says of itself.

    Raises:
        InputError: if an entry is not what it should be.
    """
    is_safetensors = path.suffix.lower() == ".safetensors"
    texts = None if is_safetensors else {key: value for key, value in checkpoint.items() if isinstance(value, str)}
    return Description.read(path, texts)


def find_weights(weights: str | Path) -> Path:
    """The file, which may not be there, or that of the released network of this name.

    Raises:
        InputError: if it is neither called as a weight file, nor a file, nor a released network's name.
    """
    path = Path(os.path.expanduser(weights))  # pathlib's fails where there is no such user
    if path.suffix.lower() in (".pth", ".pt", ".safetensors", ".onnx") or path.is_file():
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


def _infer_task(values: Mapping[str, object]) -> Task | None:
    if (values["network_g"] or {}).get("upscale", 1) != 1:
        return "sr"
    return "denoise" if values["sigma"] is not None else "jpeg" if values["quality"] is not None else None


def _is_range(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    are_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) and one >= 0 for one in values)
    return value is None or (are_numbers and len(values) <= 2 and list(values) == sorted(values) and len(values) > 0)


def _check(path: Path, name: str, value: object, is_met: bool, rule: str) -> None:
    if not is_met:
        raise InputError(f"{path}: its entry {name!r} is {value!r}; it must be {rule}.")


# --- which of the released -------------------------------------------------------------------------------------------


CLOSE = 1.25  # a network for one noise level does well up to this ratio of the levels; beyond, a blind one does better


def choose_denoiser(
    released: Mapping[str, Description],
    color: Color,
    sigma: float | Literal["blind"] | None,
    *,
    is_estimated: bool = False,
) -> Description:
    """Picks the network that takes a picture's noise away.

    For colour, one for colour, or, where none is released, one for grey (to be run channel by channel). Of these, for
    ``'blind'`` and for None (a level that is not known: the picture is too small) a blind one; for a noise level the
    network trained for the nearest one if that is within ``CLOSE``, else one that is told the level or a blind one
    whose range holds it. Where there is none, one that no level was said of, as of those for the noise of photographs;
    else the nearest, and for None the one for the weakest noise. An estimate says how strong the noise is and not that
    it is white: with one, a network for the noise of photographs comes first. Where several fit alike, the widest is
    taken.

    Args:
        released: those for denoising by name, as ``list_released`` gives them.
        color: of the picture.
        sigma: noise level in grey levels.
        is_estimated: nobody said the level; it is the picture's estimate, or None.

    Raises:
        InputError: if none fits.
    """
    require_any(released, "denoise")
    widest = _sort_by_width(released)
    fitting = [one for one in widest if one.color == color]
    if not fitting and color == "rgb":
        fitting = [one for one in widest if one.color == "gray"]
    flexible = [one for one in fitting if one.is_blind and not (one.takes_sigma and not isinstance(sigma, float | int))]
    fixed = [one for one in fitting if one.sigma is not None and not one.is_blind]
    unsaid = [one for one in fitting if one.sigma is None]
    if is_estimated and unsaid:
        return unsaid[0]
    if isinstance(sigma, (int, float)):
        ranked = sorted(fixed, key=lambda one: _distance(one, sigma))
        if ranked and _distance(ranked[0], sigma) <= CLOSE:
            return ranked[0]
        covering = [one for one in flexible if one.sigma[0] <= sigma <= one.sigma[1]]
        chosen = [*covering, *unsaid, *sorted([*fixed, *flexible], key=lambda one: _distance(one, sigma))]
    else:
        chosen = [*flexible, *unsaid]
        if sigma is None:
            chosen += sorted(fixed, key=lambda one: one.sigma)
    if not chosen:
        wanted = "a blind network" if sigma is None or sigma == "blind" else f"sigma {sigma:g}"
        raise InputError(
            f"No released network for {wanted}, {'grey' if color == 'gray' else 'colour'}. "
            f"Released: {', '.join(released)}. Choose one with --model."
        )
    return chosen[0]


def choose_upscaler(released: Mapping[str, Description], color: Color, scale: int) -> Description:
    """Picks the network that enlarges a picture ``scale`` times: one for its colour, else one for the other.

    Of several, the widest network.

    Args:
        released: those for super-resolution by name.
        color: of the picture.
        scale: 2, 3 or 4.

    Raises:
        InputError: if none is released for the scale.
    """
    require_any(released, "sr")
    fitting = [one for one in _sort_by_width(released) if one.scale == scale]
    if not fitting:
        raise InputError(
            f"No released network enlarges {scale} times. Released: {', '.join(released)}. Give another --scale, or "
            "choose one with --model."
        )
    return _prefer_color(fitting, color)


def choose_deblocker(released: Mapping[str, Description], color: Color) -> Description:
    """Picks the network that takes JPEG's blocks out of a picture: one for its colour, else one for the other.

    Of several, the one that was trained for the widest range of qualities, since a picture does not say its own for
    sure; of those that are alike in this, the widest network.

    Raises:
        InputError: if none is released.
    """
    require_any(released, "jpeg")
    widest_range = sorted(
        _sort_by_width(released),
        key=lambda one: one.quality[0] - one.quality[1] if isinstance(one.quality, tuple) else 0,
    )
    return _prefer_color(widest_range, color)


def require_any(released: Mapping[str, Description], task: Task) -> None:
    """Refuses to choose from nothing.

    Raises:
        InputError: if nothing is released.
    """
    if not released:
        purpose = WORDS[task].purpose
        raise InputError(f"No network that {purpose} is released yet. Give the weights yourself: --model FILE.")


def _sort_by_width(released: Mapping[str, Description]) -> list[Description]:
    return sorted(released.values(), key=lambda one: -(one.network_g or {}).get("num_feat", 64))


def _prefer_color(networks: Sequence[Description], color: Color) -> Description:
    return next((one for one in networks if one.color == color), networks[0])


def _distance(one: Description, sigma: float) -> float:
    """The ratio of the picture's noise level to the nearest that the network was trained for, 1 or more."""
    lowest, highest = one.sigma if one.is_blind else (one.sigma, one.sigma)
    nearest = min(max(sigma, lowest), highest)
    low, high = sorted((max(sigma, 1.0), max(nearest, 1.0)))  # below one grey level all is clean
    return high / low
