"""The faults inside BasicSR 1.4.2, one function each: the upstream file and issue, and the day it can be deleted.

They hold for every architecture, dataset and model that runs through BasicSR, its own and others'.
``compat.apply_fixes`` calls them all; ``basicsr doctor`` lists them. Line numbers are those of release 1.4.2. Upstream
is dormant since May 2024 (XPixelGroup/BasicSR issues 654, 678, 681); "upstream" below means a release on PyPI.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hranet_arch import checkpoints
from hranet_arch.compat import RUN
from hranet_arch.errors import InputError, Interrupted, TrainingError
from hranet_arch.optimizers import list_optimizers

logger = logging.getLogger(__name__)

FIXES: list[Callable[[], None]] = []


def _fix(function: Callable[[], None]) -> Callable[[], None]:
    FIXES.append(function)
    return function


@_fix
def share_lmdb_environments() -> None:
    """``utils/file_client.py:112``: an LMDB opened twice raises ``already open in this process`` (lmdb >= 2.0).

    Several validation sets over one LMDB, or validation on the training LMDB, run into it. The backend here shares
    one read-only environment a path (workers that are forked inherit it), refuses a truncated file, which would kill
    the process with SIGBUS, and names a key that is not there. Delete when BasicSR caches its environments.
    """
    from basicsr.utils.file_client import FileClient

    from hranet_arch.lmdb_reader import LmdbBackend

    FileClient._backends["lmdb"] = LmdbBackend


@_fix
def decode_by_depth() -> None:
    """``utils/img_util.py:128-131``: 16-bit pictures are cut to 8 bits, and a damaged one ends in ``NoneType``.

    ``imfrombytes`` is replaced where datasets imported it. Colour stays colour: grey as one channel is what the
    datasets of this package read (issues 31, 526, 744). Delete when upstream scales by the picture's own depth.
    """
    from hranet_arch.images import decode_image, to_float

    colors = {"color": "rgb", "grayscale": "gray", "unchanged": "unchanged"}

    def imfrombytes(content: bytes, flag: str = "color", float32: bool = False):
        if content is None:
            raise InputError("A picture named by the dataset is not in its LMDB: make the LMDB anew.")
        image = decode_image(content, "A picture of the dataset", colors[flag])
        return to_float(image, "A picture of the dataset") if float32 else image

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("basicsr.") and hasattr(module, "imfrombytes"):
            module.imfrombytes = imfrombytes


@_fix
def take_luma_of_bgr() -> None:
    """``data/single_image_dataset.py:58``: ``color: y`` takes a BGR picture's luma as an RGB one's, blue for red.

    Delete when upstream takes ``bgr2ycbcr``, as its ``PairedImageDataset`` does.
    """
    from basicsr.data import single_image_dataset
    from basicsr.utils import bgr2ycbcr

    single_image_dataset.rgb2ycbcr = bgr2ycbcr


@_fix
def average_ema_with_buffers() -> None:
    """``models/base_model.py:75-82``: the EMA network never gets BatchNorm's statistics, so what is validated and
    saved as ``params_ema`` normalises with mean 0 and variance 1. Buffers are averaged here as the weights are, all
    tensors at once instead of one by one.

    Delete when ``model_ema`` handles ``named_buffers``.
    """
    from basicsr.models.base_model import BaseModel

    def model_ema(self, decay: float = 0.999) -> None:
        net = self.get_bare_model(self.net_g)
        if getattr(self, "paired_for", None) is not net:
            self.paired_for, self.pairs = net, pair_with_average(net, self.net_g_ema)
        (averages, values), (copies, originals) = self.pairs
        with torch.no_grad():
            torch._foreach_lerp_(averages, values, 1 - decay)
            for copy, original in zip(copies, originals):
                copy.copy_(original)

    BaseModel.model_ema = model_ema


Tensors = list[torch.Tensor]


def pair_with_average(net: torch.nn.Module, average: torch.nn.Module) -> tuple[tuple[Tensors, Tensors], ...]:
    """The tensors of a network's average and the network's own: those that are averaged, then those that are copied,
    which are counters and what is not finite, as a mask of -inf. What has several names is there once: each would
    move it."""
    pairs = zip(average.state_dict().values(), net.state_dict().values(), strict=True)
    averaged, copied = ([], []), ([], [])
    for one, other in {one.data_ptr(): (one, other) for one, other in pairs if one.numel()}.values():
        part = averaged if one.is_floating_point() and other.isfinite().all() else copied
        part[0].append(one)
        part[1].append(other)
    return averaged, copied


@_fix
def warm_up_to_the_rate() -> None:
    """``models/base_model.py:165-188``: with MultiStepLR the warm-up stays at (N-1)/N of the rate for ever and loses
    milestones inside it, because the scheduler goes on from the warmed-up rate.

    Here the scheduler steps on its own rate and the warm-up multiplies that. This is also the start of an iteration
    for every model, so a requested stop is carried out here: save, then leave; and a resumed run makes up for a
    validation, and takes up its random numbers only here, since what came before (building, loading) may have drawn.
    Delete the first half when upstream separates the two rates, the second when it handles SIGINT and SIGTERM, the rest
    with ``save_or_raise``.
    """
    from basicsr.models.base_model import BaseModel

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        RUN.is_started = RUN.is_started or RUN.iteration > 0  # a step is done: there is something to keep
        if RUN.stop_requested:
            _save_and_stop(self, current_iter - 1)
        if RUN.resume_state and RUN.iteration == RUN.resume_state["iter"]:
            _make_up_validation(self, RUN.resume_state)
        if RUN.resume_state and self.opt["rank"] == 0:  # whose numbers were kept
            _set_random_state(RUN.resume_state.pop("random", None))
        RUN.iteration = current_iter
        self._set_lr([scheduler.get_last_lr() for scheduler in self.schedulers])
        if current_iter > 1:
            for scheduler in self.schedulers:
                scheduler.step()
        if current_iter < warmup_iter:
            rates = [scheduler.get_last_lr() for scheduler in self.schedulers]
            self._set_lr([[rate * current_iter / warmup_iter for rate in group] for group in rates])

    BaseModel.update_learning_rate = update_learning_rate


def _save_and_stop(model, iteration: int) -> None:
    if iteration == 0:
        raise Interrupted("Stopped before the first iteration; nothing to save.")
    if iteration != RUN.saved:  # else it is there, and a resumed run has not yet taken up its random numbers
        _save(model, iteration)
    raise Interrupted(f"Stopped after iteration {iteration}; its checkpoint is saved. Go on with --auto_resume.")


def _make_up_validation(model, state: dict) -> None:
    """A checkpoint is written before it is validated: where the run ended in between, its best may not be known."""
    val_opt = model.opt.get("val")
    if val_opt and state.get("owes_validation"):
        for loader in RUN.val_loaders:
            model.validation(loader, state["iter"], RUN.tb_logger, val_opt["save_img"])


def _get_random_state() -> dict:
    """Where the generators of this process are, as plain values and tensors."""
    version, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (version, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict | None) -> None:
    if state is None:
        return
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _is_sound(net: torch.nn.Module) -> bool:
    """Whether a network's values can be used. A buffer of -inf can: masks have it."""
    buffers = (buffer for buffer in net.buffers() if buffer.is_floating_point())
    return all(one.isfinite().all() for one in net.parameters()) and all((one < math.inf).all() for one in buffers)


