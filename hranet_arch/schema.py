"""What an option file may hold, written once: each section is a pydantic model with its keys, types and defaults.

``validate`` checks a mapping against a section and says what is wrong in the words of the file. Arguments of
registered classes (networks, losses, ...) are not here: ``options`` compares those with the classes themselves.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import reprlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def is_number(value: Any) -> bool:
    """Whether it is an ``int`` or a ``float``: ``true`` is an ``int`` to Python, and no number here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_sigma(value: Any) -> Any:
    levels = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(is_number(level) and 0 <= level < math.inf for level in levels):
        raise ValueError("must be a noise level in grey levels (0 or more), or [lowest, highest]")
    if levels[0] > levels[-1]:
        raise ValueError("runs backwards; write [lowest, highest]")
    return value


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[^/\\.\0][^/\\\0]*", value):  # of a folder: no way out of the one it is in
        raise ValueError("must be the name of a folder: not empty, without / and \\, and no dot at its beginning")
    return value


def _check_num_gpu(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("must be auto, or a number of GPUs (0 for the CPU)")
    return value


Number = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1)]
Name = Annotated[str, AfterValidator(_check_name)]


class Section(BaseModel):
    """Keys that are known. Others are let through by pydantic and named by ``validate``."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), coerce_numbers_to_str=True)


class Typed(BaseModel):
    """A ``type:`` that a registry holds, and that class's own arguments."""

    model_config = ConfigDict(extra="allow")
    type: str


# --- datasets ---------------------------------------------------------------------------------------------------------


class Backend(Section):
    type: Literal["disk", "lmdb"]


class OtherDataset(Section):
    """What every dataset has; of one of BasicSR's or a plug-in's own, only the class itself knows more."""

    name: Name
    type: str
    phase: str | None = None
    scale: Positive | None = None  # the file's own scale, for every dataset
    io_backend: Backend | None = None
    filename_tmpl: str = "{}"
    meta_info_file: str | None = None
    dataset_enlarge_ratio: Positive = 1
    batch_size_per_gpu: Positive = 16
    num_worker_per_gpu: Count = 2
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Positive = 1
    pin_memory: bool = False
    persistent_workers: bool = False
    use_shuffle: bool = True  # in BasicSR's files; its sampler always shuffles
    gt_size: Positive = 48
    use_hflip: bool = True
    use_rot: bool = True


class GaussianDenoising(OtherDataset):
    dataroot_gt: str
    sigma: Annotated[Any, AfterValidator(_check_sigma)]
    color: Literal["gray", "rgb"]
    clip: bool = False
    quantize: bool = False
    cache: Literal["ram"] | None = None
    degrade_on: Literal["loader", "device"] = "loader"


class Degradation(OtherDataset):
    dataroot_gt: str
    degradations: Annotated[list[Typed], Field(min_length=1)]
    color: Literal["gray", "rgb", "y"]
    cache: Literal["ram"] | None = None


class PairedDenoising(OtherDataset):
    dataroot_gt: str
    dataroot_lq: str
    color: Literal["gray", "rgb"]
    cache: Literal["ram"] | None = None


class SingleImage(OtherDataset):
    dataroot_lq: str
    color: Literal["y", "n"] | None = None
    mean: list[Number] | None = None
    std: list[Number] | None = None


class PairedImage(SingleImage):
    dataroot_gt: str


DATASETS: dict[str, type[OtherDataset]] = {
    "GaussianDenoisingDataset": GaussianDenoising,
    "DegradationDataset": Degradation,
    "PairedDenoisingDataset": PairedDenoising,
    "PairedImageDataset": PairedImage,
    "SingleImageDataset": SingleImage,
}


# --- the other sections -----------------------------------------------------------------------------------------------


class Paths(Section):
    pretrain_network_g: str | None = None
    strict_load_g: bool = True
    param_key_g: str | None = None
    resume_state: str | None = None
    ignore_resume_networks: list[str] | None = None


class Optimizer(Typed):
    lr: Annotated[Number, Field(gt=0)]


