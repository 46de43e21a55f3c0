"""One run: BasicSR's own ``train_pipeline`` and ``test_pipeline`` around options that were checked before.

The functions here take the place of those that BasicSR's pipelines call by name (``fixes`` says why), and guard the
run's folder: one run in it at a time, and an earlier run put back if a launch fails before it has trained.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from torch.utils.data import Dataset

from hranet_arch.compat import RUN, apply_fixes, make_importable

make_importable()

import basicsr.test
import basicsr.train
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils import check_resume
from basicsr.utils import logger as basicsr_logger
from basicsr.utils.dist_util import master_only

from hranet_arch import checkpoints
from hranet_arch.device_batches import DeviceLoader
from hranet_arch.errors import InputError, Interrupted, list_stops

logger = logging.getLogger(__name__)


def run_train(opt: dict, opt_path: str) -> None:
    """Trains as ``opt`` says (checked options; see ``options.complete_options``), with the current folder as root."""
    folder = Path(opt["path"]["experiments_root"])
    with _guarded_run(opt, opt_path, basicsr.train, folder), _stop_on_signals(opt["dist"]):
        basicsr.train.train_pipeline(os.getcwd())


def run_test(opt: dict, opt_path: str) -> None:
    """Tests as ``opt`` says, with the current folder as root."""
    phases = {id(dataset): phase for phase, dataset in opt["datasets"].items()}
    basicsr.test.build_dataset = lambda dataset: _build_dataset(phases[id(dataset)], dataset)
    with _guarded_run(opt, opt_path, basicsr.test, Path(opt["path"]["results_root"])):
        basicsr.test.test_pipeline(os.getcwd())


# --- the run's folder, its signals, its processes ---------------------------------------------------------------------


@contextlib.contextmanager
def _guarded_run(opt: dict, opt_path: str, pipeline, folder: Path) -> Iterator[None]:
    RUN.reset()
    _close_loggers()
    pipeline.parse_options = lambda root_path, is_train=True: (opt, argparse.Namespace(opt=opt_path))
    given = copy.deepcopy(opt)  # before a resume puts its own files into 'path': the copy trains anew, as it did
    given["path"].pop("resume_state", None)
    basicsr.train.copy_opt_file = lambda opt_file, root: write_options(given, Path(root) / Path(opt_file).name)
    with lock_folder(folder, opt["rank"]):
        try:
            yield
        except BaseException:
            if not RUN.is_started:
                _put_back_archived()
            end_distributed(has_failed=True)
            raise
        end_distributed()


def _close_loggers() -> None:
    """Upstream ``utils/logger.py:166``: a second run in one process would log into the first run's file."""
    for name in list(basicsr_logger.initialized_logger):
        root = logging.getLogger(name)
        for handler in list(root.handlers):
            handler.close()
            root.removeHandler(handler)
        del basicsr_logger.initialized_logger[name]


@contextlib.contextmanager
def lock_folder(folder: Path, rank: int) -> Iterator[None]:
    """Keeps a second run out of a run's folder (upstream: it moves the first's away, and both save into one)."""
    if rank != 0:
        yield
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder} is in use by another run. Wait for it, or give this run another 'name'.") from error
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder.parent}: {error.strerror}. Run from a folder of your own."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _stop_on_signals(is_distributed: bool) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP saves and stops after the running iteration; the second stops at once.

    Not in distributed training, where ranks that stop at different iterations would wait for each other.
    """
    if is_distributed:
        yield
        return

    def request_stop(number: int, frame) -> None:
        if RUN.stop_requested:
            raise Interrupted("Stopped at once, at the second signal; go on from the last checkpoint: --auto_resume.")
        RUN.stop_requested = True
        logger.warning("%s: saving and stopping after this iteration.", signal.Signals(number).name)

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, *list_stops())}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@master_only
def _put_back_archived() -> None:
    """A launch that failed before the end of its first iteration leaves the folders as it found them."""
    _close_loggers()
    for path, archived in reversed(RUN.archived):
        shutil.rmtree(path, ignore_errors=True)
        if archived:
            os.rename(archived, path)


@master_only
def write_options(opt: dict, path: Path) -> None:
    """Writes the options that ran, overrides included, to the run's folder."""
    path.write_text(yaml.safe_dump(opt, sort_keys=False), encoding="utf-8")


