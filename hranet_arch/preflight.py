"""Before a run touches anything: can all that the options name be built, and does it take what the datasets give?"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hranet_arch import checkpoints, networks, registration, schema, tiling
from hranet_arch.degradations import Degradations
from hranet_arch.errors import InputError, first_line
from hranet_arch.files import require_writable

logger = logging.getLogger(__name__)

PROBE_SIZE = 48
LARGEST_PROBE = 128
LARGEST_METRIC = 256  # NIQE takes two blocks of 96 in each direction

# What BasicSR's networks cannot do, and say in words that nobody understands.
LIMITS = {
    "RIDNet": "BasicSR's RIDNet is made for RGB pictures.",
    "EDSR": "BasicSR's EDSR is made for RGB pictures.",
    "RCAN": "BasicSR's RCAN is made for RGB pictures.",
    "MSRResNet": "BasicSR's MSRResNet has upscale 2, 3 and 4 only.",
}


def check_run(opt: dict) -> None:
    """Raises InputError where ``opt`` (checked and complete) cannot run on this machine, before time is spent."""
    _check_device(opt)
    _check_folders(opt)
    for phase, dataset in opt["datasets"].items():
        _check_scale(f"datasets.{phase}", dataset, opt["scale"])
        if dataset["type"] == "DegradationDataset":
            _check_degradations(f"datasets.{phase}", dataset, opt["scale"])
    built = {key: build_network(key, value) for key, value in opt.items() if key.startswith("network_")}
    if opt["is_train"]:
        _check_training(opt, built["network_g"])
        _check_own_folder(opt)
        if opt["train"].get("teacher") is not None:
            _check_teacher(opt)
    _check_metrics((opt.get("val") or {}).get("metrics") or {})
    _check_checkpoint(opt, built["network_g"])
    _check_resume_state(opt)
    # Of other models, and of datasets without a 'color', only they themselves know what they pass to the network.
    if opt["model_type"] in schema.MODELS:
        for phase, dataset in opt["datasets"].items():
            if _names_color(dataset):
                _probe(built["network_g"], opt, phase)


def _check_device(opt: dict) -> None:
    count = torch.cuda.device_count()
    if opt["num_gpu"] == "auto":
        opt["num_gpu"] = count
    if opt["num_gpu"] > count:
        raise InputError(
            f"num_gpu: {opt['num_gpu']}, but torch {torch.__version__} sees {count} here. "
            "Write num_gpu: auto (or 0 for the CPU)."
        )
    pinned = [phase for phase, dataset in opt["datasets"].items() if dataset.get("prefetch_mode") == "cuda"]
    if pinned and opt["num_gpu"] == 0:
        raise InputError(f"datasets.{pinned[0]}.prefetch_mode: 'cuda' needs a GPU. Write cpu, or remove it.")


def _check_folders(opt: dict) -> None:
    folders = [Path(opt["path"]["log"])]
    if opt["is_train"] and opt["logger"]["use_tb_logger"]:
        folders.append(Path.cwd() / "tb_logger" / opt["name"])
    for folder in folders:
        require_writable(folder)


def _check_scale(where: str, dataset: dict, scale: int) -> None:
    if dataset["type"] == "GaussianDenoisingDataset" and scale > 1:
        raise InputError(
            f"{where}: a GaussianDenoisingDataset's noisy pictures are as large as the clean ones, but the scale is "
            f"{scale}. Write scale: 1, or take a DegradationDataset."
        )
    if where == "datasets.train" and dataset["type"] in schema.DATASETS and dataset["gt_size"] % scale:
        raise InputError(f"{where}.gt_size: {dataset['gt_size']} must be a multiple of the scale, {scale}.")


def _check_degradations(where: str, dataset: dict, scale: int) -> None:
    try:
        steps = Degradations(dataset["degradations"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}.degradations: {_first_line(error)}") from error
    if steps.scale != scale:
        raise InputError(
            f"{where}.degradations: make pictures {steps.scale} times smaller, but the file's scale is {scale}."
        )
    if where != "datasets.train" and steps.has_range:
        raise InputError(f"{where}.degradations: hold a choice or a range; a test has one level. Name a set for each.")


def _build(where: str, options: dict, make: Callable[..., Any], *arguments: Any, limit: str = "") -> Any:
    """Makes what a section with ``type`` names."""
    named = {key: value for key, value in options.items() if key != "type"}
    try:
        return make(*arguments, **named)
    except Exception as error:  # classes refuse their arguments in every way there is
        reason = _first_line(error).removeprefix(f"{options['type']}: ")
        raise InputError(f"{where}: {options['type']} refuses its arguments: {reason} {limit}".rstrip()) from error


def build_network(key: str, options: dict) -> torch.nn.Module:
    """Builds a registered network, in evaluation mode.

    Args:
        key: what to call it in an error, such as ``network_g``.
        options: ``type`` and the arguments, whose names were checked before.

    Raises:
        InputError: if it refuses its arguments.
    """
    name = options["type"]
    return _build(key, options, _registered("arch", name), limit=LIMITS.get(name, "")).eval()


def _registered(kind: str, name: str) -> Any:
    entries = registration.registries()[kind]
    return entries.get(name, entries.get(f"{name}_basicsr"))


def _first_line(error: Exception) -> str:
    text = first_line(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _check_training(opt: dict, network: torch.nn.Module) -> None:
    train = opt["train"]
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"network_g: {opt['network_g']['type']} has no parameters to train.")
    for key, options in train.items():
        if key.endswith("_opt"):
            make = _registered("loss", options["type"])
            is_tried = key == "pixel_opt" and make.__module__.startswith(("basicsr.", "hranet_arch."))
            with _without_downloads():
                _build(f"train.{key}", options, *((_make_pixel_loss, make) if is_tried else (make,)))
    for key, options in train.items():
        if key.startswith("optim_"):
            optimizer = _build(f"train.{key}", options, _make_optimizer, _registered("optimizer", options["type"]))
            schedule = train["scheduler"]
            _build("train.scheduler", schedule, _registered("scheduler", schedule["type"]), optimizer)


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
    """BasicSR's VGG, of a perceptual loss, as it is made: what it has learnt is downloaded when the run begins."""
    from basicsr.archs import vgg_arch

    class Untrained:
        def __getattr__(self, name: str) -> Callable[..., torch.nn.Module]:
            return lambda pretrained: getattr(real, name)(init_weights=False)

    real, vgg_arch.vgg = vgg_arch.vgg, Untrained()
    try:
        yield
    finally:
        vgg_arch.vgg = real