class Train(Section):
    total_iter: Positive
    warmup_iter: Annotated[int, BeforeValidator(_refuse_bool)] = -1
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0
    optim_g: Optimizer
    scheduler: Typed
    pixel_opt: Typed | None = None
    perceptual_opt: Typed | None = None


class RestorationTrain(Train):
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    accumulate: Positive = 1
    grad_clip: Annotated[Number, Field(gt=0)] | None = None
    max_skipped: Positive = 100
    teacher: str | None = None


class Metric(Typed):
    better: Literal["higher", "lower"] = "higher"
    crop_border: Count | None = None
    test_y_channel: bool | None = None


class Val(Section):
    val_freq: Positive = 5000
    save_img: bool = False
    suffix: str | None = None
    pbar: bool = True
    metrics: dict[str, Metric] | None = None
    tb_images: Count = 4
    best_on: str | list[str] | None = "first"
    tile: Count = 1024
    halo: Count = 32


class Wandb(Section):
    project: str | None = None
    resume_id: str | None = None


class Logger(Section):
    print_freq: Positive = 100
    save_checkpoint_freq: Positive = 5000
    use_tb_logger: bool = True
    wandb: Wandb | None = None


class Distribution(Section):
    backend: Literal["nccl", "gloo"] | None = None  # in BasicSR's files; the device decides
    port: Count | None = None


class Options(Section):
    """The whole of an option file for BasicSR's models."""

    name: Name
    model_type: str
    scale: Positive = 1
    num_gpu: Annotated[Any, AfterValidator(_check_num_gpu)] = "auto"
    manual_seed: Annotated[Count, Field(lt=2**31)] | None = None
    find_unused_parameters: bool = False
    dist_params: Distribution | None = None
    datasets: dict[str, dict[str, Any]]
    network_g: Typed
    path: Paths = Paths()
    train: Train | None = None
    val: Val = Val()
    logger: Logger = Logger()


class RestorationOptions(Options):
    """For ``RestorationModel`` and what is made from it."""

    train: RestorationTrain | None = None


# --- comparisons ------------------------------------------------------------------------------------------------------


LEVEL_KEYS = {"denoise": "sigma", "sr": "scale", "jpeg": "quality"}  # by task: the key of its levels


class ComparedMethod(Section):
    """A network by its weights, or a method without weights by its name."""

    weights: str | None = None  # {sigma}, {scale} or {quality} in it stands for the level
    network_g: Typed | None = None  # None: recognised from the weights
    method: str | None = None  # input, bm3d, non_local_means, wavelet
    levels: Annotated[list[Any], Field(min_length=1)] | None = None  # measured at these alone; None: at all of the file
    training: str | None = None  # the training set, for the tables
    published: str | None = None  # its name in published.json; None: its own
    enlarge_first: bool = False  # super-resolution: the network takes the bicubically enlarged picture
    channel: Literal["all", "y"] = "all"  # y: the network takes the luma alone
    ensemble: bool = False  # the mean over the picture's eight symmetries: a "+" behind its name in papers


class PairedFolders(Section):
    model_config = ConfigDict(extra="forbid")
    gt: str
    lq: str


class Costs(Section):
    """Sides are of the restored picture, ``[height, width]``."""

    macs_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [256, 256]
    sizes: list[Annotated[list[Positive], Field(min_length=2, max_length=2)]] = [[128, 128], [256, 256]]
    rounds: Positive = 6


class Comparison(Section):
    """The whole of an option file for ``basicsr compare``."""

    name: Name
    task: Literal["denoise", "sr", "jpeg"] = "denoise"
    color: Literal["gray", "rgb"]
    sigma: list[Any] | None = None  # looked at one by one: a wrong one does not stop the others
    scale: list[Any] | None = None
    quality: list[Any] | None = None
    noise: Literal["gaussian", "gaussian_clipped_8bit"] = "gaussian"
    noise_seed: Literal["zero", "number"] = "zero"
    datasets_root: str = "datasets"
    weights_root: str = "weights"
    testsets: Annotated[dict[Name, str | PairedFolders], Field(min_length=1)]
    methods: Annotated[dict[Name, ComparedMethod], Field(min_length=1)]
    published: list[str] = []  # of published.json: methods whose values stand in a table of their own
    costs: Costs = Costs()
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tile: Count = 1024