def start_distributed(launcher: str, on_gpu: bool, port: int | None = None) -> None:
    """Upstream ``utils/dist_util.py``: NCCL only, a device from RANK, no CPU (issue 626).

    torchrun and Slurm; NCCL on GPUs with a device from LOCAL_RANK, Gloo on the CPU. The timeout is long because
    rank 0 validates alone.
    """
    for number in list_stops():
        signal.signal(number, signal.SIG_DFL)  # at once: whoever waits for another process runs no Python
    if launcher == "slurm":
        _read_slurm(port)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"--launcher {launcher}: RANK and WORLD_SIZE are not set. Start it with: "
            "torchrun --nproc_per_node=N $(which basicsr) VERB -opt FILE --launcher pytorch"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"Process {local_rank} of this machine has no GPU: it has {torch.cuda.device_count()}.")
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(hours=12))


def end_distributed(*, has_failed: bool = False) -> None:
    """Leaves the group of processes, if there is one: at Python's end its threads could abort the process.

    Not NCCL's after a failure: leaving waits for the others, and they wait for this one; the launcher ends them once it
    has (pytorch/torchtitan, issue 1342).
    """
    if torch.distributed.is_initialized() and not (has_failed and torch.distributed.get_backend() == "nccl"):
        # A moment in which Python is free: Gloo's threads need it to let go of their last tensors, and torch 2.7 waits
        # for these threads without letting them have it, for ever. 2.13 does not: goes when that is the oldest allowed.
        time.sleep(0.1)
        torch.distributed.destroy_process_group()


def _read_slurm(port: int | None) -> None:
    try:
        rank, tasks, nodes = (os.environ[f"SLURM_{name}"] for name in ("PROCID", "NTASKS", "NODELIST"))
    except KeyError as error:
        raise InputError(f"--launcher slurm: {error.args[0]} is not set. Start it with srun.") from error
    hosts = subprocess.run(["scontrol", "show", "hostname", nodes], capture_output=True, text=True, check=True).stdout
    os.environ["MASTER_ADDR"] = hosts.split()[0]
    os.environ.setdefault("MASTER_PORT", "29500")
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = rank, tasks
    count = torch.cuda.device_count()
    if count == 1 and "SLURM_GPUS_PER_TASK" in os.environ:
        os.environ["LOCAL_RANK"] = "0"  # a GPU that this task alone sees
    else:
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", str(int(rank) % max(count, 1)))


# --- what train_pipeline calls ----------------------------------------------------------------------------------------


def load_resume_state(opt: dict) -> dict | None:
    """Finds and reads the state to go on from: with ``--auto_resume`` the newest of the run that is whole.

    Raises:
        InputError: if the state named by ``path.resume_state``, or its networks, cannot be read.
    """
    from hranet_arch import preflight  # which needs the fixes, and they this module

    networks = [key.removeprefix("network_") for key in opt if key.startswith("network_")]
    models = Path(opt["path"]["models"])
    if opt["auto_resume"]:
        found = checkpoints.find_resumable(opt["path"]["training_states"], models, networks)
        opt["path"]["resume_state"] = str(found) if found else None
    path = opt["path"].get("resume_state")
    if not path:
        return None
    state = checkpoints.load_checkpoint(path)
    for name in networks:
        file = models / f"net_{name}_{state['iter']}.pth"
        if not file.is_file():
            raise InputError(f"{path}: its network {file} is missing. Is 'name' ({opt['name']}) that of the run?")
        if difference := preflight.find_difference(opt[f"network_{name}"], file, checkpoints.load_checkpoint(file)):
            logger.warning(difference)
    total = int(opt["train"]["total_iter"])
    if state["iter"] > total:  # upstream would save and validate these weights as those of iteration total_iter
        raise InputError(f"train.total_iter: {total}, but the run has had {state['iter']} iterations. Raise it.")
    check_resume(opt, state["iter"])
    opt["path"]["param_key_g"] = "params"  # of the run's own networks, which take the place of path.pretrain_network_g
    RUN.resume_state = state
    RUN.iteration = RUN.saved = state["iter"]
    return state