def _check_own_folder(opt: dict) -> None:
    """A training that begins anew moves the folder of an earlier one of its name aside, and what it holds with it."""
    if opt["auto_resume"] or opt["path"].get("resume_state"):
        return
    own = Path(opt["path"]["experiments_root"]).resolve()
    named = {f"path.{key}": path for key, path in opt["path"].items() if key.startswith("pretrain_network_") and path}
    for key, path in {**named, "train.teacher": opt["train"].get("teacher") or ""}.items():
        if Path(path).resolve().is_relative_to(own):
            raise InputError(
                f"{key}: {path} lies in this run's own folder, which a new run moves aside. Give this run another "
                "'name' (or go on with the one that is there: --auto_resume)."
            )


def _check_teacher(opt: dict) -> None:
    """A teacher takes what the training pictures are, and gives what the network is to give."""
    name, dataset = opt["train"]["teacher"], opt["datasets"]["train"]
    try:
        teacher = networks.load_network(name)
    except InputError as error:
        raise InputError(f"train.teacher: {error}") from error
    if teacher.backend != "torch":
        raise InputError(f"train.teacher: {name} is an ONNX model. Give the weights that it was made from.")
    if teacher.scale != opt["scale"]:
        scales = f"enlarges {teacher.scale} times, but the file's scale is {opt['scale']}"
        raise InputError(f"train.teacher: {name} {scales}.")
    if _names_color(dataset) and teacher.channels != _count_channels(dataset):
        given = f"datasets.train gives pictures of {_count_channels(dataset)}"
        raise InputError(f"train.teacher: {name} takes pictures of {teacher.channels} channels, and {given}.")
    if teacher.takes_sigma and (dataset["type"], opt["model_type"]) != ("GaussianDenoisingDataset", "DenoisingModel"):
        told = "a DenoisingModel tells it that of a GaussianDenoisingDataset"
        raise InputError(f"train.teacher: {name} must be told the noise level; {told}, and nothing else does.")
    own, given = teacher.description.sigma, dataset.get("sigma")  # a level, or the lowest and the highest
    task = teacher.description.task
    if dataset["type"] == "GaussianDenoisingDataset" and task not in (None, "denoise"):
        logger.warning("train.teacher: %s is for the task '%s', and datasets.train has noise.", name, task)
    elif own is not None and given is None:
        logger.warning("train.teacher: %s is for noise of sigma %s, and datasets.train does not say it.", name, own)
    elif own is not None and not np.min(own) <= np.min(given) <= np.max(given) <= np.max(own):
        logger.warning("train.teacher: %s is for noise of sigma %s, and datasets.train has %s.", name, own, given)


def _names_color(dataset: dict) -> bool:
    """Whether its class is known to give what ``color`` says, RGB if it says nothing."""
    return "color" in schema.DATASETS.get(dataset["type"], schema.OtherDataset).model_fields


def _count_channels(dataset: dict) -> int:
    return 1 if dataset.get("color") in ("gray", "y") else 3


def _make_pixel_loss(make: Callable[..., torch.nn.Module], **arguments: Any) -> torch.nn.Module:
    """A loss that has compared two pictures: some arguments are refused only then. A stranger's may want others."""
    loss = make(**arguments)
    count = loss(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)).numel()
    if count != 1:
        raise ValueError(f"it gives {count} numbers; write reduction: mean.")
    return loss


def _make_optimizer(make: Callable[..., torch.optim.Optimizer], **arguments: Any) -> torch.optim.Optimizer:
    """An optimiser that has made a step, likewise."""
    parameters = [torch.nn.Parameter(torch.ones(16, 16, 1, 1)), torch.nn.Parameter(torch.ones(1))]
    optimizer = make(parameters, **arguments)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    return optimizer