# The models all of whose options are here. Others (BasicSR's GANs, plug-ins) may read more of them.
MODELS: dict[str, type[Options]] = {
    "DenoisingModel": RestorationOptions,
    "RestorationModel": RestorationOptions,
    "SRModel": Options,
    "SwinIRModel": Options,
}


# --- checking ---------------------------------------------------------------------------------------------------------


def validate(section: type[Section], value: dict, where: str, errors: list[str], is_open: bool = False) -> dict | None:
    """Checks a mapping against a section.

    Args:
        section: the keys and types that are allowed.
        value: what the file holds.
        where: the keys that lead to it, ``'datasets.train.'``; for the messages.
        errors: gets a message for each mistake.
        is_open: whether unknown keys are somebody else's and right.

    Returns:
        The mapping with its defaults, as plain values; None where it holds wrong values.
    """
    if not is_open:
        errors += _find_unknown(section, value, where)
    try:
        return _to_plain(section.model_validate(value))
    except ValidationError as error:
        errors += _explain(error, value, where)
        return None


def _find_unknown(section: type[Section], value: dict, where: str) -> list[str]:
    errors = []
    for key, item in value.items():
        if key not in section.model_fields:
            is_restoration = section is Train and key in RestorationTrain.model_fields
            hint = " It needs model_type: RestorationModel (or DenoisingModel)." if is_restoration else None
            errors.append(f"{where}{key}: unknown key.{hint or suggest(str(key), section.model_fields)}")
            continue
        annotation = section.model_fields[key].annotation
        items = item if get_origin(annotation) is dict and isinstance(item, dict) else {"": item}
        for inner in (annotation, *get_args(annotation)):
            if inspect.isclass(inner) and issubclass(inner, Section):
                for name, one in items.items():
                    place = f"{where}{key}.{name}." if name else f"{where}{key}."
                    errors += _find_unknown(inner, one, place) if isinstance(one, dict) else []
    return errors


def _explain(error: ValidationError, value: dict, where: str) -> list[str]:
    """A line for each place; what the members of a union say of it is joined with "or"."""
    reasons: dict[str, list[str]] = {}
    for problem in error.errors():
        place = where + ".".join(_keys_in(value, problem))
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = message.replace("a valid dictionary", "keys and values").split(" or instance of")[0]
        if problem["type"] == "missing":
            reasons[place] = ["is missing"]
        elif place in reasons:
            reasons[place].append(message.removeprefix("must be "))
        else:
            reasons[place] = [f"{reprlib.repr(problem['input'])}: {message}"]
    return [f"{place}: {' or '.join(texts)}." for place, texts in reasons.items()]


def _keys_in(value: Any, problem: dict) -> list[str]:
    """The part of a problem's location that is in the file; pydantic puts the names of union members in between."""
    keys = []
    for key in problem["loc"]:
        is_there = key in value if isinstance(value, dict) else isinstance(value, list) and isinstance(key, int)
        if is_there:
            value = value[key]
            keys.append(str(key))
    return [*keys, str(problem["loc"][-1])] if problem["type"] == "missing" else keys


def _to_plain(value: Any) -> Any:
    """Models to mappings. A known key without value is left out; an argument given as null stays."""
    if isinstance(value, BaseModel):
        known = {name: getattr(value, name) for name in type(value).model_fields}
        items = {**{name: item for name, item in known.items() if item is not None}, **(value.model_extra or {})}
        return {name: _to_plain(item) for name, item in items.items()}
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, list) else value


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` with the nearest known names, or all of them where none is near."""
    known = list(known)
    if not known:
        return " There are none to choose from."
    ratios = {other: difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio() for other in known}
    enough = max(0.6, max(ratios.values(), default=0) - 0.1)
    close = sorted((other for other in known if ratios[other] >= enough), key=ratios.get, reverse=True)[:3]
    if close:
        return " Did you mean " + " or ".join(f"'{other}'" for other in close) + "?"
    return f" Known: {', '.join(sorted(known))}."