def create_train_val_dataloader(opt: dict, basicsr_log: logging.Logger) -> tuple:
    """BasicSR's function of this name, with epochs as long as the loader and samples that depend on their place alone.

    Returns:
        The training loader, its sampler, the validation loaders, the number of epochs, the number of iterations.
    """
    loaders = {}
    for phase, dataset_opt in opt["datasets"].items():
        dataset = _build_dataset(phase, dataset_opt)
        sampler = None
        if phase == "train":
            ratio = dataset_opt.get("dataset_enlarge_ratio", 1)
            sampler = ResumableSampler(dataset, opt["world_size"], opt["rank"], ratio, opt["manual_seed"])
            if dataset_opt.get("degrade_on") != "device":
                dataset = SeededDataset(dataset)
        loaders[phase] = _build_loader(dataset, dataset_opt, sampler, opt)
        basicsr_log.info(f"{dataset_opt['name']}: {len(dataset)} pictures for {phase}.")
    train_loader = loaders.pop("train")
    iterations = len(train_loader)
    if iterations == 0:
        raise InputError(
            f"datasets.train: {len(train_loader.sampler)} samples an epoch do not fill one batch of "
            f"{train_loader.batch_size}. Raise dataset_enlarge_ratio or lower batch_size_per_gpu."
        )
    opt["iters_per_epoch"] = iterations
    RUN.val_loaders = list(loaders.values())
    if RUN.resume_state:
        # The epoch is counted anew: the batch size may have changed since the state was saved.
        epoch, done = divmod(RUN.resume_state["iter"], iterations)
        RUN.resume_state["epoch"] = epoch
        train_loader.sampler.first = (epoch, done * train_loader.batch_size)
    total_iters = int(opt["train"]["total_iter"])
    total_epochs = -(-total_iters // iterations)
    basicsr_log.info(f"{iterations} iterations an epoch, {total_epochs} epochs, {total_iters} iterations.")
    return train_loader, train_loader.sampler, RUN.val_loaders, total_epochs, total_iters


def _build_loader(dataset: Dataset, dataset_opt: dict, sampler: ResumableSampler | None, opt: dict):
    if dataset_opt.get("degrade_on") == "device":
        batch_size = dataset_opt["batch_size_per_gpu"] * (1 if opt["dist"] else max(opt["num_gpu"], 1))
        device = torch.device("cuda", torch.cuda.current_device()) if opt["num_gpu"] else torch.device("cpu")
        try:
            return DeviceLoader(dataset, sampler, batch_size, device)
        except InputError as error:
            raise InputError(f"datasets.train: {error}") from error
    loader = build_dataloader(
        dataset, dataset_opt, num_gpu=opt["num_gpu"], dist=opt["dist"], sampler=sampler, seed=opt["manual_seed"]
    )
    # Of its own: starting an iteration draws from it, which must not shift what the network draws (dropout).
    loader.generator = torch.Generator()
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
    return loader


def _start_worker(start: Callable[[int], None] | None, worker: int) -> None:
    """A terminal's Ctrl-C and end and a scheduler's SIGTERM go to all processes: the run answers, and its workers go on
    until it ends them. Upstream they die of it, and the run with them."""
    for number in {signal.SIGINT, *list_stops()} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()
    if start is not None:
        start(worker)


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _build_dataset(phase: str, dataset_opt: dict) -> Dataset:
    try:
        dataset = build_dataset(dataset_opt)
    except InputError as error:
        raise InputError(f"datasets.{phase}: {error}") from error
    except (AssertionError, OSError, ValueError, KeyError) as error:  # how BasicSR's datasets refuse their data
        raise InputError(f"datasets.{phase}: {dataset_opt['type']} says: {error!r}") from error
    if len(dataset) == 0:
        raise InputError(f"datasets.{phase}: {dataset_opt['type']} finds no pictures.")
    return dataset


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler; yields ``(index, seed)``, and can begin inside an epoch."""

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: int, seed: int) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.seed = seed
        self.first = (0, 0)  # a resumed run's epoch, and how many of its samples are done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for place, index in self.list_places():
            yield index, self.make_seed(place)

    def list_places(self) -> list[tuple[int, int]]:
        """What is left of the epoch: each sample's place in it, and the picture's index."""
        epoch, done = self.first
        return list(enumerate(super().__iter__()))[done if self.epoch == epoch else 0 :]

    def make_seed(self, place: int) -> int:
        """A seed for this place of this epoch on this rank, and for no other."""
        words = np.random.SeedSequence([self.seed, self.epoch, self.rank, place]).generate_state(1)
        return int(words[0])


class SeededDataset(Dataset):
    """Any training set, with every sample's randomness fixed by run, epoch and place.

    Upstream reseeds NumPy and ``random`` alike in every epoch (``data/__init__.py:97-101``); here neither the number
    of workers nor a resume changes what is drawn, for datasets that draw from torch, NumPy or ``random``.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.opt = dataset.opt

    def __setstate__(self, state: dict) -> None:
        """In a worker started by spawn, which has imported this module and nothing else of ours."""
        apply_fixes()
        self.__dict__ = state

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]):
        index, seed = key
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[index]
        except InputError as error:
            raise InputError(f"datasets.train: {error}") from error
        except (AssertionError, OSError, ValueError) as error:  # how BasicSR's datasets refuse their pictures
            reason = " ".join(map(str, error.args))
            raise InputError(f"datasets.train: {type(self.dataset).__name__} says: {reason}") from error
        finally:  # without workers, the network draws from the same generators
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