def _check_metrics(metrics: dict[str, dict]) -> None:
    """Two pictures are scored, by metrics whose demands are known: a stranger's may want others than noise."""
    from hranet_arch.validation import is_known, score

    known = {name: options for name, options in metrics.items() if is_known(options["type"])}
    score(known, *torch.rand(2, 3, LARGEST_METRIC, LARGEST_METRIC, generator=torch.Generator().manual_seed(0)))


def _check_checkpoint(opt: dict, network: torch.nn.Module) -> None:
    path, own = opt["path"].get("pretrain_network_g"), network.state_dict()
    if path is None:
        if not opt["is_train"] and own:
            raise InputError("path.pretrain_network_g: is missing: a test of random weights says nothing.")
        return
    try:
        checkpoint = checkpoints.load_checkpoint(path)
        params, _ = checkpoints.select_params(checkpoint, opt["path"].get("param_key_g"))
        if not opt["path"].get("strict_load_g", True):
            return
        checkpoints.require_fit(network, params, path)
        if difference := find_difference(opt["network_g"], path, checkpoint):
            if not opt["is_train"]:
                raise InputError(f"{difference} Write in network_g what the file has.")
            logger.warning("path.pretrain_network_g: %s", difference)  # a training may get used to it
    except InputError as error:
        raise InputError(f"path.pretrain_network_g: {error}") from error


def find_difference(options: dict, path: str | Path, checkpoint: dict) -> str:
    """What the weights' shapes do not show, such as HRANet's ``attention_pool``: a sentence about the arguments that
    the checkpoint's file, if it says its ``network_g``, as ours do, has otherwise than ``options``; else ''."""
    stored = networks.read_description(Path(path), checkpoint).network_g
    if stored is None or stored.get("type") != options["type"]:
        return ""
    parameters = inspect.signature(_registered("arch", options["type"])).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    there, here = (json.loads(json.dumps({**defaults, **one}, default=str)) for one in (stored, options))
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    said = ", ".join(f"{name}: {there.get(name)!r} (in network_g {here.get(name)!r})" for name in names)
    return f"{path} is of a {options['type']} with {said}, which the weights' shapes do not show." if names else ""


def load_strictly(network: torch.nn.Module, path: str | Path) -> None:
    """Loads a checkpoint's network, which must have the network's tensors, no more and no fewer.

    Raises:
        InputError: if it is no whole checkpoint, or another network's.
    """
    params = checkpoints.select_params(checkpoints.load_checkpoint(path))[0]
    checkpoints.require_fit(network, params, path)
    network.load_state_dict(params)


def _check_resume_state(opt: dict) -> None:
    path = opt["path"].get("resume_state")
    if path and "optimizers" not in checkpoints.load_checkpoint(path):
        raise InputError(f"path.resume_state: {path} is no training state; see experiments/NAME/training_states.")


def _probe(network: torch.nn.Module, opt: dict, phase: str) -> None:
    """One small picture through the network, on the CPU; every mismatch of channels, window and scale shows."""
    name, scale, dataset = opt["network_g"]["type"], opt["scale"], opt["datasets"][phase]
    channels = _count_channels(dataset)
    side = dataset["gt_size"] // scale if phase == "train" else PROBE_SIZE
    window = tiling.find_window(opt["network_g"])
    if side > LARGEST_PROBE >= window:
        side = LARGEST_PROBE - (LARGEST_PROBE - side) % window  # as many pixels over whole windows
    lq = torch.zeros(1, channels, *[max(side, 1)] * 2)
    if phase != "train":  # in training nothing is padded
        lq = tiling.pad_to_multiple(lq, window)
    given = f"datasets.{phase} gives {'grey' if channels == 1 else 'RGB'} pictures ({channels} channels)"
    limit = LIMITS.get(name, "Give the network that many channels, or the dataset another 'color'.")
    try:
        with torch.inference_mode():
            output = network(lq)
    except Exception as error:  # as above
        size = f"{lq.shape[-2]}x{lq.shape[-1]}"
        if lq.shape[-1] % window:
            limit = f"Its windows are of {window}: make datasets.train.gt_size a multiple of {window * scale}."
        raise InputError(f"network_g: {given}; of {size} of them {name} says: {_first_line(error)} {limit}") from error
    if not isinstance(output, Tensor) and opt["model_type"] in schema.MODELS:
        raise InputError(
            f"network_g: {name} gives no tensor but a {type(output).__name__}, which {opt['model_type']} cannot use. "
            "Wrap it, or write a model class for it."
        )
    expected = (1, channels, lq.shape[2] * scale, lq.shape[3] * scale)
    if isinstance(output, Tensor) and tuple(output.shape) != expected:
        raise InputError(
            f"network_g: {name} makes {tuple(output.shape)} of {tuple(lq.shape)}, but {given} and scale is {scale}, so "
            f"{expected} is due. Mend the channels, 'upscale' or 'scale'. {LIMITS.get(name, '')}".rstrip()
        )