def _save(model, iteration: int) -> None:
    model.save(epoch=(iteration - 1) // model.opt["iters_per_epoch"], current_iter=iteration)


@_fix
def save_or_raise() -> None:
    """``models/base_model.py:191-252, 297-330``: checkpoints are written in place, and a failure is "just ignored" with
    exit status 0: a full disk leaves truncated files. A network that has become NaN is saved like any other. The last
    iterations, where they do not fill ``save_checkpoint_freq``, have no training state: nothing can go on from them.
    What a network draws by itself (dropout) is drawn anew after a resume.

    Written atomically here; a failure, and a network that is not finite, end the run with a message. The end of the
    training is a checkpoint as others are, and each has the generators' states. Delete when upstream raises and
    renames, and keeps the last state and these.
    """
    from basicsr.models.base_model import BaseModel
    from basicsr.utils.dist_util import master_only

    def save_network(self, net, net_label: str, current_iter: int, param_key: str | list[str] = "params") -> None:
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {
            key: {name: value.cpu() for name, value in self.get_bare_model(net).state_dict().items()}
            for key, net in zip(keys, nets, strict=True)
        }
        label = "latest" if current_iter == -1 else current_iter
        if not all(_is_sound(self.get_bare_model(net)) for net in nets):
            raise TrainingError(
                f"{net_label}_{label} holds values that are not finite and is not saved; earlier checkpoints in "
                f"{self.opt['path']['models']} are intact. Lower the learning rate."
            )
        if net_label == "net_g":  # what leaves no trace in the weights' shapes, such as HRANet's attention_pool
            content["network_g"] = json.dumps(self.opt["network_g"], default=str)
            dataset = self.opt.get("datasets", {}).get("train", {})
            if dataset.get("type") == "GaussianDenoisingDataset":
                content["sigma"] = json.dumps(dataset["sigma"])
        content["iter"] = RUN.iteration  # of net_g_best and net_g_latest nothing else says it
        checkpoints.save_atomically(content, Path(self.opt["path"]["models"]) / f"{net_label}_{label}.pth")

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:  # the end of the training
            if RUN.iteration != RUN.saved:
                _save(self, RUN.iteration)
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "optimizer_types": [_type_of(optimizer) for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": _get_random_state(),
            **self.extra_training_state(),
        }
        checkpoints.save_atomically(state, Path(self.opt["path"]["training_states"]) / f"{current_iter}.state")
        RUN.saved = current_iter

    BaseModel.extra_training_state = lambda self: {}
    BaseModel.save_network = master_only(save_network)
    BaseModel.save_training_state = master_only(save_training_state)


@_fix
def resume_with_the_options_given() -> None:
    """``models/base_model.py:332-346``: on a resume the saved scheduler and optimiser silently overrule the YAML (new
    rate, milestones, gamma), and a state of another scheduler type is loaded without complaint (issues 327, 464).

    Unchanged options load exactly. Where the YAML's differ they win: the rates are set and the new schedule is run
    forward to the iteration; another optimiser's averages start anew. Delete when upstream compares the two.
    """
    from basicsr.models.base_model import BaseModel

    def resume_training(self, resume_state: dict) -> None:
        optimizers, schedulers = resume_state["optimizers"], resume_state["schedulers"]
        if len(optimizers) != len(self.optimizers) or len(schedulers) != len(self.schedulers):
            raise InputError("The training state is of a model with other optimizers: it cannot be resumed here.")
        types = resume_state.get("optimizer_types") or map(_type_of, self.optimizers)  # older states do not say
        for optimizer, scheduler, optimizer_state, scheduler_state, saved_type in zip(
            self.optimizers, self.schedulers, optimizers, schedulers, types
        ):
            options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            is_same = _schedule_of(scheduler.state_dict()) == _schedule_of(scheduler_state)
            saved_groups, averages = optimizer_state["param_groups"], optimizer_state["state"]
            own = _list_averages(_type_of(optimizer), optimizer.param_groups)
            if _list_averages(saved_type, saved_groups) != own:
                logger.warning("The optimiser of the option file differs from the saved one; its averages start anew.")
                averages = optimizer.state_dict()["state"]
            kept = ("params", "lr", "initial_lr") if is_same else ("params",)
            groups = [
                {**given, **{key: saved[key] for key in kept if key in saved}}
                for saved, given in zip(saved_groups, options)
            ]
            # Before the states are loaded: whether the optimiser is fused decides on which device some of them lie.
            optimizer.load_state_dict({"state": averages, "param_groups": groups})
            _lay_out_averages(optimizer)
            if is_same:
                scheduler.load_state_dict(scheduler_state)
                continue
            logger.warning("The schedule of the option file differs from the saved one; the option file's is used.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "step() before optimizer.step()": just what is meant
                for _ in range(resume_state["iter"] - 1):
                    scheduler.step()

    BaseModel.resume_training = resume_training


def _lay_out_averages(optimizer: torch.optim.Optimizer) -> None:
    """In the memory format of their weights, which ``train.channels_last`` may have changed: fused optimisers pair them
    in the order of memory."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _type_of(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _list_averages(optimizer_type: str, groups: list[dict]) -> tuple:
    """What decides which averages an optimiser keeps for a parameter."""
    return optimizer_type, [[bool(group.get(key)) for key in ("amsgrad", "centered", "momentum")] for group in groups]


def _schedule_of(state: dict) -> dict:
    """The part of a scheduler's state that its options fix."""
    progress = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in state.items() if k not in progress}


@_fix
def load_any_checkpoint() -> None:
    """``models/base_model.py:268-295``: ``KeyError: 'params'`` for a bare state dict (or ``'params_ema'`` where the
    average is trained on), no safetensors, no file name in the error for a truncated file.

    Delete when upstream falls back on the keys that are there.
    """
    from basicsr.models.base_model import BaseModel
    from basicsr.utils import get_root_logger

    def load_network(self, net, load_path: str, strict: bool = True, param_key: str | None = "params") -> None:
        checkpoint, own_key = checkpoints.load_checkpoint(load_path), self.opt["path"].get("param_key_g")
        if param_key not in checkpoint and own_key in checkpoint:
            param_key = own_key  # of the average, which is asked for as params_ema
        params, found = checkpoints.select_params(checkpoint, param_key)
        net = self.get_bare_model(net)
        if strict:
            checkpoints.require_fit(net, params, load_path)
        get_root_logger().info(f"Loading {type(net).__name__} from {load_path}, key [{found}].")
        self._print_different_keys_loading(net, params, strict)
        net.load_state_dict(params, strict=strict)  # what is left out where it is not strict has other names by now

    BaseModel.load_network = load_network


@_fix
def pass_on_errors_of_prefetching() -> None:
    """``data/prefetch_dataloader.py:29-38``: with ``prefetch_mode: cpu``, an error in the thread that reads ahead (a
    damaged picture) ends the thread alone, and the training waits for its next batch for ever.

    Delete when upstream hands the error to the reader.
    """
    from basicsr.data.prefetch_dataloader import PrefetchGenerator

    def run(self) -> None:
        try:
            for item in self.generator:
                self.queue.put(item)
            self.queue.put(None)
        except BaseException as error:
            self.queue.put(error)

    def __next__(self):
        item = self.queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    PrefetchGenerator.run, PrefetchGenerator.__next__ = run, __next__


@_fix
def keep_batches_until_they_are_used() -> None:
    """``data/prefetch_dataloader.py:113-117``: ``prefetch_mode: cuda`` copies batches on a stream of its own, and
    nothing tells the allocator that another one reads them: a batch that Python has let go of is overwritten by one
    read ahead while the step that uses it still waits on the GPU. Stock steps wait for the GPU; ours do not.

    Delete when upstream records the stream.
    """
    from basicsr.data.prefetch_dataloader import CUDAPrefetcher

    def next(self) -> dict | None:
        stream = torch.cuda.current_stream()
        stream.wait_stream(self.stream)
        batch = self.batch
        for value in (batch or {}).values():
            if torch.is_tensor(value):
                value.record_stream(stream)
        self.preload()
        return batch

    CUDAPrefetcher.next = next


@_fix
def build_any_optimizer() -> None:
    """``models/base_model.py:103-108``: Adam only; ``AdamW`` raises "not supperted yet".

    Delete when upstream takes every optimiser of torch (git master takes more already).
    """
    from basicsr.models.base_model import BaseModel

    def get_optimizer(self, optim_type: str, params, lr: float, **kwargs) -> torch.optim.Optimizer:
        return list_optimizers()[optim_type](params, lr=lr, **kwargs)

    BaseModel.get_optimizer = get_optimizer


@_fix
def wrap_for_the_device() -> None:
    """``models/base_model.py:88-101``: DistributedDataParallel asks for a CUDA device even on the CPU.

    Delete when upstream passes ``device_ids`` on CUDA only.
    """
    from basicsr.models.base_model import BaseModel
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    def model_to_device(self, net: torch.nn.Module) -> torch.nn.Module:
        net = net.to(self.device)
        if self.opt["dist"] and any(parameter.requires_grad for parameter in net.parameters()):
            return DistributedDataParallel(
                net,
                device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
                find_unused_parameters=self.opt.get("find_unused_parameters", False),
            )
        if not self.opt["dist"] and self.opt["num_gpu"] > 1:
            return DataParallel(net, device_ids=list(range(self.opt["num_gpu"])))  # and not all that there are
        return net

    BaseModel.model_to_device = model_to_device


@_fix
def validate_soundly() -> None:
    """``models/sr_model.py:138-214``: pictures of several validation sets overwrite each other, a network that puts out
    NaN scores a finite PSNR and becomes "best", a set without ground truth is scored against the last training batch,
    and one identical picture makes the mean infinite.

    One validation serves every model: ``validation.validate``. Delete when upstream's does the same.
    """
    from basicsr.models.sr_model import SRModel

    from hranet_arch.validation import validate

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        validate(self, dataloader, current_iter, tb_logger, save_img)

    SRModel.nondist_validation = nondist_validation


@_fix
def end_in_no_time() -> None:
    """``utils/logger.py:101``: the time that is left is counted for one iteration too few, and at the last one it is
    ``-1 day, 23:59:59``.

    The logger's number of iterations is one larger. Delete when upstream's line counts right.
    """
    import basicsr.train
    from basicsr.utils import logger as upstream

    class MessageLogger(upstream.MessageLogger):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.max_iters += 1
            RUN.tb_logger = self.tb_logger  # for a validation that is made up for

    basicsr.train.MessageLogger = MessageLogger


@_fix
def archive_without_clash() -> None:
    """``utils/misc.py:28-40``: two archives within one second clash (``Directory not empty``), and a launch that fails
    while it starts has moved the last good run away.

    Archived names are made unique, and remembered so that ``pipeline`` can put them back. Delete when upstream
    checks its options before it moves folders.
    """
    import basicsr.train
    from basicsr.utils import misc

    def mkdir_and_rename(path: str) -> None:
        if os.path.exists(path):
            archived = f"{path}_archived_{misc.get_time_str()}"
            while os.path.exists(archived):
                time.sleep(0.1)
                archived = f"{path}_archived_{misc.get_time_str()}"
            os.rename(path, archived)
            logger.info("%s exists already and is moved to %s.", path, archived)
            RUN.archived.append((path, archived))
        else:
            RUN.archived.append((path, ""))
        os.makedirs(path)

    misc.mkdir_and_rename = mkdir_and_rename
    basicsr.train.mkdir_and_rename = mkdir_and_rename


@_fix
def say_nothing_untrue_of_several_sets() -> None:
    """``train.py:191``: each validation on two or more sets warns that it is *only* supported by SRModel, whatever the
    model is; all of this package's support it. Delete when upstream asks the model.
    """
    logging.getLogger("basicsr").addFilter(lambda record: "Multiple validation datasets" not in str(record.msg))


@_fix
def load_and_resume_anywhere() -> None:
    """``train.py:28-92``: resume asks for CUDA, looks in the current folder instead of the run's, and takes the highest
    state even if it is truncated; epochs are counted with the last incomplete batch, so runs end early with status 0;
    and workers draw the same random numbers in every epoch (``data/__init__.py:97-101``).

    ``pipeline`` has the functions that BasicSR's ``train_pipeline`` calls instead. Delete when upstream's resume maps
    to the CPU, counts ``len(loader)``, and seeds by epoch.
    """
    import basicsr.train

    from hranet_arch import pipeline

    basicsr.train.load_resume_state = pipeline.load_resume_state
    basicsr.train.create_train_val_dataloader = pipeline.create_train_val_dataloader
